//! Images as disks of a pod's machine: each is put on the bus once, however many containers are made of it.

use std::sync::Arc;

use bulkhead_proto::agent::Layer;
use tokio::sync::OnceCell;

use super::ContainerError;
use crate::{
    daemon::Daemon,
    image::{Image, ImageId, ImageLease},
    sandbox::{Pod, machine::Machine},
};

/// The place of an image among a pod's disks.
#[derive(Debug, Default)]
pub struct ImageSlot {
    attached: OnceCell<AttachedImage>,
}

/// An image on the bus.
#[derive(Debug)]
struct AttachedImage {
    serial: String,
    partitions: u32,
    /// Its layers stay on disk as long as the machine may read them.
    _lease: ImageLease,
}

/// Puts the image on the bus of the pod's machine unless it is there, and gives its layers, the lowest first.
///
/// # Errors
///
/// [`ContainerError`]; then it may be tried again.
pub(super) async fn attach(
    daemon: &Arc<Daemon>,
    pod: &Pod,
    machine: &Machine,
    image: &Image,
    container: &str,
) -> Result<Vec<Layer>, ContainerError> {
    let slot = pod.image_slot(image.id);
    let attached = slot
        .attached
        .get_or_try_init(|| async {
            let lease = daemon.images.lease(image)?;
            let disk = daemon.images.disk(lease.image())?;
            let serial = serial(image.id);
            let segments = disk
                .segments
                .into_iter()
                .map(|segment| (segment.file, segment.length))
                .collect();
            machine
                .add_disk(serial.clone(), segments)
                .await
                .map_err(|source| ContainerError::Attach {
                    id: container.to_owned(),
                    image: image.id.to_string(),
                    source,
                })?;
            tracing::debug!(pod = %pod.id, image = %image.id, serial, "attached an image");
            Ok::<_, ContainerError>(AttachedImage {
                serial,
                partitions: disk.partitions,
                _lease: lease,
            })
        })
        .await?;
    let layer = |partition| Layer {
        disk: attached.serial.clone(),
        partition,
    };
    Ok((1..=attached.partitions).map(layer).collect())
}

/// Notes an image that an earlier daemon put on the bus.
///
/// # Errors
///
/// [`ContainerError::Image`] where the store does not have it any more; the machine still reads its open files.
pub(crate) fn note_attached(daemon: &Arc<Daemon>, pod: &Pod, image: ImageId) -> Result<(), ContainerError> {
    let lease = daemon.images.lease_by_id(image)?;
    let partitions = daemon.images.disk(lease.image())?.partitions;
    let attached = AttachedImage {
        serial: serial(image),
        partitions,
        _lease: lease,
    };
    // One that is there already is the same.
    let _ = pod.image_slot(image).attached.set(attached);
    Ok(())
}

/// What the guest reads as the disk's serial: at most 20 bytes, so the beginning of the image's id.
pub(crate) fn serial(image: ImageId) -> String {
    let id = image.to_string();
    let hex = id.rsplit(':').next().unwrap_or_default();
    format!("img-{}", hex.get(..16).unwrap_or(hex))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_short_enough_for_virtio() {
        let image: ImageId = format!("sha256:{}", "0123456789abcdef".repeat(4))
            .parse()
            .unwrap();
        assert_eq!(serial(image), "img-0123456789abcdef");
        assert!(serial(image).len() <= 20);
    }
}
