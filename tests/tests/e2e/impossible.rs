//! What a machine or a container cannot have: each field is refused by name, before anything is made of it.

use std::fs;

use bulkhead_proto::cri::RunPodSandboxRequest;
use bulkhead_tests::{ContainerSpec, Daemon, Environment, Pod, PodSpec, assert_refused, create_arguments};
use serde_json::{Value, json};
use tonic::Code;

use super::refusals::{UNKNOWN, listed};

fn refused_pod(daemon: &Daemon, spec: &PodSpec, words: &[&str]) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), spec.json()).expect("a file can be written");
    let said = daemon
        .crictl()
        .fails(["runp", file.path().to_str().expect("a path in UTF-8")]);
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    assert_eq!(listed(daemon, spec.name()), 0);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn what_a_machine_cannot_have_is_refused_for_its_pod() {
    let daemon = Daemon::shared();
    let options =
        |options: Value| PodSpec::new("cannot").with("/linux/security_context/namespace_options", options);
    for (spec, words) in [
        (options(json!({ "network": 2 })), ["network", "host"]),
        (options(json!({ "ipc": 2 })), ["ipc", "host"]),
        (
            options(json!({
                "pid": 1,
                "userns_options": {
                    "mode": 0,
                    "uids": [{ "host_id": 100_000, "container_id": 0, "length": 65536 }],
                    "gids": [{ "host_id": 100_000, "container_id": 0, "length": 65536 }],
                },
            })),
            ["userns", "user namespace"],
        ),
        (
            PodSpec::new("cannot").with("/log_directory", "relative/path"),
            ["log_directory", "absolute"],
        ),
        (
            PodSpec::new("cannot").with("/hostname", "h".repeat(65)),
            ["hostname", "64"],
        ),
        (
            PodSpec::new("cannot").with("/linux/sysctls", json!({ "../../etc/passwd": "x" })),
            ["sysctl", "etc/passwd"],
        ),
    ] {
        refused_pod(&daemon, &spec, &words);
    }
    let handler = PodSpec::new("handler");
    let request = RunPodSandboxRequest {
        config: Some(handler.config()),
        runtime_handler: "no-such-handler".into(),
    };
    let result = daemon.cri().runtime(async |c| c.run_pod_sandbox(request).await);
    let message = assert_refused(result, Code::InvalidArgument, &["no-such-handler", "handler"]);
    assert_eq!(listed(&daemon, handler.name()), 0, "{message}");
}

/// Creates a container that must be refused, and sees that nothing of it is left.
#[track_caller]
fn refused_container(pod: &Pod<'_>, spec: &ContainerSpec, words: &[&str]) {
    let crictl = pod.daemon().crictl();
    let said = crictl.fails(create_arguments(pod, spec));
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    assert_eq!(
        crictl.ok(["ps", "-a", "-q", "--pod", pod.id()]),
        "",
        "nothing is left of {}",
        spec.json()
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn what_a_container_cannot_have_is_refused_by_field() {
    let daemon = Daemon::shared();
    daemon.pull_once(&Environment::get().image("busybox:latest"));
    let pod = daemon.run_pod(PodSpec::new("cannot"));
    let idle = ContainerSpec::idle;
    let options = |options: Value| idle().with("/linux/security_context/namespace_options", options);
    for (spec, words) in [
        (
            idle().with(
                "/mounts",
                json!([{ "container_path": "/m", "host_path": "/tmp" }]),
            ),
            ["mounts", "/m"],
        ),
        (
            idle().with(
                "/devices",
                json!([{ "container_path": "/dev/x", "host_path": "/dev/null", "permissions": "r" }]),
            ),
            ["devices", "/dev/null"],
        ),
        (
            idle().with("/CDI_devices", json!([{ "name": "vendor.example/device=one" }])),
            ["CDI", "vendor.example/device=one"],
        ),
        (
            idle().security(
                "seccomp",
                json!({ "profile_type": 2, "localhost_ref": "/no/profile.json" }),
            ),
            ["seccomp", "profile"],
        ),
        (
            idle().security("seccomp", json!({ "profile_type": 0 })),
            ["seccomp", "RuntimeDefault"],
        ),
        (
            idle().security(
                "apparmor",
                json!({ "profile_type": 2, "localhost_ref": "a-profile" }),
            ),
            ["apparmor", "a-profile"],
        ),
        (options(json!({ "network": 2, "pid": 1 })), ["network", "host"]),
        (
            options(json!({ "pid": 3, "target_id": UNKNOWN })),
            ["target", UNKNOWN],
        ),
        (options(json!({ "pid": 3 })), ["target", "pid"]),
        (
            idle().with("/working_dir", "relative"),
            ["working_dir", "relative"],
        ),
        (
            idle().with("/log_path", "/absolute.log"),
            ["log_path", "/absolute.log"],
        ),
        (
            idle().with("/log_path", "../outside.log"),
            ["log_path", "../outside.log"],
        ),
        (idle().with("/stop_signal", 9999), ["stop_signal", "9999"]),
        (
            idle().with("/envs", json!([{ "key": "", "value": "x" }])),
            ["envs", "variable"],
        ),
        (
            idle().with("/envs", json!([{ "key": "A=B", "value": "x" }])),
            ["envs", "A=B"],
        ),
        (
            idle().security("masked_paths", json!(["relative"])),
            ["masked_paths", "relative"],
        ),
        (
            idle().with("/linux/resources/memory_limit_in_bytes", -5),
            ["memory_limit_in_bytes", "-5"],
        ),
        (
            idle().with("/linux/resources/unified", json!({ "../../x": "1" })),
            ["unified", "../../x"],
        ),
    ] {
        refused_container(&pod, &spec, &words);
    }
    let good = pod.run(ContainerSpec::sh("exit 0"));
    assert_eq!(good.wait_exited().exit_code, 0, "the pod is as good as new");
}
