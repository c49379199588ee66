//! The subcommands of `crictl` that no other test looks at, each with what it prints.

use std::{
    fs,
    process::{Command, Stdio},
};

use bulkhead_tests::{ContainerSpec, Daemon, DaemonOptions, Environment, PodSpec, until};
use serde_json::Value;

fn text<'v>(json: &'v Value, pointer: &str) -> &'v str {
    json.pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no text at {pointer} in {json:#}"))
}

/// The number at `pointer`, which JSON of protocol buffers has as text when it has 64 bits.
fn number(json: &Value, pointer: &str) -> i64 {
    let value = json.pointer(pointer);
    value
        .and_then(|value| value.as_i64().or_else(|| value.as_str()?.parse().ok()))
        .unwrap_or_else(|| panic!("no number at {pointer} in {json:#}"))
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn the_runtime_tells_of_itself() {
    let daemon = Daemon::private(DaemonOptions::new().config("handlers.large.memory_mib", 512));
    let crictl = daemon.crictl();

    let version = crictl.ok(["version"]);
    let said = |key: &str| {
        let line = version.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("no {key} in {version}"))
            .trim()
            .to_owned()
    };
    assert_eq!(said("Version:"), "0.1.0");
    assert_eq!(said("RuntimeName:"), "bulkhead");
    assert_eq!(said("RuntimeApiVersion:"), "v1");
    assert!(!said("RuntimeVersion:").is_empty());

    let info = crictl.json(["info"]);
    let conditions = info["status"]["conditions"].as_array().expect("conditions");
    for kind in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|condition| condition["type"] == kind);
        assert_eq!(
            condition.map(|condition| &condition["status"]),
            Some(&true.into()),
            "{info:#}"
        );
    }
    let handlers = info["runtimeHandlers"].as_array().expect("handlers");
    let names: Vec<&str> = handlers
        .iter()
        .map(|handler| handler["name"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(names, ["", "large"], "{info:#}");
    assert_eq!(info["features"]["supplemental_groups_policy"], true, "{info:#}");
    assert!(info["config"].is_object(), "{info:#}");

    assert_eq!(crictl.ok(["runtime-config"]), "cgroup driver:   CGROUPFS");
    let usage = crictl.json(["imagefsinfo"]);
    let filesystem = "/status/imageFilesystems/0";
    assert!(number(&usage, &format!("{filesystem}/timestamp")) > 0);
    let mountpoint = text(&usage, &format!("{filesystem}/fsId/mountpoint"));
    assert!(fs::exists(mountpoint).expect("a path"), "{mountpoint}");
    let before = number(&usage, &format!("{filesystem}/usedBytes/value"));

    crictl.ok(["update-runtime-config", "--pod-cidr", "10.99.0.0/16"]);
    let refused = crictl.fails(["update-runtime-config", "--pod-cidr", "10.99.0.0/99"]);
    assert!(
        refused.contains("InvalidArgument") && refused.contains("10.99.0.0/99"),
        "{refused}"
    );

    let image = Environment::get().image("busybox:latest");
    let pulled = crictl.ok(["pull", &image]);
    let id = pulled.rsplit(' ').next().expect("an id").to_owned();
    assert!(id.starts_with("sha256:"), "{pulled}");
    let table = crictl.ok(["images"]);
    let row = table
        .lines()
        .find(|line| line.contains("busybox"))
        .expect("a row");
    let short_id = id.get(7..20).expect("an id's beginning");
    assert!(row.contains("latest") && row.contains(short_id), "{table}");
    let inspected = crictl.json(["inspecti", short_id]);
    assert_eq!(text(&inspected, "/status/id"), id);
    assert!(inspected["info"]["imageSpec"].is_object(), "{inspected:#}");
    let usage = crictl.json(["imagefsinfo"]);
    assert!(number(&usage, &format!("{filesystem}/usedBytes/value")) > before + 100_000);
    let removed = crictl.ok(["rmi", &image]);
    assert!(
        removed.contains(&image) || removed.contains("Deleted"),
        "{removed}"
    );
    assert!(!crictl.ok(["images"]).contains("busybox"));
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn crictls_own_configuration_leads_to_the_daemon() {
    let daemon = Daemon::private(DaemonOptions::new());
    let directory = tempfile::tempdir().expect("a directory for a configuration");
    let file = directory.path().join("crictl.yaml");
    fs::write(&file, "").expect("an empty configuration");
    let crictl = |arguments: &[&str]| {
        let mut command = Command::new("crictl");
        let output = command.arg("--config").arg(&file).args(arguments).output();
        let output = output.expect("crictl starts");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let endpoint = format!("runtime-endpoint={}", daemon.endpoint());
    crictl(&["config", "--set", &endpoint, "--set", "timeout=600"]);
    assert_eq!(
        crictl(&["config", "--get", "runtime-endpoint"]),
        daemon.endpoint()
    );
    assert!(crictl(&["config", "--list"]).contains(daemon.endpoint()));
    assert!(crictl(&["version"]).contains("bulkhead"));
    assert!(crictl(&["pods"]).contains("POD ID"));
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn run_makes_a_pod_and_a_container_in_one() {
    let daemon = Daemon::shared();
    let crictl = daemon.crictl();
    let directory = tempfile::tempdir().expect("a directory for the configurations");
    let logs = directory.path().to_str().expect("a path in UTF-8");
    let path = |name: &str| {
        directory
            .path()
            .join(name)
            .to_str()
            .expect("a path in UTF-8")
            .to_owned()
    };
    let (pod_file, container_file) = (path("pod.json"), path("container.json"));
    let pod = PodSpec::new("run").with("/log_directory", logs);
    fs::write(&pod_file, pod.json()).expect("the pod's configuration");
    let container = ContainerSpec::sh("echo it runs; sleep 3600").with("/metadata/name", "ran");
    fs::write(&container_file, container.json()).expect("the container's configuration");

    let id = crictl.ok(["run", "--with-pull", &container_file, &pod_file]);
    let listed = crictl.json(["ps", "--id", &id, "-o", "json"]);
    assert_eq!(text(&listed, "/containers/0/state"), "CONTAINER_RUNNING");
    assert_eq!(text(&listed, "/containers/0/metadata/name"), "ran");
    let table = crictl.ok(["ps", "--name", "ran"]);
    assert!(
        table.contains("Running") && table.contains(id.get(..13).expect("an id")),
        "{table}"
    );
    let pod_id = text(&listed, "/containers/0/podSandboxId").to_owned();
    until("its first line", || {
        let said = crictl.ok(["logs", &id]);
        (said == "it runs").then_some(()).ok_or(said)
    });
    let table = crictl.ok(["pods", "--name", pod.name()]);
    assert!(table.contains("Ready") && table.contains(pod.name()), "{table}");
    assert_eq!(crictl.ok(["stop", "--timeout", "0", &id]), id);
    assert_eq!(crictl.ok(["rm", &id]), id);
    let stopped = crictl.ok(["stopp", &pod_id]);
    assert!(stopped.starts_with("Stopped sandbox"), "{stopped}");
    let removed = crictl.ok(["rmp", &pod_id]);
    assert!(removed.starts_with("Removed sandbox"), "{removed}");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn logs_are_followed_to_the_end_and_limits_are_changed() {
    let daemon = Daemon::shared();
    let crictl = daemon.crictl();
    let pod = daemon.run_pod(PodSpec::new("logs-and-limits"));
    let container = pod.create(
        ContainerSpec::sh(
            "echo one; echo two >&2; while [ ! -e /go ]; do sleep 0.1; done; echo three; exit 4",
        )
        .with("/linux/resources/memory_limit_in_bytes", 64 << 20),
    );
    let id = container.id();
    container.start();
    container.wait_for_log("two");

    assert_eq!(crictl.ok(["logs", "--stream", "stdout", id]), "one");
    assert_eq!(crictl.run(["logs", "--tail", "1", id]).stderr, "two\n");
    let stamped = crictl.ok(["logs", "--timestamps", "--stream", "stdout", id]);
    assert!(stamped.ends_with(" one") && stamped.contains('T'), "{stamped}");
    assert_eq!(crictl.ok(["logs", "--since", "0s", id]), "");

    let limits = || crictl.json(["inspect", id]);
    assert_eq!(
        number(&limits(), "/status/resources/linux/memoryLimitInBytes"),
        64 << 20
    );
    let updated = crictl.ok([
        "update",
        "--memory",
        "50331648",
        "--cpu-quota",
        "20000",
        "--cpu-period",
        "100000",
        "--cpu-share",
        "512",
        id,
    ]);
    assert_eq!(updated, id);
    let after = limits();
    let linux = |field: &str| number(&after, &format!("/status/resources/linux/{field}"));
    assert_eq!(linux("memoryLimitInBytes"), 48 << 20);
    assert_eq!(
        (linux("cpuQuota"), linux("cpuPeriod"), linux("cpuShares")),
        (20_000, 100_000, 512)
    );
    assert_eq!(
        container.sh("cd /sys/fs/cgroup; cat memory.max memory.swap.max cpu.max cpu.weight"),
        "50331648\n0\n20000 100000\n59",
        "as the guest's kernel has it"
    );
    for (arguments, words) in [
        (
            ["--memory", "1099511627776"],
            ["Unimplemented", "linux.memory_limit_in_bytes"],
        ),
        (
            ["--memory", "4096"],
            ["FailedPrecondition", "cannot be taken back"],
        ),
        (["--cpuset-cpus", "0"], ["Unimplemented", "linux.cpuset_cpus"]),
        (
            ["--oom-score-adj", "7"],
            ["FailedPrecondition", "linux.oom_score_adj"],
        ),
    ] {
        let refused = crictl.fails(["update", arguments[0], arguments[1], id]);
        for word in words {
            assert!(refused.contains(word), "{word} is not in {refused}");
        }
    }
    assert_eq!(
        container.sh("cat /sys/fs/cgroup/memory.max"),
        "50331648",
        "nothing was changed"
    );

    let refused = crictl.fails(["checkpoint", "--export", "/tmp/checkpoint.tar", id]);
    assert!(
        refused.contains("Unimplemented") && refused.contains("CheckpointContainer"),
        "{refused}"
    );

    let follower = Command::new("crictl")
        .args(["logs", "--follow", id])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("crictl starts");
    container.sh("touch /go");
    let followed = follower
        .wait_with_output()
        .expect("crictl ends with the container");
    assert!(followed.status.success(), "{followed:?}");
    assert_eq!(String::from_utf8_lossy(&followed.stdout), "one\nthree\n");
    assert!(String::from_utf8_lossy(&followed.stderr).contains("two\n"));
    let exited = crictl.json(["inspect", id]);
    assert_eq!(text(&exited, "/status/state"), "CONTAINER_EXITED");
    assert_eq!(number(&exited, "/status/exitCode"), 4);
    assert_eq!(text(&exited, "/status/reason"), "Error");
    let refused = crictl.fails(["update", "--memory", "50331648", id]);
    assert!(
        refused.contains("FailedPrecondition") && refused.contains("exited"),
        "{refused}"
    );
}
