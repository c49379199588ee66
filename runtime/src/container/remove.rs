//! RemoveContainer: ends a container if need be and forgets it.

use std::sync::Arc;

use bulkhead_proto::agent::RemoveContainerRequest;

use super::{Container, ContainerError, agent_error, stop::stop_running};
use crate::daemon::Daemon;

/// Removes a container; its log stays, it is the kubelet's. Removed by somebody else meanwhile is fine.
///
/// # Errors
///
/// [`ContainerError`]; then it is still listed.
pub async fn remove(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<(), ContainerError> {
    let _turn = container.turns.take().await;
    if daemon.containers.find(&container.id).is_err() {
        return Ok(());
    }
    stop_running(daemon, container, 0).await?;
    if let Ok(pod) = daemon.pods.find(&container.pod_id) {
        if let Ok(machine) = pod.machine() {
            let request = RemoveContainerRequest {
                container_id: container.id.clone(),
            };
            // With the machine, all of it is gone.
            let removed = tokio::select! {
                removed = machine.agent().remove_container(request) => removed.map(drop),
                _ = machine.ended() => Ok(()),
            };
            if let Err(error) = removed
                && machine.end_behind(&error).await.is_none()
            {
                return Err(agent_error(container)(error));
            }
        }
        let note = pod.paths.log_position(&container.id);
        if let Err(error) = tokio::fs::remove_file(&note).await {
            tracing::trace!(container = %container.id, %error, "there is no note of the log's position");
        }
    }
    daemon.store.remove_container(container.id.clone()).await?;
    daemon.forget_container(container);
    tracing::info!(pod = %container.pod_id, container = %container.id, "removed a container");
    Ok(())
}
