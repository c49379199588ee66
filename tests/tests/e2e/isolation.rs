//! What a container finds around itself: file systems, namespaces, limits, names.

use bulkhead_tests::{Container, ContainerSpec, Daemon, DaemonOptions, PodSpec, create_arguments, until};
use serde_json::json;

/// The option of one mount point, and whether it is mounted read-only.
fn mount(container: &Container<'_>, point: &str) -> (String, Vec<String>) {
    let mounts = container.sh("cat /proc/self/mounts");
    let line = mounts.lines().rfind(|line| line.split(' ').nth(1) == Some(point));
    let line = line.unwrap_or_else(|| panic!("nothing is mounted on {point}:\n{mounts}"));
    let mut words = line.split(' ').skip(2).map(String::from);
    let kind = words.next().expect("a file system type");
    let options = words
        .next()
        .expect("mount options")
        .split(',')
        .map(String::from)
        .collect();
    (kind, options)
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn the_standard_file_systems_are_as_oci_has_them() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("standard"));
    let container = pod.run(ContainerSpec::idle());
    for (point, kind, options) in [
        ("/proc", "proc", &["rw", "nosuid", "nodev", "noexec"][..]),
        ("/sys", "sysfs", &["ro", "nosuid", "nodev", "noexec"]),
        ("/sys/fs/cgroup", "cgroup2", &["ro", "nosuid", "nodev", "noexec"]),
        ("/dev", "tmpfs", &["rw", "nosuid"]),
        ("/dev/pts", "devpts", &["rw", "nosuid", "noexec"]),
        ("/dev/shm", "tmpfs", &["rw", "nosuid", "nodev", "noexec"]),
        ("/dev/mqueue", "mqueue", &["rw", "nosuid", "nodev", "noexec"]),
        ("/", "overlay", &["rw"]),
    ] {
        let (found, found_options) = mount(&container, point);
        assert_eq!(found, kind, "{point}");
        for option in options {
            assert!(
                found_options.iter().any(|found| found == option),
                "{point} has {found_options:?}"
            );
        }
    }
    for (device, numbers) in [
        ("null", "1:3"),
        ("zero", "1:5"),
        ("full", "1:7"),
        ("random", "1:8"),
        ("urandom", "1:9"),
        ("tty", "5:0"),
    ] {
        let found = container.sh(&format!(
            "test -c /dev/{device} && stat -c '%t:%T %a' /dev/{device}"
        ));
        assert_eq!(found, format!("{numbers} 666"), "/dev/{device}");
    }
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        assert_eq!(container.sh(&format!("readlink /dev/{link}")), target);
    }
    assert_eq!(
        container.sh("head -c 3 /dev/zero | wc -c; echo x > /dev/null; head -c 8 /dev/urandom | wc -c"),
        "3\n8"
    );
    let disks = container.sh("ls /dev | grep -E '^(vd|sd|loop|kvm|mem|kmsg|vport|hvc)' || true");
    assert_eq!(disks, "", "devices of the guest are not the container's");
    let refused = container.exec(&["sh", "-c", "mknod /dev/disk b 254 0 && cat /dev/disk > /dev/null"]);
    assert_ne!(
        refused.code, 0,
        "a device node that a container makes opens nothing: {refused:?}"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn without_a_network_loopback_is_up_and_there_is_no_other_interface() {
    let daemon = Daemon::private(DaemonOptions::new().config("network.enabled", false));
    let pod = daemon.run_pod(PodSpec::new("loopback"));
    let container = pod.run(ContainerSpec::idle());
    assert_eq!(container.sh("ls /sys/class/net"), "lo");
    for address in ["127.0.0.1", "::1"] {
        let ping = container.exec(&["ping", "-c", "1", address]);
        assert_eq!(ping.code, 0, "{address}: {} {}", ping.text(), ping.error_text());
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_read_only_root_takes_no_writes() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("read-only"));
    let container = pod.run(
        ContainerSpec::idle()
            .security("readonly_rootfs", true)
            .with("/working_dir", "/not/there"),
    );
    for path in ["/file", "/tmp/file", "/etc/hosts", "/etc/resolv.conf"] {
        let output = container.exec(&["sh", "-c", &format!("echo x >> {path}")]);
        assert_ne!(output.code, 0, "{path}");
        assert!(
            output.error_text().contains("Read-only file system"),
            "{path}: {}",
            output.error_text()
        );
    }
    assert_eq!(container.sh("echo x > /dev/shm/file && cat /dev/shm/file"), "x");
    let writable = pod.run(ContainerSpec::idle());
    assert_eq!(writable.sh("echo x > /tmp/file && cat /tmp/file"), "x");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn paths_are_masked_and_read_only_as_asked_and_no_others() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("paths"));
    let container = pod.run(
        ContainerSpec::idle()
            .security(
                "masked_paths",
                json!(["/proc/cpuinfo", "/proc/fs", "/etc/group", "/no/such/path"]),
            )
            .security("readonly_paths", json!(["/proc/sys", "/tmp", "/no/such/path"])),
    );
    assert_eq!(container.sh("cat /proc/cpuinfo; cat /etc/group; ls /proc/fs"), "");
    for path in ["/tmp/file", "/proc/sys/kernel/domainname"] {
        let output = container.exec(&["sh", "-c", &format!("echo x > {path}")]);
        assert!(
            output.error_text().contains("Read-only file system"),
            "{path}: {output:?}"
        );
    }
    let plain = pod.run(ContainerSpec::idle());
    assert_ne!(plain.sh("cat /proc/cpuinfo"), "");
    assert_ne!(plain.sh("cat /etc/group"), "");
    assert_eq!(plain.sh("echo x > /tmp/file && cat /tmp/file"), "x");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn sysctls_are_set_in_the_guest_alone() {
    let daemon = Daemon::shared();
    let before = std::fs::read_to_string("/proc/sys/fs/mqueue/msg_max").unwrap_or_default();
    let sysctls = json!({
        "kernel.shm_rmid_forced": "1",
        "fs.mqueue.msg_max": "123",
        "net.ipv4.ip_unprivileged_port_start": "77",
        "net.ipv4.ping_group_range": "0 1000",
    });
    let pod = daemon.run_pod(PodSpec::new("sysctls").with("/linux/sysctls", sysctls));
    let container = pod.run(ContainerSpec::idle());
    assert_eq!(container.sh("cat /proc/sys/kernel/shm_rmid_forced"), "1");
    assert_eq!(container.sh("cat /proc/sys/fs/mqueue/msg_max"), "123");
    assert_eq!(
        container.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"),
        "77"
    );
    assert_eq!(container.sh("cat /proc/sys/net/ipv4/ping_group_range"), "0\t1000");
    assert_eq!(
        std::fs::read_to_string("/proc/sys/fs/mqueue/msg_max").unwrap_or_default(),
        before
    );

    let wrong = PodSpec::new("sysctls").with("/linux/sysctls", json!({ "kernel.no_such_setting": "1" }));
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), wrong.json()).expect("a file can be written");
    let said = daemon
        .crictl()
        .fails(["runp", file.path().to_str().expect("a path in UTF-8")]);
    assert!(said.contains("kernel.no_such_setting"), "{said}");
    let pods = daemon
        .crictl()
        .json(["pods", "--name", wrong.name(), "-o", "json"]);
    assert_eq!(
        pods["items"].as_array().map(Vec::len),
        Some(0),
        "a pod that failed is not listed: {pods:#}"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn limits_are_those_of_the_request() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("limits"));
    let container = pod.run(ContainerSpec::idle().with(
        "/linux/resources",
        json!({
            "cpu_period": 50_000,
            "cpu_quota": 25_000,
            "cpu_shares": 2048,
            "memory_limit_in_bytes": 67_108_864,
            "memory_swap_limit_in_bytes": 67_108_864,
            "oom_score_adj": 321,
            "unified": { "memory.oom.group": "1", "pids.max": "77" },
            // As the kubelet sends it: every page size of the host, unused.
            "hugepage_limits": [{ "page_size": "2MB", "limit": 0 }, { "page_size": "1GB", "limit": 0 }],
        }),
    ));
    let read = |file: &str| container.sh(&format!("cat /sys/fs/cgroup/{file}"));
    assert_eq!(read("cpu.max"), "25000 50000");
    let weight: u32 = read("cpu.weight").parse().expect("a number");
    assert!(
        (150..=200).contains(&weight),
        "2048 shares, twice the default of 1024, are a weight of {weight}, about twice the default of 100"
    );
    assert_eq!(read("memory.max"), "67108864");
    assert_eq!(
        read("memory.swap.max"),
        "0",
        "memory and swap are limited together"
    );
    assert_eq!(read("memory.oom.group"), "1");
    assert_eq!(read("pids.max"), "77");
    assert_eq!(container.sh("cat /proc/1/oom_score_adj"), "321");
    assert_eq!(container.sh("cat /proc/self/cgroup | cut -d: -f3 | cut -c1"), "/");
    let applied = container
        .status()
        .resources
        .and_then(|resources| resources.linux)
        .expect("resources in the status");
    assert_eq!(
        (applied.cpu_quota, applied.memory_limit_in_bytes),
        (25_000, 67_108_864),
        "{applied:?}"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_pods_size_comes_from_its_limits() {
    // However few processors the node has.
    let daemon = Daemon::private(DaemonOptions::new().config("vm.max_vcpus", 2));
    let resources =
        json!({ "cpu_period": 100_000, "cpu_quota": 150_000, "memory_limit_in_bytes": 268_435_456 });
    let large = daemon.run_pod(PodSpec::new("large").with("/linux/resources", resources));
    let small = daemon.run_pod(PodSpec::new("small"));
    let total = "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo";
    let large = large.run(ContainerSpec::idle());
    let small = small.run(ContainerSpec::idle());
    assert_eq!(large.sh("nproc"), "2", "a quota of one and a half CPUs needs two");
    let kib = |container: &Container<'_>| container.sh(total).parse::<u64>().expect("a number");
    assert!(kib(&large) >= 256 * 1024, "{} KiB", kib(&large));
    assert!(kib(&small) < 200 * 1024, "{} KiB", kib(&small));
    assert_eq!(small.sh("nproc"), "1");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn names_and_name_servers_are_the_pods() {
    let daemon = Daemon::shared();
    let dns = json!({
        "servers": ["10.10.10.10", "fd00::10"],
        "searches": ["one.example", "two.example"],
        "options": ["ndots:8"],
    });
    let pod = daemon.run_pod(
        PodSpec::new("names")
            .with("/hostname", "a-pod")
            .with("/dns_config", dns),
    );
    let container = pod.run(ContainerSpec::idle());
    assert_eq!(
        container.sh("hostname; cat /etc/hostname; echo $HOSTNAME"),
        "a-pod\na-pod\na-pod"
    );
    let resolv = container.sh("cat /etc/resolv.conf");
    assert_eq!(
        resolv,
        "search one.example two.example\nnameserver 10.10.10.10\nnameserver fd00::10\noptions ndots:8"
    );
    let hosts = container.sh("cat /etc/hosts");
    assert!(
        hosts
            .lines()
            .any(|line| line.starts_with("127.0.0.1") && line.contains("localhost")),
        "{hosts}"
    );

    let empty = daemon.run_pod(PodSpec::new("no-dns").with("/dns_config", json!({})));
    assert_eq!(
        empty.run(ContainerSpec::idle()).sh("cat /etc/resolv.conf"),
        "",
        "present but empty is empty"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn containers_of_a_pod_can_share_their_processes() {
    let daemon = Daemon::shared();
    let options = |pid: i32| json!({ "pid": pid });
    let pod = daemon
        .run_pod(PodSpec::new("shared-pid").with("/linux/security_context/namespace_options", options(0)));
    let shared = || ContainerSpec::idle().with("/linux/security_context/namespace_options", options(0));
    let one = pod.run(shared());
    let two = pod.run(shared().command(&["sleep", "54321"]));
    let processes = one.sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '");
    assert!(
        processes.contains("sleep 54321") && processes.contains("top -b"),
        "{processes}"
    );
    let first = one.sh("tr '\\0' ' ' < /proc/1/cmdline");
    assert!(
        !first.contains("top") && !first.contains("sleep"),
        "process 1 is an init, not {first}"
    );
    assert_eq!(
        one.sh("readlink /proc/self/ns/pid"),
        two.sh("readlink /proc/self/ns/pid")
    );

    // A container of its own, which a third one joins for debugging.
    let own = pod.run(ContainerSpec::idle().with("/linux/security_context/namespace_options", options(1)));
    let target = json!({ "pid": 3, "target_id": own.id() });
    let debug = pod.run(
        ContainerSpec::idle()
            .command(&["sleep", "12345"])
            .with("/linux/security_context/namespace_options", target),
    );
    assert_eq!(
        own.sh("readlink /proc/self/ns/pid"),
        debug.sh("readlink /proc/self/ns/pid")
    );
    assert_eq!(debug.sh("tr '\\0' ' ' < /proc/1/cmdline"), "top -b -d 3600");
    assert_ne!(
        own.sh("readlink /proc/self/ns/pid"),
        one.sh("readlink /proc/self/ns/pid")
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn process_one_takes_its_children_with_it() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(
        PodSpec::new("children").with("/linux/security_context/namespace_options", json!({ "pid": 0 })),
    );
    let watcher =
        pod.run(ContainerSpec::idle().with("/linux/security_context/namespace_options", json!({ "pid": 0 })));
    let shared = pod.run(
        ContainerSpec::sh("setsid sleep 777001 & sleep 777002 & echo ready; sleep 777003")
            .with("/linux/security_context/namespace_options", json!({ "pid": 0 })),
    );
    shared.wait_for_log("ready");
    until("the children to run", || {
        let count = watcher
            .sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 77700[1-3] | sort -u | wc -l");
        if count == "3" { Ok(()) } else { Err(count) }
    });
    shared.stop(0);
    let left = watcher.sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 77700[1-3] || true");
    assert_eq!(left, "", "what a container started ends with it");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_working_directory_is_made_and_an_environment_is_complete() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("environment"));
    let container = pod.run(
        ContainerSpec::of("busybox:latest")
            .command(&["sh", "-c"])
            .with("/args", json!(["pwd; env; exec top -b -d 3600 > /dev/null"]))
            .with("/working_dir", "/a/new/directory")
            .with(
                "/envs",
                json!([
                    { "key": "PATH", "value": "/bin:/usr/bin" },
                    { "key": "EMPTY", "value": "" },
                    { "key": "EQUALS", "value": "a=b=c" },
                    { "key": "TWICE", "value": "first" },
                    { "key": "TWICE", "value": "second" },
                ]),
            ),
    );
    container.wait_for_log("EQUALS");
    let log = daemon.crictl().ok(["logs", container.id()]);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.first(), Some(&"/a/new/directory"));
    for line in ["PATH=/bin:/usr/bin", "EMPTY=", "EQUALS=a=b=c", "TWICE=second"] {
        assert_eq!(
            lines.iter().filter(|found| **found == line).count(),
            1,
            "{line} in {log}"
        );
    }
    assert!(!lines.contains(&"TWICE=first"), "{log}");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_privileged_container_is_root_of_the_guest_and_needs_a_privileged_pod() {
    let daemon = Daemon::shared();
    let privileged = || ContainerSpec::idle().security("privileged", true);
    let pod = daemon.run_pod(PodSpec::new("privileged").with("/linux/security_context/privileged", true));
    let container = pod.run(privileged());
    assert_eq!(
        container.sh("mkdir /m && mount -t tmpfs none /m && echo x > /m/f && cat /m/f"),
        "x"
    );
    let (_, options) = mount(&container, "/sys");
    assert!(options.contains(&"rw".to_owned()), "{options:?}");
    let last: u32 = container
        .sh("cat /proc/sys/kernel/cap_last_cap")
        .parse()
        .expect("a number");
    let all = (1u64 << (last + 1)) - 1;
    assert_eq!(
        container.sh("sed -n 's/CapEff:\\t//p' /proc/self/status"),
        format!("{all:016x}")
    );
    let plain = pod.run(ContainerSpec::idle());
    assert_ne!(plain.exec(&["mount", "-t", "tmpfs", "none", "/tmp"]).code, 0);

    let modest = daemon.run_pod(PodSpec::new("not-privileged"));
    let said = daemon.crictl().fails(create_arguments(&modest, &privileged()));
    assert!(
        said.contains("privileged") && said.contains("InvalidArgument"),
        "{said}"
    );
}
