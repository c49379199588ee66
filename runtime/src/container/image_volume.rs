//! Image volumes: read-only parts of other images among a container's mounts (CRI `Mount.image`).

use std::sync::Arc;

use bulkhead_proto::{
    agent,
    cri::{ContainerConfig, Mount, MountPropagation},
};

use super::{ContainerError, disk};
use crate::{
    daemon::Daemon,
    image::Image,
    refusal::Refusal,
    sandbox::{Pod, machine::Machine},
};

/// The beginning of every message about an image volume that cannot be had: the kubelet looks for it.
pub(super) const FAILED: &str = "ImageVolumeMountFailed";

/// Mount options of CRI (`Mount.mount_options`).
const OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

/// An image among a container's mounts.
#[derive(Debug)]
pub(super) struct ImageVolume {
    image: Arc<Image>,
    destination: String,
    path: String,
    options: Vec<String>,
}

/// Checks what a mount says of its image.
///
/// # Errors
///
/// [`Refusal`] with the field.
pub(super) fn check(mount: &Mount) -> Result<(), Refusal> {
    let at = &mount.container_path;
    let refuse = |field: &str, reason: String| {
        Err(Refusal::invalid(
            format!("{FAILED}: config.mounts.{field}"),
            reason,
        ))
    };
    if !at.starts_with('/') {
        return refuse("container_path", format!("{at:?} is not an absolute path"));
    }
    if mount.image.as_ref().is_none_or(|image| image.image.is_empty()) {
        return refuse("image", format!("the image for {at} has no name"));
    }
    if !mount.host_path.is_empty() {
        return refuse(
            "host_path",
            format!("{} and an image cannot both be at {at}", mount.host_path),
        );
    }
    if !mount.readonly {
        return refuse(
            "readonly",
            format!("an image can only be read; set it for the mount at {at}"),
        );
    }
    if mount.propagation() != MountPropagation::PropagationPrivate {
        return refuse(
            "propagation",
            format!("nothing is ever mounted in an image; leave it out at {at}"),
        );
    }
    let path = &mount.image_sub_path;
    if path.starts_with('/') || path.split('/').any(|name| name == "..") || path.contains('\0') {
        return refuse(
            "image_sub_path",
            format!("{path:?} is not a relative path without `..`"),
        );
    }
    if let Some(option) = mount
        .mount_options
        .iter()
        .find(|option| !OPTIONS.contains(&option.as_str()))
    {
        return refuse("mount_options", format!("{option:?} is none of {OPTIONS:?}"));
    }
    Ok(())
}

/// Finds the images among the mounts, and notes in `config` which they are: a status tells it from then on.
///
/// # Errors
///
/// [`ContainerError`] for an image that is not here.
pub(super) fn resolve(
    daemon: &Daemon,
    config: &mut ContainerConfig,
) -> Result<Vec<ImageVolume>, ContainerError> {
    let mut volumes = Vec::new();
    for mount in &mut config.mounts {
        let Some(spec) = &mut mount.image else { continue };
        let Some(image) = daemon.images.resolve(&spec.image) else {
            return Err(ContainerError::NoVolumeImage {
                destination: mount.container_path.clone(),
                image: spec.image.clone(),
            });
        };
        spec.image_ref = image.id.to_string();
        volumes.push(ImageVolume {
            image,
            destination: mount.container_path.clone(),
            path: mount.image_sub_path.clone(),
            options: mount.mount_options.clone(),
        });
    }
    Ok(volumes)
}

/// Puts the images on the bus of the pod's machine, and gives what the agent is to mount.
///
/// # Errors
///
/// [`ContainerError`].
pub(super) async fn attach(
    daemon: &Arc<Daemon>,
    pod: &Pod,
    machine: &Machine,
    volumes: &[ImageVolume],
    container: &str,
) -> Result<Vec<agent::MountSpec>, ContainerError> {
    let mut mounts = Vec::with_capacity(volumes.len());
    for volume in volumes {
        let mut options = vec!["ro".to_owned()];
        options.extend(volume.options.iter().cloned());
        mounts.push(agent::MountSpec {
            r#type: "image".to_owned(),
            source: volume.path.clone(),
            destination: volume.destination.clone(),
            options,
            layers: disk::attach(daemon, pod, machine, &volume.image, container).await?,
        });
    }
    Ok(mounts)
}
