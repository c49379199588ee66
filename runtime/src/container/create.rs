//! CreateContainer: from a configuration to a container that is prepared in the guest.

use std::sync::Arc;

use bulkhead_proto::{
    agent,
    cri::{ContainerConfig, LinuxContainerSecurityContext, NamespaceMode},
};

use tonic::Code;

use super::{
    Container, ContainerError, container_name, disk, image_volume, process::process, resources::resources,
    signal, user_record, validate,
};
use crate::{
    daemon::Daemon,
    events::{Change, Subject},
    identity::{new_id, now_ns},
    image::Image,
    refusal::Refusal,
    sandbox::{Pod, agent::AgentError, machine::Machine},
    store::{ContainerPhase, ContainerRecord, ImageRecord},
};

/// Makes a container in a pod that is ready, and returns its id.
///
/// # Errors
///
/// [`ContainerError`]; then nothing is left of it.
pub async fn create(
    daemon: &Arc<Daemon>,
    pod: &Arc<Pod>,
    mut config: ContainerConfig,
) -> Result<String, ContainerError> {
    validate::container(&config, &pod.config)?;
    let machine = pod.machine()?;
    let asked = config
        .image
        .as_ref()
        .map(|image| image.image.as_str())
        .unwrap_or_default();
    let image = daemon
        .images
        .resolve(asked)
        .ok_or_else(|| crate::image::ImageError::NotPresent {
            name: asked.to_owned(),
        })?;

    let volumes = image_volume::resolve(daemon, &mut config)?;
    let id = new_id();
    tracing::Span::current().record("container", &id);
    let mut request = request(daemon, pod, &config, &image, &id)?;
    let stop_signal = stop_signal(&config, &image)?;
    let log_path = validate::log_path(&config, &pod.config)?;
    let reservation = daemon
        .containers
        .reserve(&container_name(&config, &pod.id), &id)?;

    request.layers = disk::attach(daemon, pod, &machine, &image, &id).await?;
    request.mounts = image_volume::attach(daemon, pod, &machine, &volumes, &id).await?;
    let agent_error = |source| match source {
        // What the agent says of a path that an image does not have.
        AgentError::Refused {
            code: Code::OutOfRange,
            message: reason,
        } => ContainerError::NoVolumePath {
            id: id.clone(),
            reason,
        },
        source => ContainerError::Agent {
            id: id.clone(),
            source,
        },
    };
    let answer = machine.agent().create_container(request).await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            // One that did not answer in time may have made it.
            forget(&machine, &id).await;
            return Err(agent_error(error));
        }
    };

    let record = ContainerRecord {
        id: id.clone(),
        pod_id: pod.id.clone(),
        log_path: log_path
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        image: Some(image_record(&config, &image)),
        stop_signal,
        user: answer.user.map(user_record),
        resources: config.linux.as_ref().and_then(|linux| linux.resources.clone()),
        phase: ContainerPhase::Created.into(),
        created_at_ns: now_ns(),
        config: Some(config),
        ..ContainerRecord::default()
    };
    if let Err(error) = daemon.store.put_container(record.clone()).await {
        forget(&machine, &id).await;
        return Err(error.into());
    }
    let container = Arc::new(Container::from_record(record));
    daemon.events.step(daemon, Subject::Container(&container), || {
        reservation.fill(Arc::clone(&container));
        vec![Change::Created]
    });
    // A pod that is being stopped has changed its state before it looks for its containers: either it found this one, or
    // it is seen here.
    if let Err(error) = pod.machine() {
        daemon.forget_container(&container);
        daemon.store.remove_container(id).await?;
        return Err(error.into());
    }
    tracing::info!(pod = %pod.id, container = %id, name = %container.name(), image = %image.id, "created a container");
    Ok(id)
}

/// What the agent is asked for, but for the layers.
fn request(
    daemon: &Daemon,
    pod: &Pod,
    config: &ContainerConfig,
    image: &Image,
    id: &str,
) -> Result<agent::CreateContainerRequest, ContainerError> {
    let none = LinuxContainerSecurityContext::default();
    let linux = config.linux.as_ref();
    let security = linux
        .and_then(|linux| linux.security_context.as_ref())
        .unwrap_or(&none);
    let (pid_namespace, pid_target) = pid_namespace(daemon, pod, security)?;
    let paths = |paths: &[String]| {
        if security.privileged {
            Vec::new()
        } else {
            paths.to_vec()
        }
    };
    Ok(agent::CreateContainerRequest {
        container_id: id.to_owned(),
        layers: Vec::new(),
        process: Some(process(config, &image.config, pod.hostname())?),
        mounts: Vec::new(),
        readonly_rootfs: security.readonly_rootfs,
        masked_paths: paths(&security.masked_paths),
        readonly_paths: paths(&security.readonly_paths),
        privileged: security.privileged,
        pid_namespace: pid_namespace.into(),
        pid_target,
        resources: linux
            .and_then(|linux| linux.resources.as_ref())
            .map(|asked| resources("config.linux.resources", asked))
            .transpose()?,
    })
}

/// Whose processes the container sees. The node of a pod is its machine, so NODE is what POD is: all of the pod's.
fn pid_namespace(
    daemon: &Daemon,
    pod: &Pod,
    security: &LinuxContainerSecurityContext,
) -> Result<(agent::PidNamespace, String), ContainerError> {
    let options = security.namespace_options.clone().unwrap_or_default();
    match options.pid() {
        NamespaceMode::Container => Ok((agent::PidNamespace::Container, String::new())),
        NamespaceMode::Pod | NamespaceMode::Node => Ok((agent::PidNamespace::Pod, String::new())),
        NamespaceMode::Target => {
            let field = "config.linux.security_context.namespace_options.target_id";
            let target = daemon
                .containers
                .find(&options.target_id)
                .map_err(|error| Refusal::invalid(field, error.to_string()))?;
            if target.pod_id != pod.id {
                return Err(
                    Refusal::invalid(field, format!("container {} is of another pod", target.id)).into(),
                );
            }
            if target.phase() != ContainerPhase::Running {
                return Err(target.wrong_state("looked into", "; start it first"));
            }
            Ok((agent::PidNamespace::Target, target.id.clone()))
        }
    }
}

fn stop_signal(config: &ContainerConfig, image: &Image) -> Result<u32, Refusal> {
    if let Some(number) = signal::from_cri(config.stop_signal, "config.stop_signal")? {
        return Ok(number);
    }
    let named = &image.config.stop_signal;
    if named.is_empty() {
        return Ok(signal::TERM);
    }
    signal::from_name(named).ok_or_else(|| {
        Refusal::invalid(
            "config.image",
            format!("its stop signal {named:?} is no signal of Linux; set config.stop_signal"),
        )
    })
}

/// What status answers say of the image from now on, whatever becomes of its names.
fn image_record(config: &ContainerConfig, image: &Image) -> ImageRecord {
    let spec = config.image.clone().unwrap_or_default();
    let id = image.id.to_string();
    let asked = [spec.user_specified_image, spec.image]
        .into_iter()
        .find(|name| !name.is_empty());
    ImageRecord {
        digest_reference: image.repo_digests.first().cloned().unwrap_or_else(|| id.clone()),
        name: image
            .repo_tags
            .first()
            .cloned()
            .or(asked)
            .unwrap_or_else(|| id.clone()),
        id,
    }
}

/// Lets the agent forget a container that did not come to be.
async fn forget(machine: &Machine, id: &str) {
    let request = agent::RemoveContainerRequest {
        container_id: id.to_owned(),
    };
    if let Err(error) = machine.agent().remove_container(request).await {
        tracing::warn!(container = id, %error, "a container that was not made may be left in the guest");
    }
}
