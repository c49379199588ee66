//! Guests that panic, machines that die, daemons that are killed: what the rest of the node sees of it.

use std::fs;

use bulkhead_proto::cri::{ContainerState, PodSandboxState};
use bulkhead_tests::{Container, ContainerSpec, Daemon, DaemonOptions, Pod, PodSpec, log, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).expect("a process id"), Signal::KILL).expect("a process to kill");
}

/// After its machine has gone a pod is not ready, its containers have ended, and all can be removed.
fn assert_dead_and_removable(pod: &Pod<'_>, container: &Container<'_>, vmm: i32) {
    pod.wait_not_ready();
    let status = container.wait_exited();
    assert_ne!(status.exit_code, 0, "{status:?}");
    assert!(
        !status.reason.is_empty() && status.reason != "Completed",
        "{status:?}"
    );
    assert!(status.finished_at >= status.started_at, "{status:?}");
    assert!(
        !fs::exists(format!("/proc/{vmm}")).expect("/proc can be read"),
        "the machine's process is gone"
    );
    let refused = container
        .try_exec(&["true"], 0)
        .expect_err("there is nobody to run it");
    assert!(!refused.message().is_empty(), "{refused:?}");
    pod.stop();
    container.remove();

    pod.remove();
    assert!(
        pod.daemon()
            .crictl()
            .fails(["inspectp", pod.id()])
            .contains("NotFound")
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_guest_that_panics_ends_its_pod_and_no_other() {
    let daemon = Daemon::shared();
    let other = daemon.run_pod(PodSpec::new("bystander"));
    let bystander = other.run(ContainerSpec::idle());
    let pod = daemon.run_pod(PodSpec::new("panic").with("/linux/security_context/privileged", true));
    let vmm = pod.vmm_pid();
    let script =
        "echo going down; echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; sleep 100000";
    let container = pod.run(ContainerSpec::sh(script).security("privileged", true));
    pod.wait_not_ready();
    let inspected = daemon.crictl().run(["inspectp", pod.id()]).stdout;
    assert!(
        inspected.to_lowercase().contains("panic"),
        "inspectp says what happened: {inspected}"
    );
    let pods = daemon.crictl().ok([
        "pods",
        "-q",
        "--no-trunc",
        "--state",
        "notready",
        "--id",
        pod.id(),
    ]);
    assert_eq!(pods, pod.id());
    assert_dead_and_removable(&pod, &container, vmm);
    assert_eq!(bystander.sh("echo alive"), "alive");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_pod_whose_machine_is_killed_is_not_ready_and_its_containers_have_ended() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("killed"));
    let vmm = pod.vmm_pid();
    let container = pod.run(ContainerSpec::sh("echo before; exec top -b -d 3600 > /dev/null"));
    let waiting = pod.create(ContainerSpec::idle());
    container.wait_for_log("before");
    kill(vmm);
    let status = container.wait_exited();
    assert_eq!(status.exit_code, 137, "{status:?}");
    let never_started = waiting.status();
    assert_ne!(
        never_started.state(),
        ContainerState::ContainerRunning,
        "{never_started:?}"
    );
    assert_eq!(
        log::bytes_of(&container.log(), "stdout"),
        b"before\n",
        "what it wrote before is kept"
    );
    assert_dead_and_removable(&pod, &container, vmm);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_call_into_a_machine_that_dies_returns() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("dies-in-call"));
    let vmm = pod.vmm_pid();
    let container = pod.run(ContainerSpec::idle());
    std::thread::scope(|scope| {
        let exec = scope.spawn(|| container.try_exec(&["sh", "-c", "touch /running; sleep 100000"], 0));
        let stop = scope.spawn(|| {
            until("the exec to run", || {
                if container.exec(&["test", "-e", "/running"]).code == 0 {
                    Ok(())
                } else {
                    Err("no mark".into())
                }
            });
            kill(vmm);
            container.try_stop(100_000)
        });
        let status = exec
            .join()
            .expect("no panic")
            .expect_err("the exec has lost its machine");
        assert!(!status.message().is_empty(), "{status:?}");
        stop.join()
            .expect("no panic")
            .expect("what was to be stopped has ended");
    });
    assert_dead_and_removable(&pod, &container, vmm);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_thousand_orphans_are_reaped() {
    let daemon = Daemon::shared();
    let shared = json!({ "pid": 0 });
    let pod = daemon
        .run_pod(PodSpec::new("orphans").with("/linux/security_context/namespace_options", shared.clone()));
    let script = "i=0; while [ $i -lt 1000 ]; do ( (exit 0) & ) ; i=$((i+1)); done; echo done; exec top -b -d 3600 > /dev/null";
    let container =
        pod.run(ContainerSpec::sh(script).with("/linux/security_context/namespace_options", shared.clone()));
    container.wait_for_log("done");
    until("every orphan to be reaped", || {
        let zombies = container.sh("cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true");
        if zombies == "0" {
            Ok(())
        } else {
            Err(format!("{zombies} zombies"))
        }
    });
    // Orphans of an exec, too.
    let output = container.exec(&[
        "sh",
        "-c",
        "i=0; while [ $i -lt 100 ]; do ( (exit 0) & ) ; i=$((i+1)); done",
    ]);
    assert_eq!(output.code, 0, "{output:?}");
    until("every orphan of an exec to be reaped", || {
        let zombies = container.sh("cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true");
        if zombies == "0" {
            Ok(())
        } else {
            Err(format!("{zombies} zombies"))
        }
    });
    let next = pod.run(ContainerSpec::sh("exit 5"));
    assert_eq!(next.wait_exited().exit_code, 5, "the pod still works");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_killed_daemon_finds_its_pods_again() {
    let daemon = Daemon::private(DaemonOptions::new());
    let pod = daemon.run_pod(PodSpec::new("found").with("/labels", json!({ "kept": "label" })));
    let vmm = pod.vmm_pid();
    let script =
        "i=0; while [ ! -e /stop ]; do echo line $i; i=$((i+1)); sleep 0.01; done; echo last $i; exit 7";
    let talker = pod.run(ContainerSpec::sh(script));
    let idle = pod.run(ContainerSpec::idle());
    let mortal = pod.run(ContainerSpec::sh(
        "while [ ! -e /dev/shm/end ]; do sleep 1; done; echo ended; exit 9",
    ));
    let waiting = pod.create(ContainerSpec::sh("exit 3"));
    talker.wait_for_log("line 10");
    let before: Vec<_> = [&talker, &idle, &mortal, &waiting].map(Container::status).into();
    // One container ends while nobody is there to see it.
    idle.sh("(sleep 3; touch /dev/shm/end) > /dev/null 2>&1 & true");
    daemon.end_with(Signal::KILL);
    assert!(
        fs::exists(format!("/proc/{vmm}")).expect("/proc can be read"),
        "machines outlive the daemon"
    );
    daemon.start_again();

    assert_eq!(pod.state(), PodSandboxState::SandboxReady);
    assert_eq!(pod.vmm_pid(), vmm);
    let status = pod.try_status().expect("it is there");
    assert_eq!(status.labels.get("kept").map(String::as_str), Some("label"));
    for (container, before) in [&talker, &idle].into_iter().zip(&before) {
        let now = container.status();
        assert_eq!(now.state(), ContainerState::ContainerRunning, "{now:?}");
        assert_eq!(
            (now.created_at, now.started_at),
            (before.created_at, before.started_at)
        );
        assert_eq!(
            (&now.image_ref, &now.log_path),
            (&before.image_ref, &before.log_path)
        );
    }
    let ended = mortal.wait_exited();
    assert_eq!(
        (ended.exit_code, ended.reason.as_str()),
        (9, "Error"),
        "{ended:?}"
    );
    assert_eq!(log::bytes_of(&mortal.log(), "stdout"), b"ended\n");
    assert_eq!(idle.sh("echo alive"), "alive");
    waiting.start();
    assert_eq!(waiting.wait_exited().exit_code, 3);

    // The container's end may be quicker than that of what brings it about.
    let _ = talker.try_exec(&["touch", "/stop"], 0);
    assert_eq!(talker.wait_exited().exit_code, 7);
    let text = String::from_utf8_lossy(&log::bytes_of(&talker.log(), "stdout")).into_owned();
    let count = text.lines().count() - 1;
    let expected: String =
        (0..count).map(|i| format!("line {i}\n")).collect::<String>() + &format!("last {count}\n");
    assert!(text == expected, "no line of the log is lost or doubled:\n{text}");

    let name = pod.spec().config();
    let request = bulkhead_proto::cri::RunPodSandboxRequest {
        config: Some(name),
        runtime_handler: String::new(),
    };
    let taken = daemon
        .cri()
        .runtime(async |c| c.run_pod_sandbox(request).await)
        .expect_err("its name is taken");
    assert_eq!(taken.code(), tonic::Code::AlreadyExists, "{taken:?}");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_daemon_that_comes_back_sees_which_machines_have_died() {
    let daemon = Daemon::private(DaemonOptions::new());
    let pod = daemon.run_pod(PodSpec::new("died-alone"));
    let vmm = pod.vmm_pid();
    let container = pod.run(ContainerSpec::idle());
    daemon.end_with(Signal::KILL);
    kill(vmm);
    daemon.start_again();
    assert_dead_and_removable(&pod, &container, vmm);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_daemon_told_to_end_leaves_its_pods_running() {
    let daemon = Daemon::private(DaemonOptions::new());
    let pod = daemon.run_pod(PodSpec::new("left-running"));
    let container = pod.run(ContainerSpec::idle());
    let vmm = pod.vmm_pid();
    let status = daemon.end_with(Signal::TERM);
    assert_eq!(status.code(), Some(0), "{status}: {}", daemon.log());
    assert!(
        fs::exists(format!("/proc/{vmm}")).expect("/proc can be read"),
        "its machine runs on"
    );
    daemon.start_again();
    assert_eq!(pod.state(), PodSandboxState::SandboxReady);
    assert_eq!(container.sh("echo alive"), "alive");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_machine_that_answers_nothing_holds_up_neither_lists_nor_its_pods_end() {
    let daemon = Daemon::private(DaemonOptions::new().config("timeouts.agent_seconds", 10));
    let pod = daemon.run_pod(PodSpec::new("silent"));
    let container = pod.run(ContainerSpec::idle());
    let vmm = pod.vmm_pid();
    kill_process(Pid::from_raw(vmm).expect("a process id"), Signal::STOP).expect("a process to stop");

    let crictl = daemon.crictl();
    assert_eq!(crictl.ok(["ps", "-q", "--no-trunc"]), container.id());
    assert_eq!(crictl.ok(["pods", "-q", "--no-trunc"]), pod.id());
    assert_eq!(container.status().state(), ContainerState::ContainerRunning);
    crictl.json(["inspect", container.id()]);
    let asked = container
        .try_exec(&["true"], 0)
        .expect_err("the guest does not answer");
    assert!(asked.message().contains("10 s"), "{asked:?}");

    pod.stop();
    assert_eq!(pod.state(), PodSandboxState::SandboxNotready);
    assert_eq!(container.status().state(), ContainerState::ContainerExited);
    assert!(
        !fs::exists(format!("/proc/{vmm}")).expect("/proc can be read"),
        "the machine is gone"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_daemon_killed_while_it_makes_a_pod_leaves_nothing_that_cannot_be_removed() {
    let daemon = Daemon::private(DaemonOptions::new());
    let name = PodSpec::new("half-made");
    let run = || {
        let config = Some(name.config());
        let request = bulkhead_proto::cri::RunPodSandboxRequest {
            config,
            runtime_handler: String::new(),
        };
        daemon.cri().runtime(async |c| c.run_pod_sandbox(request).await)
    };
    let machines = || {
        let processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
        let of_this = daemon
            .root()
            .parent()
            .expect("a directory")
            .to_string_lossy()
            .into_owned();
        processes
            .filter(|process| {
                let path = process.path();
                let files = fs::read_dir(path.join("fd"))
                    .into_iter()
                    .flatten()
                    .filter_map(Result::ok);
                fs::read_link(path.join("exe")).is_ok_and(|exe| exe.ends_with("bulkhead-vmm"))
                    && files
                        .filter_map(|file| fs::read_link(file.path()).ok())
                        .any(|target| target.to_string_lossy().starts_with(&of_this))
            })
            .count()
    };
    std::thread::scope(|scope| {
        let call = scope.spawn(run);
        until("the machine to have been started", || match machines() {
            0 => Err("no machine".to_owned()),
            _ => Ok(()),
        });
        daemon.end_with(Signal::KILL);
        assert!(
            call.join().expect("no panic").is_err(),
            "the call has lost its daemon"
        );
    });
    daemon.start_again();
    // What is listed can be removed; and then there is nothing any more, and the name is free.
    for id in daemon.crictl().ok(["pods", "-q", "--no-trunc"]).lines() {
        assert_eq!(
            daemon
                .crictl()
                .ok(["pods", "-q", "--no-trunc", "--state", "ready"]),
            "",
            "half a pod is not ready"
        );
        daemon.crictl().ok(["rmp", "-f", id]);
    }
    until("the half made machine to be gone", || match machines() {
        0 => Ok(()),
        count => Err(format!("{count} machines")),
    });
    let id = run().expect("the name is free").pod_sandbox_id;
    daemon.crictl().ok(["rmp", "-f", &id]);
    for directory in [daemon.root(), daemon.state()] {
        let left = fs::read_dir(directory.join("pods")).into_iter().flatten().count();
        assert_eq!(left, 0, "pods in {}", directory.display());
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_pod_whose_client_gives_up_is_undone() {
    let daemon = Daemon::private(DaemonOptions::new());
    let spec = PodSpec::new("given-up");
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), spec.json()).expect("a file can be written");
    let file = file.path().to_str().expect("a path in UTF-8");
    let said = daemon.crictl().fails(["runp", "--cancel-timeout", "1s", file]);
    assert!(said.contains("DeadlineExceeded"), "{said}");
    until("the pod to be undone", || {
        let pods = daemon.crictl().ok(["pods", "-q"]);
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    });
    until("its directories to be gone", || {
        let left: usize = [daemon.root(), daemon.state()]
            .map(|directory| fs::read_dir(directory.join("pods")).into_iter().flatten().count())
            .iter()
            .sum();
        if left == 0 {
            Ok(())
        } else {
            Err(format!("{left} directories"))
        }
    });
    let id = daemon.crictl().ok(["runp", file]);
    daemon.crictl().ok(["rmp", "-f", &id]);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_guests_kernel_log_is_kept_to_its_bound() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("kernel-log").with("/linux/security_context/privileged", true));
    let container = pod.run(ContainerSpec::idle().security("privileged", true));
    container.sh(
        "echo on > /proc/sys/kernel/printk_devkmsg; i=0; \
         while [ $i -lt 3000 ]; do echo \"<0>line $i of a guest that talks much and says little\"; i=$((i+1)); done \
         | while read -r line; do echo \"$line\" > /dev/kmsg; done",
    );
    let log = daemon.root().join("pods").join(pod.id()).join("console.log");
    until("the last line in the kernel log", || {
        let text = fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        match text {
            Ok(text) if text.contains("line 2999 of a guest") => Ok(()),
            Ok(text) => Err(text.lines().last().unwrap_or_default().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    });
    let length = fs::metadata(&log).expect("the kernel log").len();
    assert!(length <= 65536, "the log has {length} bytes");
}
