//! Statistics in CRI's words.

use std::sync::Arc;

use bulkhead_proto::{
    agent::{self, InterfaceStats},
    cri::{
        ContainerAttributes, ContainerFilter, ContainerStateValue, ContainerStats, ContainerStatsFilter,
        CpuUsage, FilesystemIdentifier, FilesystemUsage, IoUsage, LinuxPodSandboxStats, MemoryUsage,
        NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes, PodSandboxFilter, PodSandboxStateValue,
        PodSandboxStats, PodSandboxStatsFilter, ProcessUsage, PsiData, PsiStats, SwapUsage, UInt64Value,
    },
};

use super::{answers, error::Failure, filter};
use crate::{
    container::Container,
    daemon::Daemon,
    sandbox::{Pod, PodError},
    stats::{self, ContainerUsage, Detail, GuestUsage, PodUsage, Usage},
    store::ContainerPhase,
};

/// The interface that the cluster's network gives every pod.
const DEFAULT_INTERFACE: &str = "eth0";

/// The running containers that `filter` lets pass. Those whose guests do not answer in time are left out.
pub(super) async fn of_containers(
    daemon: &Arc<Daemon>,
    filter: Option<ContainerStatsFilter>,
) -> Vec<ContainerStats> {
    let running = ContainerStateValue {
        state: answers::container_state(ContainerPhase::Running).into(),
    };
    let filter = filter.unwrap_or_default();
    let filter = ContainerFilter {
        id: filter.id,
        state: Some(running),
        pod_sandbox_id: filter.pod_sandbox_id,
        label_selector: filter.label_selector,
    };
    let mut containers = daemon.containers.all();
    containers.retain(|container| {
        let state = answers::container_state(container.phase());
        let labels = &container.config.labels;
        filter::container(Some(&filter), &container.id, &container.pod_id, state, labels)
    });
    let usages = stats::of_containers(daemon, &containers).await;
    let mountpoint = mountpoint(daemon);
    usages
        .iter()
        .map(|usage| container_stats(&mountpoint, usage))
        .collect()
}

/// One running container.
pub(super) async fn of_container(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
) -> Result<ContainerStats, Failure> {
    let usage = stats::of_container(daemon, container).await?;
    Ok(container_stats(&mountpoint(daemon), &usage))
}

/// The ready pods that `filter` lets pass.
pub(super) async fn of_pods(
    daemon: &Arc<Daemon>,
    filter: Option<PodSandboxStatsFilter>,
) -> Vec<PodSandboxStats> {
    let filter = filter.unwrap_or_default();
    let filter = PodSandboxFilter {
        id: filter.id,
        state: Some(PodSandboxStateValue::default()),
        label_selector: filter.label_selector,
    };
    let mut pods = daemon.pods.all();
    pods.retain(|pod| {
        filter::pod(
            Some(&filter),
            &pod.id,
            answers::pod_state(pod),
            &pod.config.labels,
        )
    });
    let usages = stats::of_pods(daemon, pods, Detail::Figures).await;
    let mountpoint = mountpoint(daemon);
    usages.iter().map(|usage| pod_stats(&mountpoint, usage)).collect()
}

/// One ready pod.
pub(super) async fn of_pod(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<PodSandboxStats, Failure> {
    let usages = stats::of_pods(daemon, vec![Arc::clone(pod)], Detail::Figures).await;
    match usages.first() {
        Some(usage) => Ok(pod_stats(&mountpoint(daemon), usage)),
        None => Err(PodError::NotReady {
            id: pod.id.clone(),
            why: pod.state().message,
        }
        .into()),
    }
}

/// What `ImageFsInfo` names: the disks that containers write to are files of the same file system.
fn mountpoint(daemon: &Daemon) -> String {
    daemon.images.usage().mountpoint.to_string_lossy().into_owned()
}

fn container_stats(mountpoint: &str, usage: &ContainerUsage) -> ContainerStats {
    let ContainerUsage { container, usage } = usage;
    let figures = &usage.figures;
    let writable_layer = figures.writable_layer_bytes.map(|bytes| FilesystemUsage {
        timestamp: usage.at_ns,
        fs_id: Some(FilesystemIdentifier {
            mountpoint: mountpoint.to_owned(),
        }),
        used_bytes: value(bytes),
        inodes_used: figures.writable_layer_inodes.and_then(value),
    });
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: container.id.clone(),
            metadata: container.config.metadata.clone(),
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
        }),
        cpu: Some(cpu(usage)),
        memory: Some(memory(usage)),
        writable_layer,
        swap: Some(SwapUsage {
            timestamp: usage.at_ns,
            swap_available_bytes: figures
                .memory_swap_limit_bytes
                .and_then(|limit| value(limit.saturating_sub(figures.memory_swap_bytes))),
            swap_usage_bytes: value(figures.memory_swap_bytes),
        }),
        io: Some(io(usage)),
    }
}

fn pod_stats(mountpoint: &str, usage: &PodUsage) -> PodSandboxStats {
    let PodUsage { pod, machine, guest } = usage;
    let machine = machine.as_ref();
    let guest = guest.as_deref();
    let containers = guest.map_or_else(Vec::new, |guest| {
        guest
            .containers
            .iter()
            .map(|usage| container_stats(mountpoint, usage))
            .collect()
    });
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: pod.id.clone(),
            metadata: pod.config.metadata.clone(),
            labels: pod.config.labels.clone(),
            annotations: pod.config.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: machine.map(cpu),
            memory: machine.map(memory),
            network: guest.map(network),
            process: guest.map(|guest| ProcessUsage {
                timestamp: guest.at_ns,
                process_count: value(guest.processes),
            }),
            containers,
            io: machine.map(io),
        }),
        windows: None,
    }
}

fn cpu(usage: &Usage) -> CpuUsage {
    CpuUsage {
        timestamp: usage.at_ns,
        usage_core_nano_seconds: value(usage.figures.cpu_usage_us.saturating_mul(1000)),
        usage_nano_cores: usage.nano_cores.and_then(value),
        psi: usage.figures.cpu_pressure.as_ref().map(psi),
    }
}

fn memory(usage: &Usage) -> MemoryUsage {
    let figures = &usage.figures;
    let available = figures
        .memory_limit_bytes
        .map(|limit| limit.saturating_sub(figures.memory_working_set_bytes));
    MemoryUsage {
        timestamp: usage.at_ns,
        working_set_bytes: value(figures.memory_working_set_bytes),
        available_bytes: available.and_then(value),
        usage_bytes: value(figures.memory_usage_bytes),
        rss_bytes: value(figures.memory_rss_bytes),
        page_faults: value(figures.memory_page_faults),
        major_page_faults: value(figures.memory_major_page_faults),
        psi: figures.memory_pressure.as_ref().map(psi),
    }
}

fn io(usage: &Usage) -> IoUsage {
    IoUsage {
        timestamp: usage.at_ns,
        psi: usage.figures.io_pressure.as_ref().map(psi),
    }
}

fn psi(pressure: &agent::Pressure) -> PsiStats {
    let line = |line: &agent::PressureLine| PsiData {
        total: line.total_us.saturating_mul(1000),
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    PsiStats {
        full: pressure.full.as_ref().map(line),
        some: pressure.some.as_ref().map(line),
    }
}

fn network(guest: &GuestUsage) -> NetworkUsage {
    let mut interfaces: Vec<_> = guest.interfaces.iter().map(interface).collect();
    let default = interfaces
        .iter()
        .position(|interface| interface.name == DEFAULT_INTERFACE)
        .or(if interfaces.is_empty() { None } else { Some(0) });
    NetworkUsage {
        timestamp: guest.at_ns,
        default_interface: default.map(|index| interfaces.remove(index)),
        interfaces,
    }
}

fn interface(interface: &InterfaceStats) -> NetworkInterfaceUsage {
    NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: value(interface.received_bytes),
        rx_errors: value(interface.receive_errors),
        tx_bytes: value(interface.sent_bytes),
        tx_errors: value(interface.send_errors),
    }
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "every field of CRI that it is for is optional"
)]
fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}
