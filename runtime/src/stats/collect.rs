//! Statistics of many pods: their guests are asked at once, and the host is read meanwhile.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};

use super::{
    ContainerUsage, GuestUsage, OfContainerError, PodUsage, StatsError, Usage,
    guest::{self, Unknown},
    machine,
};
use crate::{
    container::{Container, ContainerError},
    daemon::Daemon,
    sandbox::Pod,
    store::ContainerPhase,
};

/// Guests that are asked at the same time.
const AT_ONCE: usize = 64;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What control groups tell.
    Figures,
    /// Also what takes a look at every process: open files, sockets, limits.
    Processes,
}

/// The use of these containers, of those that run and whose guests answer in time.
pub async fn of_containers(daemon: &Arc<Daemon>, containers: &[Arc<Container>]) -> Vec<ContainerUsage> {
    let wanted: HashSet<&str> = containers.iter().map(|container| container.id.as_str()).collect();
    let mut pods: Vec<&str> = containers
        .iter()
        .map(|container| container.pod_id.as_str())
        .collect();
    pods.sort_unstable();
    pods.dedup();
    let pods = pods
        .into_iter()
        .filter_map(|id| daemon.pods.find(id).ok())
        .collect();
    let guests = guests(daemon, pods, Detail::Figures).await;
    let usages = guests.iter().flatten().flat_map(|guest| &guest.containers);
    usages
        .filter(|usage| wanted.contains(usage.container.id.as_str()))
        .cloned()
        .collect()
}

/// The use of one running container.
///
/// # Errors
///
/// [`OfContainerError`].
pub async fn of_container(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
) -> Result<ContainerUsage, OfContainerError> {
    let not_running = || container.wrong_state("measured", "");
    if container.phase() != ContainerPhase::Running {
        return Err(not_running().into());
    }
    let pod = daemon.pods.find(&container.pod_id)?;
    let machine = pod.machine().map_err(ContainerError::Pod)?;
    let patience = daemon.config.timeouts.stats();
    let asked = guest::ask(daemon, &pod, &machine, Detail::Figures, patience).await;
    let guest = asked.map_err(|unknown| match unknown {
        Unknown::Silent => StatsError::Silent {
            id: container.id.clone(),
            after: patience,
        },
        Unknown::Agent(source) => StatsError::Agent {
            id: container.id.clone(),
            source,
        },
    })?;
    let own = guest
        .containers
        .iter()
        .find(|usage| usage.container.id == container.id);
    // It may have ended meanwhile.
    own.cloned().ok_or_else(|| not_running().into())
}

/// The use of these pods, of those that are ready. One whose guest does not answer in time is told by what the host knows.
pub async fn of_pods(daemon: &Arc<Daemon>, pods: Vec<Arc<Pod>>, detail: Detail) -> Vec<PodUsage> {
    let ready: Vec<_> = pods.into_iter().filter(|pod| pod.machine().is_ok()).collect();
    let (host, to_read) = (Arc::clone(daemon), ready.clone());
    let machines = tokio::task::spawn_blocking(move || -> Vec<Option<Usage>> {
        to_read.iter().map(|pod| of_machine(&host, pod)).collect()
    });
    let (machines, guests) = tokio::join!(machines, guests(daemon, ready.clone(), detail));
    let machines = machines.unwrap_or_else(|panic| {
        tracing::error!(%panic, "what machines cost the host cannot be read");
        vec![None; ready.len()]
    });
    ready
        .into_iter()
        .zip(machines)
        .zip(guests)
        .map(|((pod, machine), guest)| PodUsage { pod, machine, guest })
        .collect()
}

fn of_machine(daemon: &Daemon, pod: &Pod) -> Option<Usage> {
    let machine = pod.machine().ok()?;
    let figures = machine::figures(&*daemon.host, pod, machine.identity().pid)?;
    Some(pod.history.add(figures))
}

/// What each pod's guest says, in the order of the pods.
async fn guests(daemon: &Arc<Daemon>, pods: Vec<Arc<Pod>>, detail: Detail) -> Vec<Option<Arc<GuestUsage>>> {
    let patience = daemon.config.timeouts.stats();
    let asked = pods
        .into_iter()
        .map(|pod| one(Arc::clone(daemon), pod, detail, patience));
    stream::iter(asked).buffered(AT_ONCE).collect().await
}

async fn one(
    daemon: Arc<Daemon>,
    pod: Arc<Pod>,
    detail: Detail,
    patience: Duration,
) -> Option<Arc<GuestUsage>> {
    let machine = pod.machine().ok()?;
    guest::ask(&daemon, &pod, &machine, detail, patience).await.ok()
}
