//! StopContainer: the stop signal, a time to act on it, then SIGKILL.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::agent::SignalProcessRequest;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Container, ContainerError, agent_error, signal};
use crate::{
    daemon::Daemon,
    sandbox::{Pod, machine::Machine},
    store::ContainerPhase,
};

/// How long a killed container's output may take to reach its log before it is given up.
const LOG_GRACE: Duration = Duration::from_secs(3);

/// How long the guest may take to end all containers of a pod that is stopped: then its machine is killed anyway.
const KILL_ALL: Duration = Duration::from_secs(10);

/// Longest grace that is counted, so that times can be added: a century.
const LONGEST_GRACE_S: u64 = 100 * 365 * 86400;

/// Stops a container within `grace_s` seconds, at once for 0. When this returns it is exited. A second request with less
/// time shortens the first one's.
///
/// # Errors
///
/// [`ContainerError`]; a container that is not running is none.
pub async fn stop(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
    grace_s: i64,
) -> Result<(), ContainerError> {
    // A start that is under way is waited for, or it would be stopped too early.
    drop(container.turns.take().await);
    stop_running(daemon, container, grace_s).await
}

/// As [`stop`], for one whose turn it is already.
pub(super) async fn stop_running(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
    grace_s: i64,
) -> Result<(), ContainerError> {
    if container.phase() != ContainerPhase::Running {
        return Ok(());
    }
    let pod = daemon.pods.find(&container.pod_id)?;
    let Some(machine) = pod.state().machine else {
        // Its machine is gone; that it is exited is being written down.
        return wait_for_exit(container, daemon.config.timeouts.agent()).await;
    };
    let grace = Duration::from_secs(u64::try_from(grace_s).unwrap_or(0).min(LONGEST_GRACE_S));
    let deadline = Instant::now() + grace;
    let mut first = false;
    container.kill_at.send_if_modified(|kill_at| {
        first = kill_at.is_none();
        let sooner = kill_at.is_none_or(|kill_at| deadline < kill_at);
        if sooner {
            *kill_at = Some(deadline);
        }
        sooner
    });
    if !first {
        // Whoever came first does it, by then. Its own answer says what goes wrong.
        return wait_for_exit(container, grace + daemon.config.timeouts.agent() * 2).await;
    }
    let stopped = signal_and_wait(daemon, container, &machine, !grace.is_zero()).await;
    container.kill_at.send_replace(None);
    stopped
}

/// Kills every running container of a pod at once, as far as the guest does it.
pub(crate) async fn kill_all(daemon: &Arc<Daemon>, pod: &Arc<Pod>) {
    let containers = daemon.containers_of(&pod.id);
    let kills = containers.iter().map(|container| async move {
        if let Err(error) = stop_running(daemon, container, 0).await {
            tracing::warn!(pod = %pod.id, container = %container.id, %error, "the container ends with its machine");
        }
    });
    if timeout(KILL_ALL, join_all(kills)).await.is_err() {
        tracing::warn!(pod = %pod.id, "the guest does not end its containers; they end with their machine");
    }
}

async fn signal_and_wait(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
    machine: &Arc<Machine>,
    ask_first: bool,
) -> Result<(), ContainerError> {
    let mut kill_at = container.kill_at.subscribe();
    if ask_first {
        tracing::info!(container = %container.id, signal = container.stop_signal, "stopping a container");
        send(container, machine, container.stop_signal, false).await?;
        loop {
            let deadline = (*kill_at.borrow_and_update()).unwrap_or_else(Instant::now);
            tokio::select! {
                () = container.exited() => return Ok(()),
                () = sleep_until(deadline) => break,
                _ = kill_at.changed() => {}
            }
        }
        tracing::info!(container = %container.id, "the container did not stop in time and is killed");
    }
    send(container, machine, signal::KILL, true).await?;
    if timeout(LOG_GRACE, container.exited()).await.is_ok() {
        return Ok(());
    }
    if let Some(log) = container.open_log() {
        log.give_up.cancel();
    }
    wait_for_exit(container, daemon.config.timeouts.agent()).await
}

async fn send(
    container: &Arc<Container>,
    machine: &Machine,
    signal: u32,
    all: bool,
) -> Result<(), ContainerError> {
    let request = SignalProcessRequest {
        container_id: container.id.clone(),
        exec_id: String::new(),
        signal,
        all,
    };
    let sent = tokio::select! {
        sent = machine.agent().signal_process(request) => sent,
        // It ends by itself, or with its machine: then there is nobody to signal.
        () = container.exited() => return Ok(()),
        _ = machine.ended() => return Ok(()),
    };
    match sent {
        Err(error) if machine.end_behind(&error).await.is_none() => Err(agent_error(container)(error)),
        _ => Ok(()),
    }
}

async fn wait_for_exit(container: &Container, bound: Duration) -> Result<(), ContainerError> {
    timeout(bound, container.exited())
        .await
        .map_err(|_| ContainerError::Unkillable {
            id: container.id.clone(),
        })
}
