//! The use that one container makes of processor, memory, disks and processes.

use bulkhead_proto::agent::ContainerStats;
use tokio::time::Instant;

use super::{
    control_files::{ControlFiles, from_files},
    processes::{self, Budget},
};
use crate::container::state::Container;

/// Reads everything there is to know; with a `budget` also what takes a look at every process. What the kernel does not
/// count is 0 or absent. A measurement of the writable layer that is under way is waited for until `deadline`.
pub async fn of_container(
    container: &Container,
    budget: Option<&mut Budget>,
    deadline: Instant,
) -> ContainerStats {
    let layer = container.usage().latest(deadline).await;
    let processes = container.cgroup().processes();
    let mut stats = ContainerStats {
        container_id: container.id().to_owned(),
        writable_layer_bytes: layer.map(|layer| layer.bytes),
        writable_layer_inodes: layer.map(|layer| layer.inodes),
        processes: u64::try_from(processes.len()).unwrap_or(u64::MAX),
        ..from_files(&ControlFiles::of(container.cgroup()))
    };
    if let Some(budget) = budget {
        stats.open_files = Some(processes::open_files(&processes, budget));
        stats.soft_limits = processes::soft_limits(container.first().pid());
    }
    stats
}
