//! The life of pods and containers, by `crictl` alone.

use std::fs;

use bulkhead_tests::{ContainerSpec, Daemon, Environment, PodSpec, log};
use serde_json::Value;

fn text<'v>(json: &'v Value, pointer: &str) -> &'v str {
    json.pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no text at {pointer} in {json:#}"))
}

/// A time in nanoseconds, which `crictl` prints as a string of digits or as RFC 3339.
fn is_set(json: &Value, pointer: &str) -> bool {
    !matches!(text(json, pointer), "" | "0" | "1970-01-01T00:00:00Z")
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn crictl_runs_a_container_from_pull_to_removal() {
    let daemon = Daemon::shared();
    let crictl = daemon.crictl();
    let image = Environment::get().image("busybox:latest");

    crictl.ok(["pull", &image]);
    let images = crictl.json(["images", "-o", "json"]);
    let listed = images["images"].as_array().expect("a list of images");
    let found: Vec<&Value> = listed
        .iter()
        .filter(|entry| {
            entry["repoTags"]
                .as_array()
                .is_some_and(|tags| tags.contains(&image.as_str().into()))
        })
        .collect();
    assert_eq!(found.len(), 1, "{images:#}");
    let image_id = text(found[0], "/id").to_owned();
    assert!(image_id.starts_with("sha256:"), "{image_id}");
    let inspected = crictl.json(["inspecti", &image]);
    assert_eq!(text(&inspected, "/status/id"), image_id);
    assert!(inspected["info"].is_object(), "{inspected:#}");

    let pod = daemon.run_pod(PodSpec::new("life").with("/labels", serde_json::json!({ "tier": "test" })));
    let pods = crictl.json(["pods", "--id", pod.id(), "-o", "json"]);
    assert_eq!(pods["items"].as_array().map(Vec::len), Some(1), "{pods:#}");
    assert_eq!(text(&pods, "/items/0/state"), "SANDBOX_READY");
    let inspected = crictl.json(["inspectp", pod.id()]);
    assert_eq!(text(&inspected, "/status/state"), "SANDBOX_READY");
    assert_eq!(text(&inspected, "/status/metadata/name"), pod.spec().name());
    assert_eq!(text(&inspected, "/status/labels/tier"), "test");
    assert!(is_set(&inspected, "/status/createdAt"), "{inspected:#}");
    let vmm = pod.vmm_pid();
    let program = fs::read_link(format!("/proc/{vmm}/exe")).expect("the pod has a process on the host");
    assert_eq!(program.file_name().expect("a program"), "bulkhead-vmm");

    let container = pod.create(ContainerSpec::sh(
        "echo hello from the guest; exec top -b -d 3600 > /dev/null",
    ));
    let ps = |arguments: &[&str]| {
        let words = ["ps", "--pod", pod.id(), "-o", "json"]
            .into_iter()
            .chain(arguments.iter().copied());
        let listed = crictl.json(words);
        listed["containers"].as_array().cloned().unwrap_or_default()
    };
    let inspect = || crictl.json(["inspect", container.id()]);
    assert_eq!(text(&inspect(), "/status/state"), "CONTAINER_CREATED");
    assert!(ps(&[]).is_empty(), "ps without -a lists running containers only");
    assert_eq!(ps(&["-a"]).len(), 1);

    container.start();
    let running = inspect();
    assert_eq!(text(&running, "/status/state"), "CONTAINER_RUNNING");
    assert_eq!(text(&running, "/status/image/image"), image);
    assert!(
        text(&running, "/status/imageRef").contains("sha256:"),
        "{running:#}"
    );
    assert!(is_set(&running, "/status/startedAt"), "{running:#}");
    assert!(text(&running, "/status/logPath").starts_with('/'), "{running:#}");
    assert_eq!(text(&ps(&[])[0], "/id"), container.id());
    container.wait_for_log("hello from the guest");
    assert_eq!(crictl.ok(["logs", container.id()]), "hello from the guest");
    assert_eq!(
        crictl.ok(["exec", "-s", container.id(), "echo", "from", "exec"]),
        "from exec"
    );
    let failed = crictl.fails(["exec", "-s", container.id(), "sh", "-c", "exit 7"]);
    assert!(failed.contains("exited with 7"), "{failed}");

    container.stop(60);
    let exited = inspect();
    assert_eq!(text(&exited, "/status/state"), "CONTAINER_EXITED");
    assert!(is_set(&exited, "/status/finishedAt"), "{exited:#}");
    assert!(ps(&[]).is_empty());
    assert_eq!(ps(&["-a"]).len(), 1);
    assert_eq!(
        crictl.ok(["logs", container.id()]),
        "hello from the guest",
        "a log outlives its container's process"
    );

    let id = container.id().to_owned();
    container.remove();
    assert!(ps(&["-a"]).is_empty());
    assert!(crictl.fails(["inspect", &id]).contains("NotFound"));

    pod.stop();
    let stopped = crictl.json(["inspectp", pod.id()]);
    assert_eq!(text(&stopped, "/status/state"), "SANDBOX_NOTREADY");
    assert!(
        !fs::exists(format!("/proc/{vmm}")).expect("/proc can be read"),
        "the machine is gone when stopp returns"
    );
    let id = pod.id().to_owned();
    pod.remove();
    assert!(crictl.fails(["inspectp", &id]).contains("NotFound"));
    let pods = crictl.json(["pods", "--id", &id, "-o", "json"]);
    assert_eq!(pods["items"].as_array().map(Vec::len), Some(0), "{pods:#}");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_pod_has_another_kernel_than_the_host() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("kernel"));
    let container = pod.run(ContainerSpec::idle());
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the host has a kernel");
    let guest = container.sh("uname -r");
    assert!(guest.starts_with(|c: char| c.is_ascii_digit()), "{guest}");
    assert_ne!(guest, host.trim());
    let boot = |text: &str| text.trim().to_owned();
    let host_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot has an id");
    assert_ne!(
        boot(&container.sh("cat /proc/sys/kernel/random/boot_id")),
        boot(&host_boot)
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn two_pods_see_neither_each_others_processes_nor_files() {
    let daemon = Daemon::shared();
    let one = daemon.run_pod(PodSpec::new("one"));
    let two = daemon.run_pod(PodSpec::new("two"));
    let script =
        "echo $MARK > /mark; mkdir -p /dev/shm; echo $MARK > /dev/shm/mark; exec sleep $SECONDS_OF_MARK";
    let marked = |mark: &str, seconds: &str| {
        let envs = serde_json::json!([
            { "key": "MARK", "value": mark },
            { "key": "SECONDS_OF_MARK", "value": seconds },
        ]);
        // The pod's whole process namespace, not only the container's.
        ContainerSpec::sh(script).with("/envs", envs).with(
            "/linux/security_context/namespace_options",
            serde_json::json!({ "pid": 0 }),
        )
    };
    let first = one.run(marked("first", "11111"));
    let second = two.run(marked("second", "22222"));
    for (container, own, others, own_seconds, others_seconds) in [
        (&first, "first", "second", "11111", "22222"),
        (&second, "second", "first", "22222", "11111"),
    ] {
        bulkhead_tests::until("the container to have written its mark", || {
            let mark = container.sh("cat /dev/shm/mark 2>&1 || true");
            if mark == own { Ok(()) } else { Err(mark) }
        });
        assert_eq!(container.sh("cat /mark"), own);
        let processes = container.sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'");
        assert!(processes.contains(own_seconds), "{processes}");
        assert!(!processes.contains(others_seconds), "{processes}");
        assert_eq!(
            container.sh(&format!("grep -rlw {others} /mark /dev/shm || true")),
            ""
        );
    }
    assert_ne!(one.vmm_pid(), two.vmm_pid());
    let boot = "cat /proc/sys/kernel/random/boot_id";
    assert_ne!(
        first.sh(boot),
        second.sh(boot),
        "each pod has booted a kernel of its own"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn containers_of_a_pod_have_their_own_processes_and_files_and_share_the_machine() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("siblings").with("/hostname", "siblings"));
    let private = serde_json::json!({ "pid": 1 });
    let container =
        || ContainerSpec::idle().with("/linux/security_context/namespace_options", private.clone());
    let one = pod.run(container());
    let two = pod.run(container());
    one.sh("echo one > /mark; echo shared > /dev/shm/mark");
    assert_eq!(
        two.exec(&["cat", "/mark"]).code,
        1,
        "files of one are not the other's"
    );
    assert_eq!(
        two.sh("cat /dev/shm/mark"),
        "shared",
        "/dev/shm belongs to the pod"
    );
    for container in [&one, &two] {
        assert_eq!(container.sh("tr '\\0' ' ' < /proc/1/cmdline"), "top -b -d 3600");
        assert_eq!(container.sh("hostname"), "siblings");
        let processes: usize = container
            .sh("ls -d /proc/[0-9]* | wc -l")
            .parse()
            .expect("a number");
        assert!(
            processes < 6,
            "its own, the shell's and the pipe's, not {processes}"
        );
    }
    let namespace = |kind: &str| {
        let read = format!("readlink /proc/self/ns/{kind}");
        (one.sh(&read), two.sh(&read))
    };
    for shared in ["uts", "ipc", "net"] {
        let (first, second) = namespace(shared);
        assert_eq!(first, second, "{shared}");
    }
    for own in ["pid", "mnt", "cgroup"] {
        let (first, second) = namespace(own);
        assert_ne!(first, second, "{own}");
    }
    let boot = "cat /proc/sys/kernel/random/boot_id";
    assert_eq!(one.sh(boot), two.sh(boot));
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn labels_annotations_and_names_come_back_as_given() {
    let daemon = Daemon::shared();
    let crictl = daemon.crictl();
    let labels = serde_json::json!({ "io.kubernetes.pod.name": "not-its-name", "empty": "" });
    let annotations = serde_json::json!({ "text": "two\nlines \"quoted\" ünï", "empty": "" });
    let pod = daemon.run_pod(
        PodSpec::new("labels")
            .with("/labels", labels.clone())
            .with("/annotations", annotations.clone())
            .with("/metadata/attempt", 2),
    );
    let container = pod.create(
        ContainerSpec::idle()
            .with("/labels", labels.clone())
            .with("/annotations", annotations.clone())
            .with("/metadata/attempt", 3),
    );
    for status in [
        &crictl.json(["inspectp", pod.id()])["status"],
        &crictl.json(["pods", "--id", pod.id(), "-o", "json"])["items"][0],
        &crictl.json(["inspect", container.id()])["status"],
        &crictl.json(["ps", "-a", "--id", container.id(), "-o", "json"])["containers"][0],
    ] {
        assert_eq!(status["labels"], labels, "{status:#}");
        assert_eq!(status["annotations"], annotations, "{status:#}");
    }
    let inspected = crictl.json(["inspectp", pod.id()]);
    assert_eq!(
        inspected.pointer("/status/metadata/attempt"),
        Some(&2.into()),
        "{inspected:#}"
    );
    let inspected = crictl.json(["inspect", container.id()]);
    assert_eq!(
        inspected.pointer("/status/metadata/attempt"),
        Some(&3.into()),
        "{inspected:#}"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn lists_are_filtered_by_id_state_and_label() {
    let daemon = Daemon::shared();
    let crictl = daemon.crictl();
    let label = |value: &str| serde_json::json!({ "filter": value });
    let pod = daemon.run_pod(PodSpec::new("filters").with("/labels", label("pod")));
    let created = pod.create(ContainerSpec::idle().with("/labels", label("created")));
    let running = pod.run(ContainerSpec::idle().with("/labels", label("running")));
    let exited = pod.run(ContainerSpec::sh("exit 0").with("/labels", label("exited")));
    exited.wait_exited();

    let ids = |arguments: &[&str]| {
        let listed = crictl.ok(["ps", "-q", "--no-trunc", "--pod", pod.id()]
            .iter()
            .chain(arguments));
        let mut ids: Vec<String> = listed.lines().map(String::from).collect();
        ids.sort();
        ids
    };
    let of = |containers: &[&bulkhead_tests::Container<'_>]| {
        let mut ids: Vec<String> = containers
            .iter()
            .map(|container| container.id().to_owned())
            .collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&["-a"]), of(&[&created, &running, &exited]));
    assert_eq!(ids(&[]), of(&[&running]));
    assert_eq!(ids(&["-a", "--state", "Created"]), of(&[&created]));
    assert_eq!(ids(&["-a", "--state", "Exited"]), of(&[&exited]));
    assert_eq!(ids(&["-a", "--label", "filter=exited"]), of(&[&exited]));
    assert_eq!(
        ids(&["-a", "--label", "filter=exited", "--state", "Running"]),
        of(&[]),
        "filters are all to hold"
    );
    assert_eq!(ids(&["-a", "--label", "filter=none"]), of(&[]));
    let prefix = &running.id()[..13];
    assert_eq!(
        ids(&["-a", "--id", prefix]),
        of(&[&running]),
        "a prefix of an id is enough"
    );
    assert_eq!(
        crictl.ok(["inspect", "-q", prefix]),
        crictl.ok(["inspect", "-q", running.id()])
    );

    let pods = |arguments: &[&str]| crictl.ok(["pods", "-q", "--no-trunc"].iter().chain(arguments));
    assert_eq!(pods(&["--id", &pod.id()[..13]]), pod.id());
    assert_eq!(pods(&["--label", "filter=pod", "--id", pod.id()]), pod.id());
    assert_eq!(pods(&["--label", "filter=other", "--id", pod.id()]), "");
    assert_eq!(pods(&["--state", "notready", "--id", pod.id()]), "");
    pod.stop();
    assert_eq!(pods(&["--state", "notready", "--id", pod.id()]), pod.id());
    assert_eq!(pods(&["--state", "ready", "--id", pod.id()]), "");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn the_daemon_says_what_it_is_and_what_is_missing() {
    let daemon = Daemon::shared();
    let crictl = daemon.crictl();
    let version = crictl.ok(["version"]);
    for line in [
        "RuntimeName:  bulkhead",
        "RuntimeApiVersion:  v1",
        "Version:  0.1.0",
    ] {
        assert!(version.contains(line), "{line:?} is not in {version}");
    }

    let info = crictl.json(["info"]);
    let condition = |name: &str| {
        let conditions = info
            .pointer("/status/conditions")
            .and_then(Value::as_array)
            .expect("conditions");
        let found = conditions.iter().find(|condition| condition["type"] == name);
        found
            .unwrap_or_else(|| panic!("no condition {name} in {info:#}"))
            .clone()
    };
    assert_eq!(condition("RuntimeReady")["status"], true, "{info:#}");
    assert_eq!(condition("NetworkReady")["status"], true, "{info:#}");
    let handlers = info["runtimeHandlers"].as_array().expect("runtime handlers");
    let default = handlers
        .iter()
        .filter(|handler| handler["name"].as_str().unwrap_or("").is_empty());
    assert_eq!(
        default.count(),
        1,
        "the handler with the empty name is listed: {info:#}"
    );
    assert!(
        info["config"].is_object(),
        "verbose Status shows the configuration: {info:#}"
    );

    let driver = crictl.ok(["runtime-config"]);
    assert!(
        driver.contains("CGROUPFS") || driver.contains("SYSTEMD"),
        "{driver}"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn removal_leaves_the_logs_to_the_kubelet() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("kept-logs"));
    let container = pod.run(ContainerSpec::sh("echo kept"));
    container.wait_exited();
    let path = container.status().log_path;
    let id = container.id().to_owned();
    daemon.crictl().ok(["rm", "--keep-logs", &id]);
    assert!(fs::exists(&path).expect("a path"), "RemoveContainer keeps logs");
    let lines = log::parse(&fs::read(&path).expect("the log"));
    assert_eq!(log::bytes_of(&lines, "stdout"), b"kept\n");
    daemon.crictl().ok(["rmp", "-f", pod.id()]);
    pod.is_removed();
    assert!(fs::exists(&path).expect("a path"), "RemovePodSandbox keeps logs");
}
