//! Statistics: of guests that tell the truth, lie, refuse or hang, and of many.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use bulkhead_proto::cri::*;
use tonic::Code;

use crate::node::{Node, PATIENCE};

pub const MIB: u64 = 1 << 20;

fn list(node: &Node, filter: Option<ContainerStatsFilter>) -> Vec<ContainerStats> {
    let request = ListContainerStatsRequest { filter };
    node.runtime(async |mut c| c.list_container_stats(request).await)
        .unwrap()
        .stats
}

fn listed(node: &Node, filter: ContainerStatsFilter) -> Vec<String> {
    let stats = list(node, Some(filter)).into_iter();
    let mut ids: Vec<_> = stats.map(|stats| stats.attributes.unwrap().id).collect();
    ids.sort();
    ids
}

fn list_pods(node: &Node, filter: Option<PodSandboxStatsFilter>) -> Vec<PodSandboxStats> {
    let request = ListPodSandboxStatsRequest { filter };
    node.runtime(async |mut c| c.list_pod_sandbox_stats(request).await)
        .unwrap()
        .stats
}

fn of_container(node: &Node, id: &str) -> Result<ContainerStats, tonic::Status> {
    let request = ContainerStatsRequest {
        container_id: id.into(),
    };
    node.runtime(async |mut c| c.container_stats(request).await)
        .map(|answer| answer.stats.unwrap())
}

fn of_pod(node: &Node, id: &str) -> Result<PodSandboxStats, tonic::Status> {
    let request = PodSandboxStatsRequest {
        pod_sandbox_id: id.into(),
    };
    node.runtime(async |mut c| c.pod_sandbox_stats(request).await)
        .map(|answer| answer.stats.unwrap())
}

pub fn metrics(node: &Node) -> Vec<PodSandboxMetrics> {
    let request = ListPodSandboxMetricsRequest {};
    node.runtime(async |mut c| c.list_pod_sandbox_metrics(request).await)
        .unwrap()
        .pod_metrics
}

pub fn value(of: Option<UInt64Value>) -> u64 {
    of.expect("a value").value
}

fn cpu_ns(stats: &ContainerStats) -> u64 {
    value(stats.cpu.as_ref().unwrap().usage_core_nano_seconds)
}

#[test]
fn a_container_is_told_as_its_guest_measures_it() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let mut config = node.container_config("c", &["run"]);
    config.labels.insert("a".into(), "1".into());
    config.annotations.insert("b".into(), "2".into());
    let id = node.try_create(&pod, config.clone()).unwrap();
    node.start_container(&id).unwrap();

    let first = of_container(&node, &id).unwrap();
    let attributes = first.attributes.clone().unwrap();
    assert_eq!(
        (attributes.id.as_str(), attributes.metadata),
        (id.as_str(), config.metadata)
    );
    assert_eq!(
        (attributes.labels, attributes.annotations),
        (config.labels, config.annotations)
    );
    let cpu = first.cpu.unwrap();
    assert_eq!(value(cpu.usage_core_nano_seconds), 2_000_000_000);
    assert_eq!(cpu.usage_nano_cores, None, "one measurement tells of no time");
    let psi = cpu.psi.unwrap().some.unwrap();
    assert_eq!((psi.total, psi.avg10), (1_000_000_000, 1.5));
    let memory = first.memory.unwrap();
    assert_eq!(value(memory.usage_bytes), 3 * MIB);
    assert_eq!(value(memory.working_set_bytes), 2 * MIB);
    assert_eq!(value(memory.available_bytes), 8 * MIB, "of a limit of 10 MiB");
    assert_eq!(value(memory.rss_bytes), MIB);
    assert!(memory.psi.unwrap().full.is_some() && first.io.unwrap().psi.is_some());
    let layer = first.writable_layer.unwrap();
    assert_eq!((value(layer.used_bytes), value(layer.inodes_used)), (4096, 3));
    let mountpoint = layer.fs_id.unwrap().mountpoint;
    rustix::fs::statvfs(&mountpoint).unwrap();
    assert_eq!(value(first.swap.unwrap().swap_usage_bytes), 0);

    std::thread::sleep(Duration::from_millis(600));
    let second = of_container(&node, &id).unwrap().cpu.unwrap();
    assert!(second.timestamp > cpu.timestamp && cpu.timestamp > 0);
    assert_eq!(value(second.usage_core_nano_seconds), 4_000_000_000);
    let elapsed_ms = u64::try_from((second.timestamp - cpu.timestamp) / 1_000_000).unwrap();
    let used_ms = value(second.usage_nano_cores) / 1_000_000 * elapsed_ms / 1000;
    assert!(
        used_ms.abs_diff(2000) < 200,
        "{used_ms} ms of 2000 in {elapsed_ms} ms"
    );
}

#[test]
fn running_containers_of_ready_pods_are_listed_by_filter() {
    let node = Node::new();
    let (p, q) = (node.run_pod("p"), node.run_pod("q"));
    let mut labelled = node.container_config("a", &["run"]);
    labelled.labels.insert("app".into(), "x".into());
    let a = node.try_create(&p, labelled).unwrap();
    node.start_container(&a).unwrap();
    let b = node.run(&p, "b", &["run"]);
    let c = node.run(&q, "c", &["run"]);
    let created = node.create(&q, "d", &["run"]);
    let exited = node.run(&q, "e", &["exit", "0"]);
    node.wait_exited(&exited);

    let sorted = |mut ids: Vec<&String>| {
        ids.sort();
        ids.into_iter().cloned().collect::<Vec<_>>()
    };
    let all = sorted(vec![&a, &b, &c]);
    let nil: HashSet<_> = list(&node, None)
        .into_iter()
        .map(|stats| stats.attributes.unwrap().id)
        .collect();
    assert_eq!(nil, all.iter().cloned().collect());
    assert_eq!(listed(&node, ContainerStatsFilter::default()), all);
    let by_id = |id: &str| ContainerStatsFilter {
        id: id.into(),
        ..Default::default()
    };
    assert_eq!(listed(&node, by_id(&a[..12])), [a.clone()]);
    assert!(listed(&node, by_id(&created)).is_empty() && listed(&node, by_id(&exited)).is_empty());
    let by_pod = ContainerStatsFilter {
        pod_sandbox_id: p.clone(),
        ..Default::default()
    };
    assert_eq!(listed(&node, by_pod.clone()), sorted(vec![&a, &b]));
    let by_label = |value: &str| ContainerStatsFilter {
        label_selector: [("app".to_owned(), value.to_owned())].into(),
        ..by_pod.clone()
    };
    assert_eq!(listed(&node, by_label("x")), [a]);
    assert!(listed(&node, by_label("y")).is_empty());
    for (id, code) in [
        (created.as_str(), Code::FailedPrecondition),
        (&exited, Code::FailedPrecondition),
        ("feed", Code::NotFound),
        ("", Code::InvalidArgument),
    ] {
        let error = of_container(&node, id).unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
    }

    node.stop_pod(&q).unwrap();
    let pods = list_pods(&node, None);
    assert_eq!(pods.len(), 1, "a pod that is not ready uses nothing");
    assert_eq!(pods[0].attributes.as_ref().unwrap().id, p);
    assert_eq!(of_pod(&node, &q).unwrap_err().code(), Code::FailedPrecondition);
    let by_id = |id: &str| PodSandboxStatsFilter {
        id: id.into(),
        ..Default::default()
    };
    assert_eq!(list_pods(&node, Some(by_id(&p[..9]))).len(), 1);
    assert!(list_pods(&node, Some(by_id(&q))).is_empty());
}

#[test]
fn a_pod_is_told_as_what_its_machine_costs_and_what_its_guest_shares() {
    let node = Node::new();
    let mut config = node.pod_config("p");
    config.labels.insert("app".into(), "x".into());
    config.linux = Some(LinuxPodSandboxConfig {
        cgroup_parent: "/kubepods/pod1".into(),
        ..Default::default()
    });
    let pod = node.try_run_pod(config.clone()).unwrap();
    let id = node.run(&pod, "c", &["run"]);
    // Where the host counts nothing, the VMM's process does.
    let stats = of_pod(&node, &pod).unwrap();
    let attributes = stats.attributes.unwrap();
    assert_eq!(
        (attributes.id.as_str(), attributes.metadata),
        (pod.as_str(), config.metadata)
    );
    assert_eq!(attributes.labels, config.labels);
    let linux = stats.linux.unwrap();
    let memory = value(linux.memory.unwrap().working_set_bytes);
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.vmm_pid(&pod))).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let resident = line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024;
    assert!(memory.abs_diff(resident) < 4 * MIB, "{memory} and {resident}");
    let process_cpu = value(linux.cpu.unwrap().usage_core_nano_seconds);

    let network = linux.network.unwrap();
    let interface = network.default_interface.unwrap();
    assert_eq!(
        (interface.name.as_str(), value(interface.rx_bytes)),
        ("eth0", 1000)
    );
    assert_eq!(network.interfaces.len(), 1);
    assert_eq!(network.interfaces[0].name, "other0");
    assert_eq!(value(linux.process.unwrap().process_count), 2);
    assert_eq!(linux.containers.len(), 1);
    assert_eq!(linux.containers[0].attributes.as_ref().unwrap().id, id);

    let group = node.pod_info(&pod)["cgroup"].as_str().unwrap().to_owned();
    assert!(group.starts_with("/kubepods/pod1/"), "{group}");
    let set = |group: &str, file: &str, text: &str| {
        let mut files = node.host.files.lock().unwrap();
        files.insert((group.to_owned(), file.to_owned()), text.to_owned());
    };
    set(
        &group,
        "cpu.stat",
        "usage_usec 9000000000\nuser_usec 6000000\nsystem_usec 3000000\n",
    );
    set(&group, "memory.current", "200000000\n");
    set(
        &group,
        "memory.stat",
        "anon 100000000\ninactive_file 50000000\npgfault 12\n",
    );
    set(&group, "memory.max", "max\n");
    set("/kubepods/pod1", "memory.max", "250000000\n");
    set(
        &group,
        "io.pressure",
        "some avg10=2.00 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
    );
    let linux = of_pod(&node, &pod).unwrap().linux.unwrap();
    let memory = linux.memory.unwrap();
    assert_eq!(value(memory.usage_bytes), 200_000_000);
    assert_eq!(value(memory.working_set_bytes), 150_000_000);
    assert_eq!(
        value(memory.available_bytes),
        100_000_000,
        "of the limit of the kubelet's group"
    );
    assert_eq!(value(memory.rss_bytes), 100_000_000);
    assert_eq!(
        value(linux.cpu.unwrap().usage_core_nano_seconds),
        9_000_000_000_000
    );
    let io = linux.io.unwrap().psi.unwrap();
    assert_eq!((io.some.unwrap().total, io.full.unwrap().total), (7000, 3000));
    // Back to what the process says, which is less.
    node.host.files.lock().unwrap().clear();
    let linux = of_pod(&node, &pod).unwrap().linux.unwrap();
    let cpu = value(linux.cpu.unwrap().usage_core_nano_seconds);
    assert!(
        cpu == 9_000_000_000_000 && process_cpu < cpu,
        "{process_cpu}, then {cpu}"
    );
}

#[test]
fn a_guest_that_lies_goes_neither_back_nor_beyond_its_machine() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["lie"]);
    let mut last = (0, 0, 0, 0);
    for _ in 0..5 {
        let stats = of_pod(&node, &pod).unwrap().linux.unwrap();
        assert_eq!(stats.containers.len(), 1, "a container of nobody is told");
        let container = &stats.containers[0];
        assert_eq!(container.attributes.as_ref().unwrap().id, id);
        let memory = container.memory.unwrap();
        assert_eq!(value(memory.usage_bytes), 128 * MIB, "more than the machine has");
        let layer = container.writable_layer.clone().unwrap();
        assert_eq!(value(layer.used_bytes), 32 * MIB);
        let network = stats.network.unwrap();
        assert!(network.interfaces.len() < 64, "{}", network.interfaces.len());
        let received = value(network.default_interface.unwrap().rx_bytes);
        let now = (
            cpu_ns(container),
            value(memory.page_faults),
            received,
            container.cpu.as_ref().unwrap().timestamp,
        );
        assert!(
            now.0 >= last.0 && now.1 >= last.1 && now.2 >= last.2 && now.3 > last.3,
            "{last:?}, then {now:?}"
        );
        last = now;
    }
    assert_eq!((last.0, last.1, last.2), (1_000_000_000, 1_000_000, 1000));
    for metrics in &metrics(&node)[0].container_metrics[0].metrics {
        assert!(
            metrics.label_values.iter().all(|label| label.len() < 200),
            "{}",
            metrics.name
        );
    }
}

#[test]
fn a_guest_that_hangs_delays_nobody_and_its_pod_is_told_by_the_host() {
    let node = Node::new();
    let hung: Vec<_> = (0..3)
        .map(|index| {
            let pod = node.run_pod(&format!("hung{index}"));
            node.run(&pod, "c", &["hang"]);
            pod
        })
        .collect();
    let refusing = node.run_pod("refusing");
    let refused = node.run(&refusing, "c", &["refuse"]);
    let good = node.run_pod("good");
    let id = node.run(&good, "c", &["run"]);

    // The first who asks waits as long as the configuration says, one second, for all three together; the next not at all.
    for most_ms in [2500, 900, 900] {
        let begun = Instant::now();
        assert_eq!(listed(&node, ContainerStatsFilter::default()), [id.clone()]);
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(most_ms), "{took:?} of {most_ms} ms");
    }
    let pods = list_pods(&node, None);
    assert_eq!(pods.len(), 5);
    for pod in &pods {
        let linux = pod.linux.as_ref().unwrap();
        assert!(value(linux.memory.as_ref().unwrap().working_set_bytes) > 0);
        let is_good = pod.attributes.as_ref().unwrap().id == good;
        assert_eq!(linux.network.is_some(), is_good);
        assert_eq!(linux.containers.len(), usize::from(is_good));
    }
    // Metrics are another call, with a patience of its own.
    let metrics = metrics(&node);
    let of_good = metrics
        .iter()
        .find(|metrics| metrics.pod_sandbox_id == good)
        .unwrap();
    assert_eq!((metrics.len(), of_good.container_metrics.len()), (5, 1));

    let error = of_container(&node, &refused).unwrap_err();
    assert_eq!(error.code(), Code::Internal, "{error:?}");
    assert!(error.message().contains("no statistics"), "{error:?}");
    let hung_container = node
        .containers()
        .into_iter()
        .find(|container| container.pod_sandbox_id == hung[0])
        .unwrap();
    let error = of_container(&node, &hung_container.id).unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    assert!(error.message().contains("timeouts.stats_seconds"), "{error:?}");
    // Nor does the call that hangs hold up the pod's end.
    let begun = Instant::now();
    node.remove_pod(&hung[0]).unwrap();
    assert!(begun.elapsed() < PATIENCE / 4);
}

#[test]
fn streams_have_all_that_lists_have_once_in_parts() {
    let node = Node::new();
    let pods: Vec<_> = (0..3).map(|index| node.run_pod(&format!("p{index}"))).collect();
    for pod in &pods {
        let mut config = node.container_config("c", &["run"]);
        // Two of them are more than a message of a stream takes.
        config.annotations.insert("large".into(), "x".repeat(600_000));
        let id = node.try_create(pod, config).unwrap();
        node.start_container(&id).unwrap();
    }
    let parts = node.streamed(async |mut c| {
        c.stream_container_stats(StreamContainerStatsRequest::default())
            .await
    });
    assert_eq!(parts.len(), 3);
    let ids: HashSet<_> = parts
        .iter()
        .flat_map(|part| &part.container_stats)
        .map(|stats| stats.attributes.clone().unwrap().id)
        .collect();
    let all: HashSet<_> = node
        .containers()
        .into_iter()
        .map(|container| container.id)
        .collect();
    assert_eq!(ids, all);
    let filter = PodSandboxStatsFilter {
        id: pods[1].clone(),
        ..Default::default()
    };
    let request = StreamPodSandboxStatsRequest { filter: Some(filter) };
    let parts = node.streamed(async |mut c| c.stream_pod_sandbox_stats(request).await);
    assert_eq!((parts.len(), parts[0].pod_sandbox_stats.len()), (1, 1));
    let parts = node.streamed(async |mut c| {
        c.stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest {})
            .await
    });
    let pods_told: HashSet<_> = parts
        .iter()
        .flat_map(|part| &part.pod_sandbox_metrics)
        .map(|metrics| metrics.pod_sandbox_id.clone())
        .collect();
    assert_eq!(pods_told, pods.into_iter().collect());
}

#[test]
fn many_pods_are_asked_at_once() {
    let node = Node::new();
    let pods: Vec<_> = (0..20).map(|index| node.run_pod(&format!("p{index}"))).collect();
    for pod in &pods {
        node.run(pod, "c", &["run"]);
    }
    assert_eq!(list(&node, None).len(), 20);
    assert_eq!(list_pods(&node, None).len(), 20);
    // Several who ask at the same time are told the same.
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..4).map(|_| scope.spawn(|| list(&node, None).len())).collect();
        for asked in asking {
            assert_eq!(asked.join().unwrap(), 20);
        }
    });
}
