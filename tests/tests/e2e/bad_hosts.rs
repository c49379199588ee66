//! Hosts and configurations that cannot run pods: said at once, and nothing half made is left.

use std::{fs, path::Path, process::Command};

use bulkhead_proto::cri::{RunPodSandboxRequest, StatusRequest};
use bulkhead_tests::{
    ContainerSpec, Daemon, DaemonOptions, Environment, Inventory, PodSpec,
    registry::{Archive, Image, Layer, Registry},
};
use rustix::process::Signal;
use tempfile::TempDir;
use tonic::Status;

fn run_pod(daemon: &Daemon, spec: &PodSpec) -> Result<String, Status> {
    let request = RunPodSandboxRequest {
        config: Some(spec.config()),
        runtime_handler: String::new(),
    };
    daemon
        .cri()
        .runtime(async |c| c.run_pod_sandbox(request).await)
        .map(|answer| answer.pod_sandbox_id)
}

/// Runs a pod that must fail, and sees that nothing of it is left.
#[track_caller]
fn pod_fails(daemon: &Daemon, words: &[&str]) -> String {
    let directories = [daemon.root().to_owned(), daemon.state().to_owned()];
    let of_this_daemon = |inventory: Inventory| -> Vec<String> {
        let name = daemon
            .state()
            .parent()
            .and_then(Path::file_name)
            .expect("a directory of its own");
        let name = name.to_string_lossy().into_owned();
        let things = inventory.added_since(&Inventory::default()).into_iter();
        // The parent of the pods' control groups is made once and stays.
        let parent = format!("control group /sys/fs/cgroup/{name}");
        things
            .filter(|thing| thing.contains(&name) && *thing != parent)
            .collect()
    };
    let before = of_this_daemon(Inventory::take(&directories));
    let status = run_pod(daemon, &PodSpec::new("fails")).expect_err("this pod cannot run");
    for word in words {
        assert!(status.message().contains(word), "{word:?} is not in {status:?}");
    }
    assert_eq!(
        daemon.crictl().ok(["pods", "-q"]),
        "",
        "a pod that failed is not listed"
    );
    let after = of_this_daemon(Inventory::take(&directories));
    let left: Vec<_> = after.iter().filter(|thing| !before.contains(thing)).collect();
    assert!(left.is_empty(), "left of a failed pod: {left:#?}");
    status.message().to_owned()
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_typo_in_the_configuration_is_shown_with_line_and_remedy() {
    let typo = DaemonOptions::new().config("vm.memory_mb", 128);
    let (status, said) = Daemon::refuses_to_start(typo);
    assert!(!status.success());
    for word in ["config.toml", "vm.memory_mb", "memory_mib", "line"] {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    for (key, value, word) in [
        ("vm.vcpus", toml::Value::from(0), "vm.vcpus"),
        ("vm.memory_mib", toml::Value::from("much"), "memory_mib"),
        ("state", toml::Value::from("relative"), "absolute"),
        ("log.level", toml::Value::from("=loud="), "log.level"),
    ] {
        let (status, said) = Daemon::refuses_to_start(DaemonOptions::new().config(key, value));
        assert!(!status.success());
        assert!(
            said.contains(word) && said.contains("config.toml"),
            "{word:?} is not in {said}"
        );
        assert!(!said.contains("panicked"), "{said}");
    }
    let missing = Command::new(Environment::get().bin.join("bulkheadd"))
        .args(["--config", "/no/such/config.toml"])
        .output()
        .expect("bulkheadd starts");
    assert!(!missing.status.success());
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("/no/such/config.toml"),
        "{missing:?}"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_second_daemon_on_the_same_directories_is_refused() {
    let first = Daemon::private(DaemonOptions::new());
    let pid = first.pid().to_string();
    for options in [
        DaemonOptions::new().root(first.root()),
        DaemonOptions::new().config("state", first.state().to_str().expect("a path in UTF-8")),
    ] {
        let (status, said) = Daemon::refuses_to_start(options);
        assert!(!status.success());
        assert!(
            said.contains("another bulkheadd") && said.contains(&pid),
            "{said}"
        );
    }
    assert_eq!(first.ended(), None, "the first one goes on");
    first.crictl().ok(["version"]);
    first.end_with(Signal::TERM);
    first.start_again();
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_kernel_that_is_no_kernel_fails_the_pod_in_words() {
    let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let text = directory.path().join("text");
    fs::write(&text, "this is no kernel\n").expect("a file can be written");
    let path = text.to_str().expect("a path in UTF-8");
    let daemon = Daemon::private(DaemonOptions::new().config("vm.kernel", path));
    pod_fails(&daemon, &[path, "kernel"]);
    drop(daemon);

    // An ELF file, but not one with a PVH entry.
    let daemon = Daemon::private(DaemonOptions::new().config("vm.kernel", "/bin/true"));
    pod_fails(&daemon, &["/bin/true", "kernel"]);
    drop(daemon);

    let daemon = Daemon::private(DaemonOptions::new().config("vm.kernel", "/no/such/vmlinux"));
    pod_fails(&daemon, &["/no/such/vmlinux"]);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_guest_without_agent_fails_the_pod_in_words() {
    let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let empty = directory.path().join("initramfs");
    fs::write(&empty, b"").expect("a file can be written");
    let path = empty.to_str().expect("a path in UTF-8");
    let daemon = Daemon::private(DaemonOptions::new().config("vm.initramfs", path));
    // The guest's kernel has nothing to run, and panics.
    let message = pod_fails(&daemon, &[]);
    assert!(
        message.contains("panic") || message.contains("initramfs") || message.contains("agent"),
        "{message}"
    );
    drop(daemon);
    let daemon = Daemon::private(DaemonOptions::new().config("vm.vmm", "/no/such/vmm"));
    pod_fails(&daemon, &["/no/such/vmm"]);
}

/// A way to start a program without /dev/kvm.
const WITHOUT_KVM: [&str; 5] = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount -t tmpfs -o mode=755 none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9 && \
     mkdir /dev/net && mknod /dev/net/tun c 10 200 && exec \"$0\" \"$@\"",
];

#[test]
#[ignore = "runs in the node: hack/test"]
fn without_kvm_the_daemon_says_so_and_no_pod_runs() {
    let daemon = Daemon::private(DaemonOptions::new().through(&WITHOUT_KVM));
    let request = StatusRequest { verbose: false };
    let answer = daemon
        .cri()
        .runtime(async |c| c.status(request).await)
        .expect("Status is answered");
    let conditions = answer.status.expect("a status").conditions;
    let ready = conditions
        .iter()
        .find(|condition| condition.r#type == "RuntimeReady")
        .expect("RuntimeReady");
    assert!(!ready.status, "{ready:?}");
    assert!(ready.message.contains("/dev/kvm"), "{ready:?}");
    pod_fails(&daemon, &["/dev/kvm"]);
}

/// A tmpfs of a bounded size.
struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    fn new(size: &str) -> Self {
        let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
        let options = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "none"])
            .arg(directory.path())
            .status();
        assert!(mounted.expect("mount starts").success());
        Self { directory }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.directory.path())
            .status();
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_full_disk_fails_the_pull_and_leaves_room_again() {
    let disk = SmallDisk::new("24M");
    let daemon = Daemon::private(DaemonOptions::new().root(&disk.directory.path().join("root")));
    let registry = Registry::start();
    let layer = |seed: u32, length: u32| {
        let noise: Vec<u8> = (0..length / 4)
            .flat_map(|i| (i ^ seed).wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        Layer::plain(&Archive::new().file("noise", 0o644, &noise).finish())
    };
    let free = || {
        let stat = rustix::fs::statvfs(disk.directory.path()).expect("a file system");
        stat.f_bavail * stat.f_frsize
    };
    let before = free();
    let large = registry.push("large:latest", &Image::new(vec![layer(1, 40 << 20)]));
    let status = daemon.try_pull(&large).expect_err("there is no room for it");
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
    for word in [large.as_str(), "No space left"] {
        assert!(status.message().contains(word), "{word:?} is not in {status:?}");
    }
    assert_eq!(daemon.images(), []);
    assert!(
        before - free() < 1 << 20,
        "{} bytes of {before} are free again",
        free()
    );

    let small = registry.push("small:latest", &Image::new(vec![layer(2, 1 << 20)]));
    daemon.try_pull(&small).expect("there is room for a small one");
    let id = daemon.image(&small).expect("it is there").id;
    // The daemon still knows it after a restart: what it wrote in want of room was whole.
    daemon.end_with(Signal::KILL);
    daemon.start_again();
    assert_eq!(daemon.image(&small).map(|image| image.id), Some(id));
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_full_scratch_disk_is_the_containers_problem_alone() {
    let daemon = Daemon::private(DaemonOptions::new().config("vm.scratch_mib", 32));
    let pod = daemon.run_pod(PodSpec::new("scratch"));
    let container = pod.run(ContainerSpec::idle());
    let output = container.exec(&["dd", "if=/dev/zero", "of=/large", "bs=1M", "count=64"]);
    assert_ne!(output.code, 0);
    assert!(
        output.error_text().contains("No space left on device"),
        "{}",
        output.error_text()
    );
    container.sh("rm /large && echo x > /small");
    assert_eq!(container.sh("cat /small"), "x");
}
