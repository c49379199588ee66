//! The pod's scratch disk: what containers write beside their volumes. It lives and dies with the pod.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};

use super::{
    disks::{self, DiskError, DiskPart},
    filesystem::{self, FilesystemError},
};
use crate::init::{log, reaper::Reaper};

/// Where it is mounted.
pub const SCRATCH: &str = "/run/scratch";

/// The scratch disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// It was not found.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It was found and is no ext4.
    #[error("the scratch disk {serial} is not usable")]
    Mount {
        /// Its serial.
        serial: String,
        /// Why.
        #[source]
        source: FilesystemError,
    },
    /// A directory of it cannot be made or removed.
    #[error("cannot use {} on the scratch disk", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The mounted disk, unmounted at its end.
#[derive(Debug)]
pub struct Scratch(());

impl Scratch {
    /// Mounts the disk `serial`.
    ///
    /// Nothing on it outlives the machine, so it goes without write barriers; and its inode tables need no zeroing by a
    /// thread in the background, since the host made the disk as a file of holes.
    pub async fn mount(serial: &str, reaper: &Reaper) -> Result<Self, ScratchError> {
        let disk = DiskPart {
            serial: serial.to_owned(),
            partition: None,
        };
        let node = disks::find(&disk, reaper).await?;
        let node = node.to_string_lossy();
        let options = [
            ("source", Some(&*node)),
            ("nobarrier", None),
            ("noinit_itable", None),
        ];
        let attributes = MountAttrFlags::MOUNT_ATTR_NOATIME
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID;
        let mount =
            filesystem::create("ext4", &options, attributes).map_err(|source| ScratchError::Mount {
                serial: serial.to_owned(),
                source,
            })?;
        fs::create_dir_all(SCRATCH)
            .and_then(|()| filesystem::attach(&mount, SCRATCH))
            .map_err(|source| ScratchError::Directory {
                path: SCRATCH.into(),
                source,
            })?;
        Ok(Self(()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = unmount(SCRATCH, UnmountFlags::DETACH) {
            log::error!("cannot unmount {SCRATCH}: {error}");
        }
    }
}

/// The writable layer of one container.
#[derive(Debug)]
pub struct WritableLayer {
    directory: PathBuf,
}

impl WritableLayer {
    /// Makes it for `container`. Its root has the owner and mode of `model`, the root of the uppermost layer below it,
    /// since they are what a process sees of the container's root.
    pub fn create(container: &str, model: &Path) -> Result<Self, ScratchError> {
        let layer = Self {
            directory: Path::new(SCRATCH).join(container),
        };
        let make = || {
            // Nobody but root may pass, or a process of the guest could write around the overlay.
            fs::DirBuilder::new().mode(0o700).create(&layer.directory)?;
            fs::create_dir(layer.work())?;
            let upper = layer.upper();
            fs::create_dir(&upper)?;
            let model = fs::metadata(model)?;
            chown(&upper, Some(model.uid()), Some(model.gid()))?;
            fs::set_permissions(&upper, fs::Permissions::from_mode(model.mode() & 0o7777))
        };
        make().map_err(|source| ScratchError::Directory {
            path: layer.directory.clone(),
            source,
        })?;
        Ok(layer)
    }

    /// What is written.
    pub fn upper(&self) -> PathBuf {
        self.directory.join("upper")
    }

    /// Where the overlay prepares it.
    pub fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// All of it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}
