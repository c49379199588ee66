//! What pods leave behind: nothing.

use std::{fs, path::PathBuf, thread};

use bulkhead_tests::{ContainerSpec, Daemon, Environment, Inventory, PodSpec, until};

/// The node's daemon; there is one while no other test runs.
fn daemon_process() -> PathBuf {
    let program = Environment::get().bin.join("bulkheadd");
    let found: Vec<PathBuf> = fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|process| fs::read_link(process.join("exe")).is_ok_and(|exe| exe == program))
        .collect();
    let [process] = found.as_slice() else {
        panic!("one bulkheadd should run, not {found:?}")
    };
    process.clone()
}

/// What a process has open, by kind: numbers of pipes and sockets differ from one to the next.
fn open_files(process: &std::path::Path) -> Vec<String> {
    let mut files: Vec<String> = fs::read_dir(process.join("fd"))
        .expect("the daemon's descriptors")
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|target| {
            target
                .to_string_lossy()
                .split('[')
                .next()
                .unwrap_or_default()
                .to_owned()
        })
        .collect();
    files.sort();
    files
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn twenty_pods_leave_no_process_mount_namespace_address_file_or_control_group() {
    let daemon = Daemon::alone();
    let one_pod = |number: usize| {
        let pod = daemon.run_pod(PodSpec::new(&format!("leak-{number}")));
        let container = pod.run(ContainerSpec::sh(
            "echo written > /file; echo logged; exec top -b -d 3600 > /dev/null",
        ));
        container.wait_for_log("logged");
        assert_eq!(container.sh("cat /file"), "written");
        // Every other one without the courtesies of stop and rm.
        if number.is_multiple_of(2) {
            container.stop(0);
            container.remove();
            pod.stop();
        }
        pod.remove();
    };
    // What is made once for all pods is there from here on.
    one_pod(0);
    // The last has the addresses that host-local has given.
    let directories = [
        daemon.root().to_owned(),
        daemon.state().to_owned(),
        "/var/lib/cni".into(),
    ];
    let process = daemon_process();
    let before = Inventory::take(&directories);
    let files_before = open_files(&process);

    thread::scope(|scope| {
        for half in [1..11, 11..21] {
            scope.spawn(|| half.for_each(one_pod));
        }
    });

    until("all that belongs to the pods to be gone", || {
        let left = Inventory::take(&directories).added_since(&before);
        if left.is_empty() {
            Ok(())
        } else {
            Err(left.join("\n"))
        }
    });
    until("the daemon to have closed what belongs to the pods", || {
        let files = open_files(&process);
        // A connection of the test's own more or less.
        if files.len() <= files_before.len() + 2 {
            Ok(())
        } else {
            Err(format!(
                "{} files instead of {}: {files:?}",
                files.len(),
                files_before.len()
            ))
        }
    });
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_running_pod_is_in_the_inventory() {
    let daemon = Daemon::alone();
    let directories = [daemon.root().to_owned(), daemon.state().to_owned()];
    let before = Inventory::take(&directories);
    let pod = daemon.run_pod(PodSpec::new("counted"));
    let added = Inventory::take(&directories).added_since(&before);
    for kind in ["process bulkhead-vmm", "mount", "control group", "file"] {
        assert!(
            added.iter().any(|thing| thing.starts_with(kind)),
            "no {kind} in {added:#?}"
        );
    }
    drop(pod);
}
