//! Pods and containers, as lists of them are asked for.

use bulkhead_proto::cri::{Container, ContainerFilter, PodSandbox, PodSandboxFilter};

use super::{answers, filter};
use crate::daemon::Daemon;

/// The pods that `filter` lets pass.
pub(super) fn pods(daemon: &Daemon, filter: Option<&PodSandboxFilter>) -> Vec<PodSandbox> {
    let pods = daemon.pods.all();
    let asked = pods
        .iter()
        .filter(|pod| filter::pod(filter, &pod.id, answers::pod_state(pod), &pod.config.labels));
    asked.map(|pod| answers::pod_item(pod)).collect()
}

/// The containers that `filter` lets pass.
pub(super) fn containers(daemon: &Daemon, filter: Option<&ContainerFilter>) -> Vec<Container> {
    let containers = daemon.containers.all();
    let asked = containers.iter().filter(|container| {
        let state = answers::container_state(container.phase());
        filter::container(
            filter,
            &container.id,
            &container.pod_id,
            state,
            &container.config.labels,
        )
    });
    asked
        .map(|container| answers::container_item(container))
        .collect()
}
