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
    filesystem,
};
use crate::{
    error_text::with_causes,
    init::{log, offload::offload, reaper::Reaper},
};

/// Where they are mounted.
pub const LAYERS: &str = "/run/layers";

/// Most bytes of the reason why one could not be mounted.
const REASON_BYTES: usize = 2000;

/// A layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It was not found.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It was found and is no EROFS, or there is no place for it.
    #[error("layer {serial}:{partition} is not usable")]
    Mount {
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
    /// Mounts those of `parts`, which are partitions, that are not mounted yet, and uses all of them.
    pub async fn use_all(&self, parts: &[DiskPart], reaper: &Reaper) -> Result<Vec<Layer>, LayerError> {
        let mut layers: BTreeMap<&DiskPart, Layer> = BTreeMap::new();
        let mut missing = BTreeMap::new();
        for part in parts {
            if layers.contains_key(part) || missing.contains_key(part) {
                continue;
            }
            if let Some(layer) = self.take(part) {
                layers.insert(part, layer);
            } else {
                missing.insert(part, disks::find(part, reaper).await?);
            }
        }
        let _mounted = self.mount(missing, reaper).await?;
        // All are mounted and held here, so none can be missing.
        Ok(parts.iter().filter_map(|part| self.take(part)).collect())
    }

    /// Mounts what is on these device nodes.
    async fn mount(
        &self,
        nodes: BTreeMap<&DiskPart, PathBuf>,
        reaper: &Reaper,
    ) -> Result<Vec<Layer>, LayerError> {
        let (Some(first), numbers) = (nodes.keys().next().copied(), self.reserve(nodes.len())) else {
            return Ok(Vec::new());
        };
        // In a child process: a mount waits for the disk, and it is nobody's in particular.
        let nodes: Vec<(&DiskPart, PathBuf)> = nodes.into_iter().collect();
        let outcome = offload(reaper, || {
            for (position, ((_, node), number)) in nodes.iter().zip(&numbers).enumerate() {
                if let Err(error) = mount_at(node, *number) {
                    let mut said = format!("{position} {error}").into_bytes();
                    said.truncate(REASON_BYTES);
                    return Ok(said);
                }
            }
            Ok(Vec::new())
        })
        .await;
        let failed = match outcome {
            Ok(failure) => failure_at(&failure, &nodes),
            Err(error) => Some((first, error)),
        };
        if let Some((part, source)) = failed {
            self.give_back(&numbers);
            return Err(LayerError::Mount {
                serial: part.serial.clone(),
                partition: part.partition.unwrap_or_default(),
                source,
            });
        }
        let layers = nodes.iter().zip(numbers);
        Ok(layers
            .map(|((part, _), number)| self.adopt(part, number))
            .collect())
    }

    fn reserve(&self, count: usize) -> Vec<u32> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        (0..count).map(|_| table.reserve_number()).collect()
    }

    /// Takes away what may be mounted under numbers that were reserved.
    fn give_back(&self, numbers: &[u32]) {
        for number in numbers {
            let path = place(*number);
            let _may_not_be_mounted = unmount(&path, UnmountFlags::DETACH);
            let _may_not_be_there = fs::remove_dir(&path);
        }
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.numbers.retain(|number| !numbers.contains(number));
    }

    /// Uses what was mounted under a reserved number, or what another container has mounted of the same meanwhile.
    fn adopt(&self, part: &DiskPart, number: u32) -> Layer {
        if let Some(layer) = self.take(part) {
            self.give_back(&[number]);
            return layer;
        }
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.mounted.insert(part.clone(), Mounted { number, users: 1 });
        Layer {
            part: part.clone(),
            number,
            table: self.table.clone(),
        }
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
    /// Takes the smallest number that is free, so that names stay short.
    fn reserve_number(&mut self) -> u32 {
        let mut free = 0;
        for number in &self.numbers {
            if *number != free {
                break;
            }
            free += 1;
        }
        self.numbers.insert(free);
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

/// Mounts an EROFS from a device node at the place of `number`. Gives the reason as text, for it is for another process.
fn mount_at(node: &Path, number: u32) -> Result<(), String> {
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let node = node.to_string_lossy();
    let mount = filesystem::create("erofs", &[("source", Some(&node)), ("ro", None)], read_only)
        .map_err(|error| with_causes(&error))?;
    let path = place(number);
    fs::create_dir_all(&path)
        .and_then(|()| filesystem::attach(&mount, &path.to_string_lossy()))
        .map_err(|error| format!("cannot mount it on {}: {error}", path.display()))
}

/// What the child has said: the position of the node that it could not mount, and why; nothing where it could.
fn failure_at<'a>(said: &[u8], nodes: &[(&'a DiskPart, PathBuf)]) -> Option<(&'a DiskPart, io::Error)> {
    let text = String::from_utf8_lossy(said);
    let (position, reason) = text.split_once(' ')?;
    let (part, _) = nodes.get(position.parse::<usize>().ok()?)?;
    Some((part, io::Error::other(reason.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_smallest_that_are_free() {
        let layers = Layers::default();
        assert_eq!(layers.reserve(3), [0, 1, 2]);
        layers.table.lock().unwrap().numbers.remove(&1);
        assert_eq!(layers.reserve(2), [1, 3]);
    }

    #[test]
    fn a_failure_names_the_layer_it_is_of() {
        let part = |number| DiskPart {
            serial: "image".to_owned(),
            partition: Some(number),
        };
        let (one, two) = (part(1), part(2));
        let nodes = [(&one, "/dev/vdb1".into()), (&two, "/dev/vdb2".into())];
        assert!(failure_at(b"", &nodes).is_none());
        let (failed, reason) = failure_at(b"1 cannot mount it: no EROFS", &nodes).unwrap();
        assert_eq!(
            (failed, reason.to_string().as_str()),
            (&two, "cannot mount it: no EROFS")
        );
    }
}
