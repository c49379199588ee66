//! Finds a virtio disk by its serial, and a partition on it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::timeout;

use crate::init::{pci, reaper::Reaper, uevents::Uevents};

/// The kernel's list of disks.
const DISKS: &str = "/sys/block";

/// How long a disk may take to appear after the rescan, which finds it synchronously but for slow partitions.
const APPEARANCE: Duration = Duration::from_secs(10);

/// Longest serial of a virtio disk, in bytes (virtio 1.2, 5.2.6.1).
const SERIAL_BYTES: usize = 20;

/// No such disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The name cannot be a serial.
    #[error("{0:?} is no serial of a virtio disk: it has 1 to {SERIAL_BYTES} printable characters")]
    BadSerial(String),
    /// It did not appear.
    #[error("there is no disk with serial {serial}; attach it to the machine first")]
    NoDisk {
        /// Asked for.
        serial: String,
    },
    /// The disk is there, the partition is not.
    #[error("disk {serial} has no partition {partition}; its partition table does not say so")]
    NoPartition {
        /// The disk.
        serial: String,
        /// Asked for.
        partition: u32,
    },
    /// The kernel's list could not be read.
    #[error("cannot look for disk {serial}")]
    Look {
        /// Asked for.
        serial: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A whole disk or a partition of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskPart {
    /// Serial of the disk.
    pub serial: String,
    /// Number of the GPT partition, from 1; `None` for the whole disk.
    pub partition: Option<u32>,
}

/// The device node of `part`. A disk that is not there yet is looked for on the bus and waited for.
pub async fn find(part: &DiskPart, reaper: &Reaper) -> Result<PathBuf, DiskError> {
    let serial = &part.serial;
    let printable = serial.bytes().all(|byte| byte.is_ascii_graphic());
    if !(1..=SERIAL_BYTES).contains(&serial.len()) || !printable {
        return Err(DiskError::BadSerial(serial.chars().take(64).collect()));
    }
    let look_error = |source| DiskError::Look {
        serial: serial.clone(),
        source,
    };
    if let Some(node) = look(Path::new(DISKS), part).map_err(look_error)? {
        return Ok(node);
    }
    // Before the rescan, so that no announcement is missed.
    let uevents = Uevents::listen().map_err(look_error)?;
    pci::rescan(reaper).await.map_err(look_error)?;
    let appearance = async {
        loop {
            if let Some(node) = look(Path::new(DISKS), part)? {
                return Ok(node);
            }
            uevents.next().await?;
        }
    };
    match timeout(APPEARANCE, appearance).await {
        Ok(found) => found.map_err(look_error),
        Err(_) => Err(match part.partition {
            Some(partition) if disk_directory(Path::new(DISKS), serial).is_ok_and(|disk| disk.is_some()) => {
                DiskError::NoPartition {
                    serial: serial.clone(),
                    partition,
                }
            }
            _ => DiskError::NoDisk {
                serial: serial.clone(),
            },
        }),
    }
}

fn look(disks: &Path, part: &DiskPart) -> io::Result<Option<PathBuf>> {
    let Some(disk) = disk_directory(disks, &part.serial)? else {
        return Ok(None);
    };
    let directory = match part.partition {
        None => Some(disk),
        Some(number) => partition_directory(&disk, number)?,
    };
    Ok(directory.and_then(|directory| Some(Path::new("/dev").join(directory.file_name()?))))
}

fn disk_directory(disks: &Path, serial: &str) -> io::Result<Option<PathBuf>> {
    for disk in fs::read_dir(disks)? {
        let disk = disk?.path();
        // Not every disk has one.
        if fs::read_to_string(disk.join("serial")).is_ok_and(|found| found.trim_end() == serial) {
            return Ok(Some(disk));
        }
    }
    Ok(None)
}

fn partition_directory(disk: &Path, number: u32) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(disk)? {
        let directory = entry?.path();
        let found = fs::read_to_string(directory.join("partition"));
        if found.is_ok_and(|found| found.trim_end().parse() == Ok(number)) {
            return Ok(Some(directory));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(serial: &str, partition: Option<u32>) -> DiskPart {
        DiskPart {
            serial: serial.to_owned(),
            partition,
        }
    }

    #[test]
    fn disks_and_partitions_are_found_as_sysfs_lists_them() {
        let sysfs = tempfile::tempdir().unwrap();
        for (disk, serial) in [("vda", Some("scratch")), ("vdb", Some("image")), ("loop0", None)] {
            fs::create_dir(sysfs.path().join(disk)).unwrap();
            if let Some(serial) = serial {
                fs::write(sysfs.path().join(disk).join("serial"), format!("{serial}\n")).unwrap();
            }
        }
        for number in [1, 2, 11] {
            let partition = sysfs.path().join(format!("vdb/vdb{number}"));
            fs::create_dir(&partition).unwrap();
            fs::write(partition.join("partition"), format!("{number}\n")).unwrap();
        }
        let find = |part: DiskPart| look(sysfs.path(), &part).unwrap();
        assert_eq!(find(part("scratch", None)), Some("/dev/vda".into()));
        assert_eq!(find(part("image", Some(11))), Some("/dev/vdb11".into()));
        assert_eq!(find(part("image", Some(3))), None);
        assert_eq!(find(part("imag", None)), None);
    }

    #[tokio::test]
    async fn what_cannot_be_a_serial_is_not_looked_for() {
        let reaper = Reaper::start().unwrap();
        for bad in ["", "a b", "twenty-one-characters", "a\n"] {
            assert!(
                matches!(
                    find(&part(bad, None), &reaper).await,
                    Err(DiskError::BadSerial(_))
                ),
                "{bad:?}"
            );
        }
    }
}
