//! The image layers that are mounted, each once however many containers use it.
//!
//! They are at `/run/layers/<number>`: short names, since an older kernel takes all lower directories of an overlay in
//! one page of text.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};

use super::{
    disks::{self, DiskError, DiskPart},
    filesystem::{self, FilesystemError},
};
use crate::init::log;

/// Where they are mounted.
pub const LAYERS: &str = "/run/layers";

/// A layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It was not found.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It was found and is no EROFS.
    #[error("layer {serial}:{partition} is not usable")]
    Mount {
        /// Serial of the disk.
        serial: String,
        /// Number of the partition.
        partition: u32,
        /// Why.
        #[source]
        source: FilesystemError,
    },
    /// There is no place for it.
    #[error("cannot place layer {serial}:{partition} under {LAYERS}")]
    Place {
        /// Serial of the disk.
        serial: String,
        /// Number of the partition.
        partition: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// All mounted layers.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    mounted: BTreeMap<DiskPart, Mounted>,
    numbers: BTreeSet<u32>,
}

#[derive(Debug)]
struct Mounted {
    number: u32,
    users: usize,
}

/// The use of a layer; the last one's end unmounts it.
#[derive(Debug)]
pub struct Layer {
    part: DiskPart,
    number: u32,
    table: Arc<Mutex<Table>>,
}

impl Layer {
    /// Name of its directory in [`LAYERS`].
    pub fn name(&self) -> String {
        self.number.to_string()
    }

    /// Where its root is.
    pub fn path(&self) -> PathBuf {
        place(self.number)
    }
}

impl Layers {
    /// Mounts partition `partition` of disk `serial`, unless it is mounted.
    pub async fn use_layer(&self, serial: &str, partition: u32) -> Result<Layer, LayerError> {
        let part = DiskPart {
            serial: serial.to_owned(),
            partition: Some(partition),
        };
        if let Some(layer) = self.take(&part) {
            return Ok(layer);
        }
        let node = disks::find(&part).await?;
        // Another container may have mounted it while this one waited for the disk.
        if let Some(layer) = self.take(&part) {
            return Ok(layer);
        }
        let node = node.to_string_lossy();
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID;
        let mount = filesystem::create("erofs", &[("source", Some(&node)), ("ro", None)], read_only)
            .map_err(|source| LayerError::Mount {
                serial: serial.to_owned(),
                partition,
                source,
            })?;
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let number = table.free_number();
        let path = place(number);
        fs::create_dir_all(&path)
            .and_then(|()| filesystem::attach(&mount, &path.to_string_lossy()))
            .map_err(|source| LayerError::Place {
                serial: serial.to_owned(),
                partition,
                source,
            })?;
        table.numbers.insert(number);
        table.mounted.insert(part.clone(), Mounted { number, users: 1 });
        Ok(Layer {
            part,
            number,
            table: self.table.clone(),
        })
    }

    fn take(&self, part: &DiskPart) -> Option<Layer> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mounted = table.mounted.get_mut(part)?;
        mounted.users += 1;
        Some(Layer {
            part: part.clone(),
            number: mounted.number,
            table: self.table.clone(),
        })
    }
}

impl Table {
    /// The smallest number that is not taken, so that names stay short.
    fn free_number(&self) -> u32 {
        let mut free = 0;
        for number in &self.numbers {
            if *number != free {
                break;
            }
            free += 1;
        }
        free
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mounted) = table.mounted.get_mut(&self.part) else {
            return;
        };
        mounted.users -= 1;
        if mounted.users > 0 {
            return;
        }
        table.mounted.remove(&self.part);
        table.numbers.remove(&self.number);
        drop(table);
        let path = place(self.number);
        // An overlay that uses it has its own hold on the file system.
        let gone = unmount(&path, UnmountFlags::DETACH)
            .map_err(io::Error::from)
            .and_then(|()| fs::remove_dir(&path));
        if let Err(error) = gone {
            log::error!("cannot unmount layer {}: {error}", path.display());
        }
    }
}

fn place(number: u32) -> PathBuf {
    Path::new(LAYERS).join(number.to_string())
}
