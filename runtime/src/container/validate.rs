//! What a container's configuration may say, beside its process and its limits.

use std::path::{Component, Path, PathBuf};

use bulkhead_proto::cri::{
    ContainerConfig, ContainerMetadata, LinuxContainerSecurityContext, Mount, MountPropagation,
    NamespaceMode, PodSandboxConfig, security_profile::ProfileType,
};

use super::image_volume;
use crate::{
    refusal::Refusal,
    sandbox::validate::{namespace_options, selinux},
};

const SECURITY: &str = "config.linux.security_context";

/// Longest name of a container, in bytes.
const NAME_BYTES: usize = 253;

/// Checks a request for a container and gives its name.
///
/// # Errors
///
/// [`Refusal`] with the field.
pub(super) fn container<'a>(
    config: &'a ContainerConfig,
    pod: &PodSandboxConfig,
) -> Result<&'a ContainerMetadata, Refusal> {
    let metadata = config
        .metadata
        .as_ref()
        .ok_or_else(|| Refusal::invalid("config.metadata", "it is missing; a container has a name"))?;
    if metadata.name.is_empty() || metadata.name.len() > NAME_BYTES || metadata.name.contains(['\0', '\n']) {
        return Err(Refusal::invalid(
            "config.metadata.name",
            format!("it must have 1 to {NAME_BYTES} bytes and neither NUL nor newline"),
        ));
    }
    if config.image.as_ref().is_none_or(|image| image.image.is_empty()) {
        return Err(Refusal::invalid(
            "config.image",
            "it is missing; a container is made of an image",
        ));
    }
    config.mounts.iter().try_for_each(mount)?;
    if let Some(device) = config.devices.first() {
        return Err(Refusal::not_yet(
            "config.devices",
            format!(
                "device {} of the host cannot be had in the pod's virtual machine",
                device.host_path
            ),
        ));
    }
    if let Some(device) = config.cdi_devices.first() {
        return Err(Refusal::not_yet(
            "config.CDI_devices",
            format!("device {:?} cannot be had", device.name),
        ));
    }
    if let Some(security) = config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
    {
        security_context(security, pod)?;
    }
    log_path(config, pod)?;
    Ok(metadata)
}

/// The absolute path of the container's log; `None` where it has none.
///
/// # Errors
///
/// [`Refusal`] for a path that leads out of the pod's log directory.
pub(super) fn log_path(config: &ContainerConfig, pod: &PodSandboxConfig) -> Result<Option<PathBuf>, Refusal> {
    if config.log_path.is_empty() || pod.log_directory.is_empty() {
        return Ok(None);
    }
    let path = Path::new(&config.log_path);
    let inside = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !inside || config.log_path.ends_with('/') || config.log_path.contains('\0') {
        return Err(Refusal::invalid(
            "config.log_path",
            format!(
                "{:?} is no path of a file below the pod's log_directory",
                config.log_path
            ),
        ));
    }
    Ok(Some(Path::new(&pod.log_directory).join(path)))
}

fn mount(mount: &Mount) -> Result<(), Refusal> {
    let field = "config.mounts";
    let at = &mount.container_path;
    if mount.image.is_some() {
        return image_volume::check(mount);
    }
    if mount.propagation() == MountPropagation::PropagationBidirectional {
        return Err(Refusal::impossible(
            format!("{field}.propagation"),
            format!(
                "mounts made at {at} in a virtual machine cannot appear on the host; use HostToContainer or None, or run \
                 this pod with another RuntimeClass"
            ),
        ));
    }
    Err(Refusal::not_yet(
        field,
        format!(
            "{} cannot be mounted at {at}: volumes are not shared with the pod's virtual machine",
            mount.host_path
        ),
    ))
}

fn security_context(security: &LinuxContainerSecurityContext, pod: &PodSandboxConfig) -> Result<(), Refusal> {
    let pod_security = pod
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    if security.privileged && !pod_security.is_some_and(|pod| pod.privileged) {
        return Err(Refusal::invalid(
            format!("{SECURITY}.privileged"),
            "a privileged container needs a privileged pod; set it in the sandbox's security_context too",
        ));
    }
    if let Some(namespaces) = &security.namespace_options {
        namespace_options(namespaces, SECURITY)?;
        if namespaces.pid() == NamespaceMode::Target && namespaces.target_id.is_empty() {
            return Err(Refusal::invalid(
                format!("{SECURITY}.namespace_options.target_id"),
                "it is empty; pid mode TARGET needs the container whose processes are to be seen",
            ));
        }
    }
    for (field, paths) in [
        ("masked_paths", &security.masked_paths),
        ("readonly_paths", &security.readonly_paths),
    ] {
        if let Some(path) = paths
            .iter()
            .find(|path| !path.starts_with('/') || path.contains('\0'))
        {
            return Err(Refusal::invalid(
                format!("{SECURITY}.{field}"),
                format!("{path:?} is no absolute path"),
            ));
        }
    }
    if !security.privileged {
        seccomp(security)?;
        apparmor(security)?;
    }
    selinux(security.selinux_options.as_ref(), SECURITY)
}

/// A profile that cannot be applied fails the container: none is accepted and ignored.
fn seccomp(security: &LinuxContainerSecurityContext) -> Result<(), Refusal> {
    let refuse = |field: &str, profile: &str| {
        Err(Refusal::not_yet(
            format!("{SECURITY}.{field}"),
            format!("profile {profile} cannot be applied in the guest; use Unconfined"),
        ))
    };
    if let Some(profile) = &security.seccomp {
        if !profile.localhost_ref.is_empty() && profile.profile_type() != ProfileType::Localhost {
            return Err(Refusal::invalid(
                format!("{SECURITY}.seccomp.localhost_ref"),
                "it goes with profile_type Localhost only",
            ));
        }
        return match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::Unconfined) => Ok(()),
            Ok(ProfileType::RuntimeDefault) => refuse("seccomp", "RuntimeDefault"),
            Ok(ProfileType::Localhost) => refuse("seccomp", &format!("{:?}", profile.localhost_ref)),
            Err(_) => Err(Refusal::invalid(
                format!("{SECURITY}.seccomp.profile_type"),
                "it is no type of CRI",
            )),
        };
    }
    #[expect(
        deprecated,
        reason = "older clients send it, and it counts where the other field is absent"
    )]
    let path = &security.seccomp_profile_path;
    match path.as_str() {
        "" | "unconfined" => Ok(()),
        other => refuse("seccomp_profile_path", &format!("{other:?}")),
    }
}

fn apparmor(security: &LinuxContainerSecurityContext) -> Result<(), Refusal> {
    let refuse = |field: &str, profile: &str| {
        Err(Refusal::impossible(
            format!("{SECURITY}.{field}"),
            format!(
                "profile {profile} cannot be applied: profiles are loaded in the host's kernel, and the pod has a kernel of \
                 its own, without AppArmor; use Unconfined"
            ),
        ))
    };
    if let Some(profile) = &security.apparmor {
        return match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::Unconfined) => Ok(()),
            Ok(ProfileType::RuntimeDefault) => refuse("apparmor", "RuntimeDefault"),
            Ok(ProfileType::Localhost) => refuse("apparmor", &format!("{:?}", profile.localhost_ref)),
            Err(_) => Err(Refusal::invalid(
                format!("{SECURITY}.apparmor.profile_type"),
                "it is no type of CRI",
            )),
        };
    }
    #[expect(
        deprecated,
        reason = "older clients send it, and it counts where the other field is absent"
    )]
    let profile = &security.apparmor_profile;
    match profile.as_str() {
        "" | "unconfined" => Ok(()),
        other => refuse("apparmor_profile", &format!("{other:?}")),
    }
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
