//! ListMetricDescriptors and ListPodSandboxMetrics: what the kubelet shows at /metrics/cadvisor.
//!
//! Descriptors and metrics are made of one table, so every metric has the labels that its descriptor says. The first labels
//! are those of cAdvisor, and so are their values: `container` and `image` are empty for what a pod as a whole uses.

mod families;

use std::sync::Arc;

use bulkhead_proto::cri::{ContainerMetrics, Metric, MetricDescriptor, PodSandboxMetrics, UInt64Value};

use crate::{
    container::Container,
    daemon::Daemon,
    sandbox::Pod,
    stats::{self, Detail, PodUsage},
};
use families::{ContainerScope, FAMILIES, Family, Of, Value};

/// Labels that every metric has.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// All metrics that there can be.
pub(super) fn descriptors() -> Vec<MetricDescriptor> {
    let descriptor = |family: &Family| MetricDescriptor {
        name: family.name.to_owned(),
        help: family.help.to_owned(),
        label_keys: LABELS
            .iter()
            .chain(family.labels)
            .map(|label| (*label).to_owned())
            .collect(),
    };
    FAMILIES.iter().map(descriptor).collect()
}

/// The metrics of all ready pods.
pub(super) async fn of_pods(daemon: &Arc<Daemon>) -> Vec<PodSandboxMetrics> {
    let usages = stats::of_pods(daemon, daemon.pods.all(), Detail::Processes).await;
    usages.iter().map(of_pod).collect()
}

fn of_pod(usage: &PodUsage) -> PodSandboxMetrics {
    let pod = &usage.pod;
    let labels = pod_labels(pod);
    let mut metrics = Vec::new();
    for family in FAMILIES {
        let values = match (family.of, &usage.machine) {
            (Of::Both(values), Some(machine)) => values(machine),
            (Of::Pod(values), _) => values(usage),
            _ => Vec::new(),
        };
        metrics.extend(values.into_iter().map(|value| metric(family, &labels, value)));
    }
    let container_metrics = usage.guest.as_deref().map_or_else(Vec::new, |guest| {
        let scopes = guest
            .containers
            .iter()
            .map(|usage| ContainerScope { usage, guest });
        scopes.map(|scope| of_container(pod, &scope)).collect()
    });
    PodSandboxMetrics {
        pod_sandbox_id: pod.id.clone(),
        metrics,
        container_metrics,
    }
}

fn of_container(pod: &Pod, scope: &ContainerScope<'_>) -> ContainerMetrics {
    let container = &scope.usage.container;
    let labels = container_labels(pod, container);
    let mut metrics = Vec::new();
    for family in FAMILIES {
        let values = match family.of {
            Of::Both(values) => values(&scope.usage.usage),
            Of::Container(values) => values(scope),
            Of::Pod(_) => Vec::new(),
        };
        metrics.extend(values.into_iter().map(|value| metric(family, &labels, value)));
    }
    ContainerMetrics {
        container_id: container.id.clone(),
        metrics,
    }
}

fn metric(family: &Family, labels: &[String; LABELS.len()], value: Value) -> Metric {
    Metric {
        name: family.name.to_owned(),
        // Measured when it was asked for.
        timestamp: 0,
        metric_type: family.kind.into(),
        label_values: labels.iter().cloned().chain(value.labels).collect(),
        value: Some(UInt64Value { value: value.value }),
    }
}

/// In the order of [`LABELS`].
fn pod_labels(pod: &Pod) -> [String; LABELS.len()] {
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    [
        String::new(),
        pod.cgroup.clone(),
        String::new(),
        pod.id.clone(),
        metadata.namespace,
        metadata.name,
    ]
}

fn container_labels(pod: &Pod, container: &Container) -> [String; LABELS.len()] {
    let [_, group, _, _, namespace, name] = pod_labels(pod);
    [
        container.config.metadata.clone().unwrap_or_default().name,
        format!("{group}/{}", container.id),
        container.image.name.clone(),
        container.id.clone(),
        namespace,
        name,
    ]
}
