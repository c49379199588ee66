//! Statistics and metrics with the real `crictl`: its numbers against the guest's own control group files, and against
//! what the host sees of the VMM.
#![allow(
    clippy::indexing_slicing,
    reason = "a test that goes wrong here has failed and says where"
)]

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use bulkhead_tests::{Container, ContainerSpec, DEADLINE, Daemon, DaemonOptions, PodSpec, until};
use bulkhead_vmm::control::client::Client;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// What clients of CRI expect beside what is in [`OPTIONAL`].
const EXPECTED: [&str; 45] = [
    "container_blkio_device_usage_total",
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_cfs_throttled_seconds_total",
    "container_cpu_system_seconds_total",
    "container_cpu_usage_seconds_total",
    "container_cpu_user_seconds_total",
    "container_file_descriptors",
    "container_fs_inodes_free",
    "container_fs_inodes_total",
    "container_fs_limit_bytes",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_usage_bytes",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_last_seen",
    "container_memory_cache",
    "container_memory_failcnt",
    "container_memory_failures_total",
    "container_memory_kernel_usage",
    "container_memory_mapped_file",
    "container_memory_max_usage_bytes",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_network_receive_bytes_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
    "container_network_receive_packets_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_errors_total",
    "container_network_transmit_packets_dropped_total",
    "container_network_transmit_packets_total",
    "container_oom_events_total",
    "container_processes",
    "container_sockets",
    "container_spec_cpu_period",
    "container_spec_cpu_shares",
    "container_spec_memory_limit_bytes",
    "container_spec_memory_swap_limit_bytes",
    "container_start_time_seconds",
    "container_threads",
    "container_threads_max",
];

/// What we have beyond that: all that a runtime may leave out, but for huge pages and a reservation of memory.
const OPTIONAL: [&str; 8] = [
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
    "container_spec_cpu_quota",
    "container_ulimits_soft",
];

/// A number of `crictl`'s JSON, which has those of 64 bits as text and leaves 0 out.
#[track_caller]
fn number(json: &Value, pointer: &str) -> u64 {
    match json.pointer(pointer) {
        None | Some(Value::Null) => 0,
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_str()?.parse().ok())
            .unwrap_or_else(|| panic!("no number at {pointer} in {json:#}")),
    }
}

/// The number behind `key` in a "flat keyed" control file.
#[track_caller]
fn keyed(file: &str, key: &str) -> u64 {
    let value = file
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or_else(|| panic!("no {key} in {file}"))
}

#[track_caller]
fn is_between(what: &str, before: u64, value: u64, after: u64) {
    assert!(
        before <= value && value <= after,
        "{what}: {value} is not in {before}..={after}"
    );
}

#[track_caller]
fn is_near(what: &str, one: u64, other: u64, by: u64) {
    assert!(
        one.abs_diff(other) <= by,
        "{what}: {one} and {other} differ by more than {by}"
    );
}

/// Control files of the container, read in it.
fn control_files(container: &Container<'_>) -> HashMap<String, String> {
    let names = "cpu.stat memory.current memory.stat memory.events pids.current";
    let text = container.sh(&format!(
        "cd /sys/fs/cgroup; for f in {names}; do echo FILE $f; cat $f; done; echo FILE net; cat /proc/net/dev"
    ));
    let files = text.split("FILE ").filter_map(|part| part.split_once('\n'));
    files
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .collect()
}

/// Bytes that the pod has received on eth0, as a container sees it.
fn received(files: &HashMap<String, String>) -> u64 {
    let line = files["net"]
        .lines()
        .find_map(|line| line.trim().strip_prefix("eth0:"));
    let bytes = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    bytes.expect("an eth0 with counters")
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn stats_and_metrics_are_those_of_the_guest_and_of_the_host() {
    let daemon = Daemon::private(DaemonOptions::new());
    let crictl = daemon.crictl();
    let pod =
        daemon.run_pod(PodSpec::new("measured").with("/labels", serde_json::json!({ "app": "measured" })));
    let limit = 64 * MIB;
    // A fifth of a processor, so that the quota has something to hold up.
    let busy = pod.run(
        ContainerSpec::sh(
            "dd if=/dev/zero of=/written bs=1M count=5 2>/dev/null; sync; echo ready; while :; do :; done",
        )
        .with("/metadata/name", "busy")
        .with("/linux/resources/cpu_period", 100_000)
        .with("/linux/resources/cpu_quota", 20_000)
        .with("/linux/resources/cpu_shares", 1024)
        .with("/linux/resources/memory_limit_in_bytes", limit)
        .with("/linux/resources/memory_swap_limit_in_bytes", limit),
    );
    let idle = pod.run(ContainerSpec::idle().with("/metadata/name", "idle"));
    busy.wait_for_log("ready");

    let before = control_files(&busy);
    let all = crictl.json(["stats", "-o", "json"]);
    let after = control_files(&busy);
    let listed = all["stats"].as_array().expect("a list of stats");
    let of = |id: &str| {
        let own = listed.iter().find(|stats| stats["attributes"]["id"] == id);
        own.unwrap_or_else(|| panic!("no {id} in {all:#}")).clone()
    };
    assert_eq!(listed.len(), 2, "{all:#}");
    let stats = of(busy.id());
    assert_eq!(stats["attributes"]["metadata"]["name"], "busy");
    let usage = |files: &HashMap<String, String>, key: &str| keyed(&files["cpu.stat"], key);
    is_between(
        "processor time",
        usage(&before, "usage_usec") * 1000,
        number(&stats, "/cpu/usageCoreNanoSeconds/value"),
        usage(&after, "usage_usec") * 1000,
    );
    let memory =
        |files: &HashMap<String, String>| files["memory.current"].trim().parse::<u64>().expect("a number");
    let working =
        |files: &HashMap<String, String>| memory(files) - keyed(&files["memory.stat"], "inactive_file");
    let working_set = number(&stats, "/memory/workingSetBytes/value");
    // The exec that reads the files is itself in the group.
    is_near(
        "memory",
        number(&stats, "/memory/usageBytes/value"),
        memory(&before),
        4 * MIB,
    );
    is_near("working set", working_set, working(&before), 4 * MIB);
    assert_eq!(
        number(&stats, "/memory/availableBytes/value"),
        limit - working_set
    );
    is_near(
        "anonymous memory",
        number(&stats, "/memory/rssBytes/value"),
        keyed(&before["memory.stat"], "anon"),
        4 * MIB,
    );
    is_between(
        "page faults",
        keyed(&before["memory.stat"], "pgfault"),
        number(&stats, "/memory/pageFaults/value"),
        keyed(&after["memory.stat"], "pgfault"),
    );
    is_between(
        "written bytes",
        5 * MIB,
        number(&stats, "/writableLayer/usedBytes/value"),
        6 * MIB,
    );
    assert!(
        number(&stats, "/writableLayer/inodesUsed/value") >= 1,
        "{stats:#}"
    );
    let mountpoint = stats["writableLayer"]["fsId"]["mountpoint"]
        .as_str()
        .expect("a path");
    assert!(Path::new(mountpoint).is_dir(), "{mountpoint}");
    assert!(stats["cpu"]["psi"]["Some"].is_object(), "{stats:#}");
    assert!(number(&of(idle.id()), "/memory/workingSetBytes/value") > 0);

    the_tables_have_a_row_for_each(&daemon, pod.id(), &busy, &idle);

    // The pod: what its machine costs the host.
    let inspect = crictl.json(["inspectp", pod.id()]);
    let group = inspect["info"]["cgroup"].as_str().expect("a control group");
    let group = Path::new("/sys/fs/cgroup").join(group.trim_start_matches('/'));
    let file = |name: &str| fs::read_to_string(group.join(name)).expect("a control file of the host");
    let cpu = || keyed(&file("cpu.stat"), "usage_usec") * 1000;
    let (cpu_before, net_before) = (cpu(), received(&before));
    let pods = crictl.json(["statsp", "-o", "json"]);
    let (cpu_after, net_after) = (cpu(), received(&control_files(&busy)));
    assert_eq!(pods["stats"].as_array().map(Vec::len), Some(1), "{pods:#}");
    let stats = &pods["stats"][0];
    assert_eq!(stats["attributes"]["id"], pod.id());
    assert_eq!(stats["attributes"]["labels"]["app"], "measured");
    is_between(
        "processor time of the machine",
        cpu_before,
        number(stats, "/linux/cpu/usageCoreNanoSeconds/value"),
        cpu_after,
    );
    let host_memory: u64 = file("memory.current").trim().parse().expect("a number");
    let of_pod = number(stats, "/linux/memory/usageBytes/value");
    is_near("memory of the machine", of_pod, host_memory, 8 * MIB);
    let status = fs::read_to_string(format!("/proc/{}/status", pod.vmm_pid())).expect("the VMM's status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    let resident = resident.expect("resident memory") * 1024;
    is_near("memory of the VMM's process", of_pod, resident, 48 * MIB);
    assert!(
        of_pod > working_set + 16 * MIB,
        "a machine costs more than its containers use: {stats:#}"
    );
    assert_eq!(stats["linux"]["network"]["defaultInterface"]["name"], "eth0");
    is_between(
        "received bytes",
        net_before,
        number(stats, "/linux/network/defaultInterface/rxBytes/value"),
        net_after,
    );
    assert_eq!(stats["linux"]["containers"].as_array().map(Vec::len), Some(2));
    // A shell and top, and perhaps an exec that is just ending.
    is_between(
        "processes",
        2,
        number(stats, "/linux/process/processCount/value"),
        5,
    );

    the_metrics_have_names_labels_and_the_same_numbers(&daemon, &busy, limit);
}

/// `crictl stats` and `crictl statsp` as people see them: two samples, a second apart.
fn the_tables_have_a_row_for_each(daemon: &Daemon, pod: &str, busy: &Container<'_>, idle: &Container<'_>) {
    let crictl = daemon.crictl();
    let table = crictl.ok(["stats"]);
    let row = |container: &Container<'_>| row_of(&table, container.id());
    let [_, name, percent, memory, disk, _, _] = columns(&row(busy));
    assert_eq!(name, "busy", "{table}");
    let percent: f64 = percent.parse().expect("per cent of a processor");
    // A fifth, as far as a slow node lets it.
    assert!(percent > 0.5 && percent < 60.0, "{table}");
    assert!(memory.ends_with("MB") || memory.ends_with("kB"), "{table}");
    assert!(disk.starts_with("5.") && disk.ends_with("MB"), "{table}");
    let [_, name, ..] = columns::<7>(&row(idle));
    assert_eq!(name, "idle", "{table}");
    let one = crictl.ok(["stats", "--id", idle.id()]);
    assert!(one.contains("idle") && !one.contains("busy"), "{one}");

    let table = crictl.ok(["statsp"]);
    let [_, _, percent, memory] = columns(&row_of(&table, pod));
    let percent: f64 = percent.parse().expect("per cent of a processor");
    assert!(percent > 0.5, "{table}");
    assert!(memory.ends_with("MB"), "{table}");
}

/// The row of the object with this id.
#[track_caller]
fn row_of(table: &str, id: &str) -> String {
    let short = id.get(..13).expect("an id");
    let row = table.lines().find(|line| line.contains(short));
    row.unwrap_or_else(|| panic!("no {short} in {table}")).to_owned()
}

#[track_caller]
fn columns<const COUNT: usize>(row: &str) -> [String; COUNT] {
    let words: Vec<String> = row.split_whitespace().map(ToOwned::to_owned).collect();
    words
        .try_into()
        .unwrap_or_else(|words| panic!("not {COUNT} columns: {words:?}"))
}

fn the_metrics_have_names_labels_and_the_same_numbers(daemon: &Daemon, busy: &Container<'_>, limit: u64) {
    let crictl = daemon.crictl();
    let described = crictl.json(["metricdescs"]);
    let described: HashMap<String, Vec<String>> = described["descriptors"]
        .as_array()
        .expect("descriptors")
        .iter()
        .map(|descriptor| {
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            assert!(!text(&descriptor["help"]).is_empty(), "{descriptor:#}");
            let keys = descriptor["labelKeys"].as_array().expect("labels");
            (text(&descriptor["name"]), keys.iter().map(text).collect())
        })
        .collect();
    let names: HashSet<&str> = described.keys().map(String::as_str).collect();
    let expected: HashSet<&str> = EXPECTED.into_iter().chain(OPTIONAL).collect();
    assert_eq!(names, expected);

    let before = control_files(busy);
    let told = crictl.json(["metricsp"]);
    let pods = told["podMetrics"].as_array().expect("metrics of pods");
    assert_eq!(pods.len(), 1);
    let of_containers = pods[0]["containerMetrics"]
        .as_array()
        .expect("metrics of containers");
    let own = of_containers
        .iter()
        .find(|metrics| metrics["containerId"] == busy.id());
    let own = own.expect("metrics of the container")["metrics"]
        .as_array()
        .expect("a list");
    let mut met = HashSet::new();
    for metric in own.iter().chain(pods[0]["metrics"].as_array().expect("a list")) {
        let name = metric["name"].as_str().expect("a name");
        let labels = metric["labelValues"].as_array().expect("labels");
        assert_eq!(labels.len(), described[name].len(), "{metric:#}");
        met.insert(name);
    }
    assert_eq!(met, expected, "every metric has a value");

    let value = |name: &str, wanted: &[(&str, &str)]| {
        let fits = |metric: &&Value| {
            let labels = metric["labelValues"].as_array().into_iter().flatten();
            let labels: HashMap<&str, &str> = described[name]
                .iter()
                .map(String::as_str)
                .zip(labels.filter_map(Value::as_str))
                .collect();
            metric["name"] == name && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        let metric = own.iter().find(fits);
        number(
            metric.unwrap_or_else(|| panic!("no {name} with {wanted:?}")),
            "/value/value",
        )
    };
    assert_eq!(
        value("container_spec_memory_limit_bytes", &[("container", "busy")]),
        limit
    );
    assert_eq!(value("container_spec_cpu_quota", &[]), 20_000);
    assert_eq!(value("container_spec_cpu_period", &[]), 100_000);
    assert_eq!(value("container_spec_cpu_shares", &[]), 1024);
    is_near(
        "seconds of a processor",
        value(
            "container_cpu_usage_seconds_total",
            &[("cpu", "total"), ("name", busy.id())],
        ),
        keyed(&before["cpu.stat"], "usage_usec") / 1_000_000,
        3,
    );
    let throttled = value("container_cpu_cfs_throttled_periods_total", &[]);
    assert!(throttled > 0 && throttled <= value("container_cpu_cfs_periods_total", &[]));
    assert_eq!(value("container_processes", &[]), 1);
    assert_eq!(value("container_threads", &[]), 1);
    is_between("open files", 3, value("container_file_descriptors", &[]), 20);
    assert!(value("container_ulimits_soft", &[("ulimit", "max_open_files")]) > 100);
    let peak = value("container_memory_max_usage_bytes", &[]);
    is_between(
        "most memory",
        value("container_memory_usage_bytes", &[]),
        peak,
        limit,
    );
    let written = value("container_fs_usage_bytes", &[]);
    is_between(
        "written bytes",
        5 * MIB,
        written,
        value("container_fs_limit_bytes", &[]),
    );
    assert!(value("container_fs_inodes_free", &[]) < value("container_fs_inodes_total", &[]));
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_guest_that_stands_still_delays_nobody() {
    let daemon = Daemon::private(DaemonOptions::new().config("timeouts.stats_seconds", 5));
    let crictl = daemon.crictl();
    let (still, moving) = (
        daemon.run_pod(PodSpec::new("still")),
        daemon.run_pod(PodSpec::new("moving")),
    );
    let (silent, told) = (
        still.run(ContainerSpec::idle()),
        moving.run(ContainerSpec::idle()),
    );
    let control = daemon.state().join("pods").join(still.id()).join("control");
    let machine = Client::connect(&control, DEADLINE).expect("the machine's control socket");
    machine.pause().expect("the machine pauses");

    let listed = || crictl.json(["stats", "-o", "json"]);
    let ids = |stats: &Value| -> Vec<String> {
        let stats = stats["stats"].as_array().into_iter().flatten();
        stats
            .map(|stats| stats["attributes"]["id"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(ids(&listed()), [told.id()], "the first call waits for it in vain");
    let begun = Instant::now();
    assert_eq!(ids(&listed()), [told.id()]);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "the second call waits as well"
    );
    let pods = crictl.json(["statsp", "-o", "json"]);
    assert_eq!(ids(&pods).len(), 2, "{pods:#}");
    for pod in pods["stats"].as_array().into_iter().flatten() {
        let is_still = pod["attributes"]["id"] == still.id();
        assert!(
            number(pod, "/linux/memory/workingSetBytes/value") > 16 * MIB,
            "{pod:#}"
        );
        assert_eq!(pod["linux"]["network"].is_null(), is_still, "{pod:#}");
    }

    machine.resume().expect("the machine goes on");
    until("the guest that goes on to be told again", || {
        let ids = ids(&listed());
        if ids.iter().any(|id| id == silent.id()) {
            Ok(())
        } else {
            Err(format!("{ids:?}"))
        }
    });
}
