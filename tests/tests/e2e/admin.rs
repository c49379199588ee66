//! The `bulkhead` command: can this host run pods, which run, and what do they do?
#![allow(
    clippy::indexing_slicing,
    reason = "a test that goes wrong here has failed and says where"
)]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
};

use bulkhead_tests::{
    Container, ContainerSpec, DEADLINE, Daemon, DaemonOptions, Environment, Pod, PodSpec, until,
};

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

/// What of a tenant's, and of the node's own, is in no archive.
const SECRETS: [&str; 5] = [
    "secret-of-a-variable",
    "secret-of-an-annotation",
    "secret-of-a-command",
    "secret-that-is-printed",
    "secret-of-a-registry",
];

#[test]
#[ignore = "runs in the node: hack/test"]
fn top_events_logs_and_debug_tell_of_a_pod() {
    let directory = tempfile::tempdir().expect("a directory");
    let credentials = directory.path().join("config.json");
    let auths = r#"{"auths":{"registry.invalid":{"username":"u","password":"secret-of-a-registry"}}}"#;
    fs::write(&credentials, auths).expect("the registries' credentials");
    fs::set_permissions(&credentials, fs::Permissions::from_mode(0o600)).expect("they are nobody else's");
    let options = DaemonOptions::new().config("images.docker_config", credentials.display().to_string());
    let daemon = Daemon::private(options);
    let pod = daemon.run_pod(PodSpec::new("told").with("/annotations/of", "secret-of-an-annotation"));
    events_are_told_as_they_happen(&daemon, &pod);

    let busy = ContainerSpec::sh("echo secret-that-is-printed; : secret-of-a-command; while :; do :; done")
        .with("/metadata/name", "busy")
        .with(
            "/envs",
            serde_json::json!([{ "key": "V", "value": "secret-of-a-variable" }]),
        );
    let busy = pod.run(busy);
    busy.wait_for_log("secret-that-is-printed");
    top_shows_the_pod_with_its_machine_and_its_containers(&daemon, &pod, &busy);
    logs_has_the_guests_kernel(&daemon, &pod, &busy);
    debug_writes_an_archive_without_what_is_the_tenants(&daemon, &pod, &busy);
}

fn events_are_told_as_they_happen(daemon: &Daemon, pod: &Pod<'_>) {
    let mut events = Command::new(Environment::get().bin.join("bulkhead"))
        .arg("--config")
        .arg(daemon.config_file())
        .arg("events")
        .stdout(Stdio::piped())
        .spawn()
        .expect("bulkhead starts");
    let output = BufReader::new(events.stdout.take().expect("its output"));
    let (line, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        for told in output.lines() {
            // Nobody listens any more when the test has seen what it waited for.
            let _ = line.send(told.expect("a line of events"));
        }
    });
    // That the daemon has its call shows when it tells of something.
    until("a first event", || {
        pod.create(ContainerSpec::idle()).remove();
        lines.try_recv().map_err(|error| error.to_string())
    });
    let container = pod.run(ContainerSpec::idle().with("/metadata/name", "short"));
    // As much of an id as the command prints.
    let short = &container.id()[..13];
    let next = || loop {
        let told = lines.recv_timeout(DEADLINE).expect("an event in time");
        if told.contains(short) {
            break told;
        }
    };
    let name = format!("/{}/short", pod.spec().name());
    // While it runs, not only once all is over.
    for what in ["created", "started"] {
        let told = next();
        assert!(
            told.contains(&format!("  {what}  {short}  ")) && told.ends_with(&name),
            "{told}"
        );
    }
    container.stop(0);
    let told = next();
    assert!(
        told.contains(&format!("  stopped  {short}  ")) && told.ends_with(&format!("{name}  Error (137)")),
        "{told}"
    );
    container.remove();
    let told = next();
    assert!(told.contains(&format!("  deleted  {short}  ")), "{told}");
    events.kill().expect("events ends");
    events.wait().expect("events ends");
    reader.join().expect("what reads its output");
}

fn top_shows_the_pod_with_its_machine_and_its_containers(
    daemon: &Daemon,
    pod: &Pod<'_>,
    busy: &Container<'_>,
) {
    let output = bulkhead(daemon, &["top", "--once"]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let row = |id: &str| -> Vec<String> {
        let row = said.lines().find(|line| line.contains(&id[..12]));
        let row = row.unwrap_or_else(|| panic!("no {id} in {said}"));
        row.split_whitespace().map(str::to_owned).collect()
    };
    let number = |word: &str| -> f64 { word.parse().unwrap_or_else(|_| panic!("{word:?} in {said}")) };
    let (machine, inside) = (row(pod.id()), row(busy.id()));
    assert!(machine[0].ends_with(&format!("/{}", pod.spec().name())), "{said}");
    assert_eq!(inside[0], "busy", "{said}");
    // Of a processor, in a second of somebody else's machine; the pod's is the VMM's.
    assert!(number(&machine[2]) > 5.0 && number(&inside[2]) > 5.0, "{said}");
    // What the machine costs holds what is used in it, and the guest and the VMM besides.
    assert!(number(&inside[3]) > 0.0, "{said}");
    assert!(number(&machine[3]) > number(&inside[3]) + 8.0, "{said}");
}

fn logs_has_the_guests_kernel(daemon: &Daemon, pod: &Pod<'_>, busy: &Container<'_>) {
    // Something that a quiet kernel tells of.
    let eater = ContainerSpec::sh("exec dd if=/dev/zero of=/dev/null bs=40M count=1")
        .with("/linux/resources/memory_limit_in_bytes", 16 << 20);
    assert_eq!(pod.run(eater).wait_exited().reason, "OOMKilled");
    let by_pod = bulkhead(daemon, &["logs", "--guest", &pod.id()[..12]]);
    let said = text(&by_pod);
    assert!(by_pod.status.success(), "{said}");
    assert!(said.contains("Memory cgroup out of memory"), "{said}");
    assert!(!said.contains("secret-that-is-printed"), "{said}");
    let by_container = bulkhead(daemon, &["logs", "--guest", &busy.id()[..12]]);
    assert_eq!(text(&by_container), said);
    let unknown = bulkhead(daemon, &["logs", "--guest", "zz"]);
    assert!(!unknown.status.success());
    assert!(
        text(&unknown).contains("there is no pod and no container zz"),
        "{}",
        text(&unknown)
    );
}

fn debug_writes_an_archive_without_what_is_the_tenants(daemon: &Daemon, pod: &Pod<'_>, busy: &Container<'_>) {
    let directory = tempfile::tempdir().expect("a directory");
    let archive = directory.path().join("debug.tar.gz");
    let archive = archive.to_str().expect("a path");
    let output = bulkhead(daemon, &["debug", "--output", archive]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("look at it before you send it"),
        "{}",
        text(&output)
    );
    let unpacked = Command::new("tar")
        .args(["--extract", "--gzip", "--file", archive, "--directory"])
        .arg(directory.path())
        .status()
        .expect("tar starts");
    assert!(unpacked.success());
    let (pod_id, container) = (pod.id(), busy.id());
    let members: BTreeMap<String, String> = [
        "version.txt".to_owned(),
        "check.txt".to_owned(),
        "config.toml".to_owned(),
        "host/proc/cpuinfo".to_owned(),
        "host/proc/meminfo".to_owned(),
        "host/dmesg.txt".to_owned(),
        "journal.txt".to_owned(),
        "status.txt".to_owned(),
        format!("pods/{pod_id}/status.txt"),
        format!("pods/{pod_id}/console.txt"),
        format!("pods/{pod_id}/vmm.txt"),
        format!("containers/{container}.txt"),
    ]
    .into_iter()
    .map(|name| {
        let path = directory.path().join("bulkhead-debug").join(&name);
        let bytes = fs::read(path).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, String::from_utf8_lossy(&bytes).into_owned())
    })
    .collect();
    let member = |name: &str| &members[name];
    assert!(member("check.txt").contains("KVM"), "{}", member("check.txt"));
    assert!(
        member("config.toml").contains(&daemon.root().display().to_string()),
        "{}",
        member("config.toml")
    );
    assert!(
        member("status.txt").contains("RuntimeReady"),
        "{}",
        member("status.txt")
    );
    let status = member(&format!("pods/{pod_id}/status.txt"));
    assert!(
        status.contains(pod.spec().name()) && status.contains("SandboxReady"),
        "{status}"
    );
    // That an annotation is there is told, and not what it says.
    assert!(status.contains("(23 bytes)"), "{status}");
    let status = member(&format!("containers/{container}.txt"));
    assert!(
        status.contains("busy") && status.contains("ContainerRunning"),
        "{status}"
    );
    // Also of the members that are not named here.
    let found = Command::new("grep")
        .args(["--recursive", "--text", "--only-matching", "--fixed-strings"])
        .args(SECRETS.iter().flat_map(|secret| ["--regexp", secret]))
        .arg(directory.path().join("bulkhead-debug"))
        .output()
        .expect("grep starts");
    assert_eq!(found.status.code(), Some(1), "{}", text(&found));
}
