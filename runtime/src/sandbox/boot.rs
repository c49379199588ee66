//! Boots a pod's machine: from its control group and scratch disk to its agent's hello.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::agent::HelloResponse;
use tokio_util::sync::CancellationToken;

use super::{
    error::PodError,
    machine::{Machine, MachinePlan},
    pod::Pod,
    rollback::Rollback,
    run::{Lap, StartupTimes, blocking},
};
use crate::daemon::Daemon;

/// Makes what the machine needs, starts it, and waits for its agent. What takes it back is added to `rollback`, and how long it
/// took written to `times`.
///
/// # Errors
///
/// [`PodError`], [`PodError::Cancelled`] among them.
pub(super) async fn boot(
    daemon: &Arc<Daemon>,
    pod: &Pod,
    cancelled: &CancellationToken,
    rollback: &mut Rollback,
    times: &mut StartupTimes,
) -> Result<(Arc<Machine>, HelloResponse), PodError> {
    let mut lap = Lap::start();
    let machine_error = |source| PodError::Machine {
        id: pod.id.clone(),
        source,
    };
    let cancellation = || PodError::Cancelled { id: pod.id.clone() };

    let (host, cgroup) = (Arc::clone(&daemon.host), pod.cgroup.clone());
    rollback.add("control group", blocking(move || host.remove_cgroup(&cgroup)));
    let (cgroup, scratch) = tokio::join!(make_cgroup(daemon, pod), make_scratch(daemon, pod));
    scratch?;
    let cgroup = cgroup?;
    times.resources = lap.end();
    if cancelled.is_cancelled() {
        return Err(cancellation());
    }

    let plan = MachinePlan {
        name: pod.id.clone(),
        paths: pod.paths.clone(),
        size: pod.size,
        defaults: daemon.config.vm_of(&pod.runtime_handler),
        cgroup,
        timeout: daemon.config.timeouts.agent(),
    };
    let machine = Arc::new(Machine::start(plan).await.map_err(machine_error)?);
    let to_kill = Arc::clone(&machine);
    rollback.add("virtual machine", async move { to_kill.kill().await });
    times.spawn = lap.end();

    let hello = tokio::select! {
        hello = machine.wait_for_agent(daemon.config.timeouts.boot()) => hello.map_err(machine_error)?,
        () = cancelled.cancelled() => return Err(cancellation()),
    };
    times.boot = lap.end();
    times.guest_kernel = Duration::from_nanos(hello.agent_started_ns);
    times.guest_agent = Duration::from_nanos(hello.ready_ns.saturating_sub(hello.agent_started_ns));
    Ok((machine, hello))
}

async fn make_cgroup(daemon: &Arc<Daemon>, pod: &Pod) -> Result<Option<std::fs::File>, PodError> {
    let (host, path) = (Arc::clone(&daemon.host), pod.cgroup.clone());
    blocking(move || host.create_cgroup(&path))
        .await
        .map_err(|source| PodError::Host {
            id: pod.id.clone(),
            action: format!("make the control group {}", pod.cgroup),
            source,
        })
}

async fn make_scratch(daemon: &Arc<Daemon>, pod: &Pod) -> Result<(), PodError> {
    let (templates, mib, path) = (daemon.scratch.clone(), pod.size.scratch_mib, pod.paths.scratch());
    let copied = tokio::task::spawn_blocking(move || templates.copy(mib, &path)).await;
    copied
        .map_err(|_| PodError::Interrupted)?
        .map_err(|source| PodError::Scratch {
            id: pod.id.clone(),
            source,
        })
}
