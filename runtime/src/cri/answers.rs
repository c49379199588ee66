//! What lists and statuses say, from the daemon's memory.

use bulkhead_proto::cri::{
    self, ContainerResources, ContainerState, ContainerStatus, ContainerUser, ImageSpec, Int64Value,
    LinuxContainerUser, LinuxPodSandboxStatus, Namespace, PodIp, PodSandbox, PodSandboxNetworkStatus,
    PodSandboxState, PodSandboxStatus,
};

use crate::{
    container::{self, Container, signal},
    image::{Image, ImageUser},
    sandbox::{Pod, PodState},
    store::{ContainerPhase, PodPhase},
};

/// Whether the pod is ready, in CRI's words.
pub(super) fn pod_state(pod: &Pod) -> PodSandboxState {
    ready_or_not(pod.state().phase)
}

fn ready_or_not(phase: PodPhase) -> PodSandboxState {
    match phase {
        PodPhase::Ready => PodSandboxState::SandboxReady,
        PodPhase::Creating | PodPhase::NotReady => PodSandboxState::SandboxNotready,
    }
}

/// A pod in a list.
pub(super) fn pod_item(pod: &Pod) -> PodSandbox {
    PodSandbox {
        id: pod.id.clone(),
        metadata: pod.config.metadata.clone(),
        state: pod_state(pod).into(),
        created_at: pod.created_at_ns,
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.runtime_handler.clone(),
    }
}

/// A pod's status now.
pub(super) fn pod_status(pod: &Pod) -> PodSandboxStatus {
    pod_status_in(pod, &pod.state())
}

/// A pod's status when it was in this state.
pub(super) fn pod_status_in(pod: &Pod, state: &PodState) -> PodSandboxStatus {
    let options = pod
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|security| security.namespace_options.clone())
        .unwrap_or_default();
    PodSandboxStatus {
        id: pod.id.clone(),
        metadata: pod.config.metadata.clone(),
        state: ready_or_not(state.phase).into(),
        created_at: pod.created_at_ns,
        network: Some(network_status(state)),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace {
                options: Some(options),
            }),
        }),
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.runtime_handler.clone(),
    }
}

/// A pod's addresses. A pod that was stopped has none any more.
fn network_status(state: &PodState) -> PodSandboxNetworkStatus {
    let is_ready = state.phase == PodPhase::Ready;
    let Some((first, others)) = state.addresses.split_first().filter(|_| is_ready) else {
        return PodSandboxNetworkStatus::default();
    };
    PodSandboxNetworkStatus {
        ip: first.clone(),
        additional_ips: others.iter().map(|ip| PodIp { ip: ip.clone() }).collect(),
    }
}

/// Where in its life a container is, in CRI's words.
pub(super) fn container_state(phase: ContainerPhase) -> ContainerState {
    match phase {
        ContainerPhase::Created => ContainerState::ContainerCreated,
        ContainerPhase::Running => ContainerState::ContainerRunning,
        ContainerPhase::Exited => ContainerState::ContainerExited,
    }
}

/// A container in a list.
pub(super) fn container_item(container: &Container) -> cri::Container {
    cri::Container {
        id: container.id.clone(),
        pod_sandbox_id: container.pod_id.clone(),
        metadata: container.config.metadata.clone(),
        image: Some(image_spec(container)),
        image_ref: container.image.digest_reference.clone(),
        state: container_state(container.phase()).into(),
        created_at: container.created_at_ns,
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
        image_id: container.image.id.clone(),
    }
}

/// A container's status now.
pub(super) fn container_status(container: &Container) -> ContainerStatus {
    container_status_in(container, container.state())
}

/// A container's status when it was in this state.
pub(super) fn container_status_in(
    container: &Container,
    state: container::ContainerState,
) -> ContainerStatus {
    let user = container.user.as_ref().map(|user| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: user.groups.iter().map(|group| (*group).into()).collect(),
        }),
    });
    ContainerStatus {
        id: container.id.clone(),
        metadata: container.config.metadata.clone(),
        state: container_state(state.phase).into(),
        created_at: container.created_at_ns,
        started_at: state.started_at_ns,
        finished_at: state.finished_at_ns,
        exit_code: state.exit_code,
        image: Some(image_spec(container)),
        image_ref: container.image.digest_reference.clone(),
        reason: state.reason,
        message: state.message,
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
        mounts: container.config.mounts.clone(),
        log_path: container
            .log_path
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        resources: container.resources().map(|linux| ContainerResources {
            linux: Some(linux),
            windows: None,
        }),
        image_id: container.image.id.clone(),
        user,
        stop_signal: signal::to_cri(container.stop_signal).into(),
    }
}

fn image_spec(container: &Container) -> ImageSpec {
    let asked = container.config.image.clone().unwrap_or_default();
    ImageSpec {
        image: container.image.name.clone(),
        ..asked
    }
}

/// An image.
pub(super) fn image(image: &Image, pinned: bool) -> cri::Image {
    let (uid, username) = match image.config.user() {
        ImageUser::Unset => (None, String::new()),
        ImageUser::Uid(value) => (Some(Int64Value { value }), String::new()),
        ImageUser::Name(name) => (None, name),
    };
    let id = image.id.to_string();
    cri::Image {
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size_bytes.max(1),
        uid,
        username,
        spec: Some(ImageSpec {
            image: id.clone(),
            ..ImageSpec::default()
        }),
        pinned,
        id,
    }
}
