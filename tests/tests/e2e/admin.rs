//! The `bulkhead` command: can this host run pods, and which run?

use std::process::{Command, Output};

use bulkhead_tests::{ContainerSpec, Daemon, DaemonOptions, Environment, PodSpec};

fn bulkhead(daemon: &Daemon, arguments: &[&str]) -> Output {
    Command::new(Environment::get().bin.join("bulkhead"))
        .arg("--config")
        .arg(daemon.config_file())
        .args(arguments)
        .output()
        .expect("bulkhead starts")
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn check_finds_a_host_that_can_run_pods() {
    let daemon = Daemon::private(DaemonOptions::new());
    let output = bulkhead(&daemon, &["check"]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for word in ["kvm", "cgroup", "vmlinux", "initramfs"] {
        assert!(said.to_lowercase().contains(word), "{word:?} is not in {said}");
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn check_names_what_is_missing() {
    let daemon = Daemon::private(DaemonOptions::new().config("vm.kernel", "/no/such/vmlinux"));
    let output = bulkhead(&daemon, &["check"]);
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("/no/such/vmlinux"), "{said}");

    let without_kvm = Command::new("unshare")
        .args([
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs none /dev && exec \"$0\" \"$@\"",
        ])
        .arg(Environment::get().bin.join("bulkhead"))
        .arg("--config")
        .arg(&Environment::get().config)
        .arg("check")
        .output()
        .expect("unshare starts");
    let said = text(&without_kvm);
    assert!(!without_kvm.status.success(), "{said}");
    assert!(said.contains("/dev/kvm"), "{said}");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn pods_shows_each_pods_machine() {
    let daemon = Daemon::private(DaemonOptions::new());
    let pod = daemon.run_pod(PodSpec::new("shown"));
    let container = pod.run(ContainerSpec::idle());
    container.sh("true");
    let output = bulkhead(&daemon, &["pods"]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let line = said
        .lines()
        .find(|line| line.contains(&pod.id()[..12]))
        .unwrap_or_else(|| panic!("no pod in {said}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    assert!(
        words.contains(&pod.vmm_pid().to_string().as_str()),
        "no process {} in {line}",
        pod.vmm_pid()
    );
    assert!(line.contains(pod.spec().name()), "{line}");
    pod.remove();
    let said = text(&bulkhead(&daemon, &["pods"]));
    assert!(!said.contains(&pod.id()[..12]), "{said}");
}
