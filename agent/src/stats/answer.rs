//! The answer to one request for statistics.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::agent::StatsResponse;
use tokio::time::Instant;

use super::{containers, guest, processes::Budget};
use crate::{
    container::state::Container,
    init::{clock, reaper::Reaper},
};

/// How long the measurements of all writable layers together are waited for.
const PATIENCE: Duration = Duration::from_millis(300);

/// The use of `wanted` and of what the containers of the pod, `all`, share. `look_at_processes` is what it says.
pub async fn of(
    wanted: &[Arc<Container>],
    all: &[Arc<Container>],
    look_at_processes: bool,
    reaper: &Reaper,
) -> StatsResponse {
    for container in wanted {
        container.usage().refresh(container.writable().upper(), reaper);
    }
    let deadline = Instant::now() + PATIENCE;
    let mut budget = look_at_processes.then(Budget::default);
    let mut stats = Vec::with_capacity(wanted.len());
    for container in wanted {
        stats.push(containers::of_container(container, budget.as_mut(), deadline).await);
    }
    let processes: usize = all
        .iter()
        .map(|container| container.cgroup().processes().len())
        .sum();
    StatsResponse {
        containers: stats,
        taken_at_ns: clock::realtime_ns(),
        interfaces: guest::interfaces(),
        scratch: guest::scratch(),
        processes: u64::try_from(processes).unwrap_or(u64::MAX),
    }
}
