//! The end of a pod: on request, or because its machine ended.

use std::{fs, io, path::Path, sync::Arc};

use super::{
    error::PodError,
    machine::{Machine, MachineEnd},
    network,
    paths::PodPaths,
    pod::Pod,
    run::blocking,
};
use crate::{
    container,
    daemon::Daemon,
    events::{Change, Subject},
    store::PodPhase,
};

/// StopPodSandbox: ends the containers and the machine, and frees what the pod held. When this returns, all of it is gone.
/// A pod that is stopped already, or half, is stopped again.
///
/// # Errors
///
/// [`PodError`] where something could not be removed; the pod is not ready then, and may be stopped again.
pub async fn stop(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<(), PodError> {
    let _turn = pod.turns.take().await;
    stop_in_turn(daemon, pod).await
}

/// RemovePodSandbox: stops the pod, removes its containers and forgets it.
///
/// # Errors
///
/// [`PodError`] where something could not be removed; the pod is still listed then.
pub async fn remove(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<(), PodError> {
    let _turn = pod.turns.take().await;
    if daemon.pods.find(&pod.id).is_err() {
        return Ok(());
    }
    stop_in_turn(daemon, pod).await?;
    for container in daemon.containers_of(&pod.id) {
        container::remove::remove(daemon, &container)
            .await
            .map_err(|source| PodError::Container {
                id: pod.id.clone(),
                source: Box::new(source),
            })?;
    }
    let paths = pod.paths.clone();
    blocking(move || remove_files(&paths))
        .await
        .map_err(|source| PodError::Host {
            id: pod.id.clone(),
            action: "remove the pod's files".to_owned(),
            source,
        })?;
    let left = daemon
        .containers_of(&pod.id)
        .iter()
        .map(|container| container.id.clone())
        .collect();
    daemon.store.remove_pod(pod.id.clone(), left).await?;
    daemon.events.step(daemon, Subject::Pod(pod), || {
        daemon.pods.remove(&pod.id);
        vec![Change::Deleted]
    });
    tracing::info!(pod = %pod.id, "the pod is removed");
    Ok(())
}

/// Waits for the end of a pod's machine. Where nobody has asked for it, the pod is not ready from then on.
pub(super) async fn watch(daemon: Arc<Daemon>, pod: Arc<Pod>, machine: Arc<Machine>) {
    let end = machine.ended().await;
    let mut unexpected = false;
    pod.change(|state| {
        if state.phase == PodPhase::Ready {
            unexpected = true;
            state.phase = PodPhase::NotReady;
            state.message = format!("its virtual machine ended: {end}");
        }
    });
    if !unexpected {
        return;
    }
    tracing::error!(pod = %pod.id, pid = machine.identity().pid, reason = end.reason(), %end,
        "the virtual machine of a pod has ended by itself");
    let _turn = pod.turns.take().await;
    settle_containers(&daemon, &pod, &end).await;
    pod.tell_end(&daemon);
    if let Err(error) = free(&daemon, &pod, Keep::Namespace).await {
        tracing::error!(pod = %pod.id, %error, "what the pod held is not all removed; StopPodSandbox tries again");
    }
}

async fn stop_in_turn(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<(), PodError> {
    // From here on no container is created or started in it.
    let mut machine = None;
    let mut was_ready = false;
    pod.change(|state| {
        was_ready = state.phase == PodPhase::Ready;
        state.phase = PodPhase::NotReady;
        machine.clone_from(&state.machine);
    });
    if let Some(machine) = machine {
        if was_ready {
            tracing::info!(pod = %pod.id, "stopping the pod");
            container::stop::kill_all(daemon, pod).await;
        }
        machine.kill().await.map_err(|source| PodError::Machine {
            id: pod.id.clone(),
            source,
        })?;
        settle_containers(daemon, pod, &*machine.ended().await).await;
        pod.change(|state| state.machine = None);
    } else {
        settle_containers(daemon, pod, &MachineEnd::default()).await;
    }
    pod.tell_end(daemon);
    free(daemon, pod, Keep::Nothing).await
}

/// When this returns, every container of the pod is exited.
async fn settle_containers(daemon: &Arc<Daemon>, pod: &Arc<Pod>, end: &MachineEnd) {
    for container in daemon.containers_of(&pod.id) {
        container::exit::settle(daemon, &container, end).await;
    }
}

/// Frees all that a pod holds whose machine is not held by this daemon; a process of it that is left is killed.
pub(super) async fn free_all(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<(), PodError> {
    free(daemon, pod, Keep::Nothing).await
}

/// What a stopped pod still needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Until StopPodSandbox: the network is taken down in it.
    Namespace,
    Nothing,
}

/// Frees what a pod without a machine holds, and writes its state down.
async fn free(daemon: &Arc<Daemon>, pod: &Arc<Pod>, keep: Keep) -> Result<(), PodError> {
    pod.drop_images();
    let left = match keep {
        Keep::Nothing => network::detach(daemon, &pod.id).await,
        Keep::Namespace => Ok(()),
    };
    // While the network is not left, its plugins need the namespace.
    let keep = if left.is_err() { Keep::Namespace } else { keep };
    let (host, target) = (Arc::clone(&daemon.host), Arc::clone(pod));
    let freed = blocking(move || {
        let host_error = |action: &str, object: String, source: io::Error| {
            io::Error::new(source.kind(), format!("{action} {object}: {source}"))
        };
        host.remove_cgroup(&target.cgroup)
            .map_err(|source| host_error("control group", target.cgroup.clone(), source))?;
        if keep == Keep::Nothing {
            let namespace = &target.paths.namespace;
            host.remove_network_namespace(namespace)
                .map_err(|source| host_error("network namespace", namespace.display().to_string(), source))?;
        }
        // The machine's logs stay until the pod is removed.
        for file in [target.paths.scratch(), target.paths.state.clone()] {
            remove_any(&file).map_err(|source| host_error("file", file.display().to_string(), source))?;
        }
        Ok(())
    });
    let freed = freed.await.map_err(|source| PodError::Host {
        id: pod.id.clone(),
        action: "remove what the pod held".to_owned(),
        source,
    });
    daemon.store.put_pod(pod.record()).await?;
    freed.and(left)
}

/// Removes all files of a pod.
pub(super) fn remove_files(paths: &PodPaths) -> io::Result<()> {
    remove_any(&paths.state)?;
    remove_any(&paths.root)
}

fn remove_any(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
