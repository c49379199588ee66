//! Containers of a pod that was found running again.

use std::{collections::HashMap, sync::Arc};

use bulkhead_proto::agent::{
    AcknowledgeExitRequest, ContainerState as GuestState, Phase, RemoveContainerRequest,
};

use super::{Container, ContainerState, exit, start::open_output};
use crate::{
    daemon::Daemon,
    identity::now_ns,
    sandbox::{
        Pod,
        machine::{Machine, MachineEnd},
    },
    store::ContainerPhase,
};

/// Takes the containers of a pod over: what runs is watched again, its log goes on where it stopped.
pub(crate) async fn adopt_all(
    daemon: &Arc<Daemon>,
    pod: &Arc<Pod>,
    machine: &Arc<Machine>,
    containers: &[Arc<Container>],
    guest: Vec<GuestState>,
) {
    let mut guest: HashMap<String, GuestState> = guest
        .into_iter()
        .map(|state| (state.container_id.clone(), state))
        .collect();
    for container in containers {
        let state = guest.remove(&container.id);
        adopt(daemon, pod, machine, container, state).await;
    }
    for stranger in guest.into_keys() {
        // It was being made when the daemon ended, and nobody was told of it.
        let request = RemoveContainerRequest {
            container_id: stranger,
        };
        if let Err(error) = machine.agent().remove_container(request).await {
            tracing::warn!(pod = %pod.id, %error, "a container that nobody knows is left in the guest");
        }
    }
}

async fn adopt(
    daemon: &Arc<Daemon>,
    pod: &Arc<Pod>,
    machine: &Arc<Machine>,
    container: &Arc<Container>,
    guest: Option<GuestState>,
) {
    let phase = guest.as_ref().map(GuestState::phase);
    match (container.phase(), phase) {
        (ContainerPhase::Exited, None) | (ContainerPhase::Created, Some(Phase::Created)) => {}
        (ContainerPhase::Exited, Some(_)) => {
            let request = AcknowledgeExitRequest {
                container_id: container.id.clone(),
                exec_id: String::new(),
            };
            if let Err(error) = machine.agent().acknowledge_exit(request).await {
                tracing::debug!(container = %container.id, %error, "the agent was not told that an exit is known");
            }
        }
        (_, None) => exit::lose(daemon, container, &MachineEnd::default()).await,
        (_, Some(_)) => {
            let guest = guest.unwrap_or_default();
            // It may have been started just before the daemon ended.
            let now = now_ns();
            let started = i64::try_from(guest.started_at_ns)
                .unwrap_or(now)
                .clamp(container.created_at_ns.min(now), now);
            container.state.send_modify(|state| {
                state.phase = ContainerPhase::Running;
                state.guest_pid = guest.pid;
                if state.started_at_ns == 0 {
                    state.started_at_ns = started;
                }
            });
            match open_output(pod, container, machine).await {
                Ok(output) => {
                    tokio::spawn(exit::watch(
                        Arc::clone(daemon),
                        Arc::clone(container),
                        Arc::clone(machine),
                        output,
                    ));
                }
                Err(error) => {
                    tracing::error!(container = %container.id, %error, "the container cannot be taken over; it is ended");
                    let request = RemoveContainerRequest {
                        container_id: container.id.clone(),
                    };
                    let _ = machine.agent().remove_container(request).await;
                    let state = ContainerState {
                        phase: ContainerPhase::Exited,
                        finished_at_ns: now,
                        exit_code: 255,
                        reason: "Unknown".to_owned(),
                        message: format!("it could not be taken over by a new daemon: {error}"),
                        guest_pid: 0,
                        ..container.state()
                    };
                    exit::show(daemon, container, state).await;
                }
            }
        }
    }
}
