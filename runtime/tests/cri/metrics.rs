//! The metrics that the kubelet exports for the runtime.

use std::collections::{HashMap, HashSet};

use bulkhead_proto::cri::*;

use crate::{
    node::Node,
    stats::{MIB, metrics, value},
};

fn descriptors(node: &Node) -> HashMap<String, MetricDescriptor> {
    let request = ListMetricDescriptorsRequest {};
    let answer = node.runtime(async |mut c| c.list_metric_descriptors(request).await);
    let descriptors = answer.unwrap().descriptors;
    let count = descriptors.len();
    let by_name: HashMap<_, _> = descriptors
        .into_iter()
        .map(|descriptor| (descriptor.name.clone(), descriptor))
        .collect();
    assert_eq!(by_name.len(), count, "a name is described once");
    by_name
}

#[test]
fn every_metric_is_described_and_has_the_labels_of_its_description() {
    let node = Node::new();
    let descriptors = descriptors(&node);
    for descriptor in descriptors.values() {
        assert!(descriptor.name.starts_with("container_"), "{}", descriptor.name);
        assert!(
            !descriptor.help.is_empty() && !descriptor.label_keys.is_empty(),
            "{}",
            descriptor.name
        );
        let keys: HashSet<_> = descriptor.label_keys.iter().collect();
        assert_eq!(keys.len(), descriptor.label_keys.len(), "{}", descriptor.name);
    }
    let pod = node.run_pod("p");
    let mut config = node.container_config("c", &["run"]);
    config.linux = Some(LinuxContainerConfig {
        resources: Some(LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 20_000,
            cpu_shares: 1024,
            ..Default::default()
        }),
        ..Default::default()
    });
    let id = node.try_create(&pod, config).unwrap();
    node.start_container(&id).unwrap();
    let told = metrics(&node).remove(0);
    let container = &told.container_metrics[0];
    assert_eq!(container.container_id, id);
    let mut values: HashMap<&str, Vec<&Metric>> = HashMap::new();
    for metric in told.metrics.iter().chain(&container.metrics) {
        let described = &descriptors[&metric.name].label_keys;
        assert_eq!(metric.label_values.len(), described.len(), "{}", metric.name);
        assert!(metric.value.is_some(), "{}", metric.name);
        values.entry(&metric.name).or_default().push(metric);
    }
    let silent: Vec<_> = descriptors
        .keys()
        .filter(|name| !values.contains_key(name.as_str()))
        .collect();
    assert!(silent.is_empty(), "described and never told: {silent:?}");

    let labels = |metric: &Metric| -> HashMap<String, String> {
        let keys = descriptors[&metric.name].label_keys.iter().cloned();
        keys.zip(metric.label_values.iter().cloned()).collect()
    };
    let of_container = |name: &str| -> Vec<&Metric> {
        let metrics = container.metrics.iter();
        metrics.filter(|metric| metric.name == name).collect()
    };
    let cpu = of_container("container_cpu_usage_seconds_total")[0];
    assert_eq!((value(cpu.value), cpu.metric_type()), (2, MetricType::Counter));
    let cpu = labels(cpu);
    for (key, expected) in [
        ("container", "c"),
        ("pod", "p"),
        ("namespace", "test"),
        ("name", id.as_str()),
        ("image", &node.image),
        ("cpu", "total"),
    ] {
        assert_eq!(cpu[key], expected, "{key}");
    }
    for (name, expected) in [
        ("container_memory_working_set_bytes", 2 * MIB),
        ("container_memory_max_usage_bytes", 4 * MIB),
        ("container_spec_cpu_quota", 20_000),
        ("container_spec_cpu_shares", 1024),
        ("container_spec_memory_limit_bytes", 10 * MIB),
        ("container_file_descriptors", 5),
        ("container_sockets", 1),
        ("container_threads", 2),
        ("container_threads_max", 0),
        ("container_pressure_io_stalled_seconds_total", 1),
        ("container_fs_inodes_free", 90),
    ] {
        assert_eq!(value(of_container(name)[0].value), expected, "{name}");
    }
    let limit = of_container("container_ulimits_soft")[0];
    assert_eq!(
        (labels(limit)["ulimit"].as_str(), value(limit.value)),
        ("max_open_files", 1024)
    );
    let read = of_container("container_blkio_device_usage_total")[0];
    let read_labels = labels(read);
    assert_eq!(
        (read_labels["device"].as_str(), read_labels["operation"].as_str()),
        ("/dev/vda", "Read")
    );
    assert_eq!(value(read.value), 512);
    let received = &values["container_network_receive_bytes_total"];
    let by_interface: HashMap<_, _> = received
        .iter()
        .map(|metric| (labels(metric)["interface"].clone(), value(metric.value)))
        .collect();
    assert_eq!(by_interface["eth0"], 1000);
    let of_machine = told
        .metrics
        .iter()
        .find(|metric| metric.name == "container_memory_usage_bytes")
        .unwrap();
    let of_machine = labels(of_machine);
    assert_eq!(
        (of_machine["container"].as_str(), of_machine["image"].as_str()),
        ("", "")
    );
}
