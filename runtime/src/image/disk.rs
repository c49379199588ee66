//! An image as a VM sees it: one read-only disk with a GUID partition table, each layer a partition.
//!
//! The table is made up and lies in memory; the partitions are the layers' blobs as they are. So one blob serves every
//! image and every pod, and one disk serves an image of any number of layers.
//! (UEFI specification 2.10, chapter 5.)

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};

use super::{DiffId, Digest};

/// What the VMM shows to the guest as one disk: the segments, one behind the other.
#[derive(Debug)]
pub struct ImageDisk {
    /// The files that make up the disk, in order, each shown from its start. All lengths are multiples of 4096 bytes.
    pub segments: Vec<Segment>,
    /// Layers on the disk: partition 1 is the lowest, partition `partitions` the topmost. May be fewer than the image
    /// has, since a layer that hides everything below it makes those superfluous.
    pub partitions: u32,
}

/// A part of a disk.
#[derive(Debug)]
pub struct Segment {
    /// The file, open for reading only and closed on exec.
    pub file: OwnedFd,
    /// How many of its bytes are shown.
    pub length: u64,
}

/// A partition to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partition {
    /// The layer, after which the partition is named.
    pub(super) diff_id: DiffId,
    /// A multiple of 4096 bytes.
    pub(super) bytes: u64,
}

const SECTOR_BYTES: usize = 512;
const ALIGNMENT: usize = 4096;
const ENTRY_BYTES: usize = 128;
const ENTRY_BYTES_FIELD: u32 = 128;
const MIN_ENTRIES: usize = 128;
const HEADER_BYTES: u32 = 92;

/// "Linux filesystem data", 0FC63DAF-8483-4772-8E79-3D69D8477DE4, as it is written to disk.
const LINUX_FILESYSTEM: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];

/// Attribute bit 60, "read-only", as systemd's Discoverable Partitions define it.
const READ_ONLY: u64 = 1 << 60;

/// The parts of a disk that belong to no partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PartitionTable {
    /// In front of the first partition: protective MBR, header, entries.
    pub(super) head: Vec<u8>,
    /// Behind the last: entries and header once more.
    pub(super) tail: Vec<u8>,
}

impl PartitionTable {
    /// The table of a disk whose partitions follow each other without gaps. `disk` gives it its GUID.
    pub(super) fn new(disk: Digest, partitions: &[Partition]) -> Self {
        let entries = partitions
            .len()
            .max(MIN_ENTRIES)
            .next_multiple_of(ALIGNMENT / ENTRY_BYTES);
        let entries_bytes = entries * ENTRY_BYTES;
        let head_bytes = (2 * SECTOR_BYTES + entries_bytes).next_multiple_of(ALIGNMENT);
        let tail_bytes = (entries_bytes + SECTOR_BYTES).next_multiple_of(ALIGNMENT);
        let partitions_bytes: u64 = partitions.iter().map(|partition| partition.bytes).sum();

        let mut array = Vec::with_capacity(entries_bytes);
        let mut start = head_bytes as u64;
        for (index, partition) in partitions.iter().enumerate() {
            array.extend(entry(index, partition, start));
            start += partition.bytes;
        }
        array.resize(entries_bytes, 0);

        let last_sector = sectors(start + tail_bytes as u64) - 1;
        let geometry = Geometry {
            disk: guid(disk),
            first_usable: sectors(head_bytes as u64),
            last_usable: sectors(head_bytes as u64 + partitions_bytes) - 1,
            entries: u32::try_from(entries).unwrap_or(u32::MAX),
            entries_crc: crc32fast::hash(&array),
        };
        let backup_entries = last_sector - sectors(entries_bytes as u64);

        let mut head = protective_mbr(last_sector);
        head.extend(geometry.header(1, last_sector, 2));
        head.extend(&array);
        head.resize(head_bytes, 0);
        let mut tail = vec![0; tail_bytes - entries_bytes - SECTOR_BYTES];
        tail.extend(&array);
        tail.extend(geometry.header(last_sector, 1, backup_entries));
        Self { head, tail }
    }
}

/// What both headers have in common.
struct Geometry {
    disk: [u8; 16],
    first_usable: u64,
    last_usable: u64,
    entries: u32,
    entries_crc: u32,
}

impl Geometry {
    /// The header in sector `own`, with its twin in `other` and its entries from `entries_at` on.
    fn header(&self, own: u64, other: u64, entries_at: u64) -> Vec<u8> {
        let with_checksum = |checksum: u32| {
            let mut header = b"EFI PART".to_vec();
            header.extend(0x0001_0000_u32.to_le_bytes());
            header.extend(HEADER_BYTES.to_le_bytes());
            header.extend(checksum.to_le_bytes());
            header.extend(0_u32.to_le_bytes());
            for sector in [own, other, self.first_usable, self.last_usable] {
                header.extend(sector.to_le_bytes());
            }
            header.extend(self.disk);
            header.extend(entries_at.to_le_bytes());
            header.extend(self.entries.to_le_bytes());
            header.extend(ENTRY_BYTES_FIELD.to_le_bytes());
            header.extend(self.entries_crc.to_le_bytes());
            header
        };
        let mut header = with_checksum(crc32fast::hash(&with_checksum(0)));
        header.resize(SECTOR_BYTES, 0);
        header
    }
}

fn entry(index: usize, partition: &Partition, start: u64) -> Vec<u8> {
    let first = sectors(start);
    // An image may have the same layer twice, but no two partitions the same GUID.
    let unique = Digest::of(&[partition.diff_id.bytes(), &index.to_le_bytes()[..]].concat());
    let mut entry = Vec::with_capacity(ENTRY_BYTES);
    entry.extend(LINUX_FILESYSTEM);
    entry.extend(guid(unique));
    entry.extend(first.to_le_bytes());
    entry.extend((first + sectors(partition.bytes) - 1).to_le_bytes());
    entry.extend(READ_ONLY.to_le_bytes());
    // 36 UTF-16 units: what of the diff ID fits.
    entry.extend(
        partition
            .diff_id
            .hex()
            .bytes()
            .take(36)
            .flat_map(|digit| [digit, 0]),
    );
    entry.resize(ENTRY_BYTES, 0);
    entry
}

/// One partition over the whole disk, to keep tools that know no GPT away.
fn protective_mbr(last_sector: u64) -> Vec<u8> {
    let mut mbr = vec![0; 446];
    mbr.extend([0x00, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff]);
    mbr.extend(1_u32.to_le_bytes());
    mbr.extend(u32::try_from(last_sector).unwrap_or(u32::MAX).to_le_bytes());
    mbr.resize(510, 0);
    mbr.extend([0x55, 0xaa]);
    mbr
}

/// A GUID made of a digest, marked as a custom one (RFC 9562, version 8).
fn guid(digest: Digest) -> [u8; 16] {
    let mut guid = *digest.bytes().first_chunk::<16>().unwrap_or(&[0; 16]);
    // The third group is little-endian on disk, so its high byte is the second.
    let [.., version, variant, _, _, _, _, _, _, _] = &mut guid;
    *version = *version & 0x0f | 0x80;
    *variant = *variant & 0x3f | 0x80;
    guid
}

fn sectors(bytes: u64) -> u64 {
    bytes / SECTOR_BYTES as u64
}

/// A read-only file in memory, for a part of the table.
pub(super) fn sealed_memory(content: &[u8]) -> io::Result<Segment> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("bulkhead-image-disk", flags)?);
    file.write_all(content)?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    // Opened anew for reading only: this is what a jailed VMM accepts.
    let read_only = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    Ok(Segment {
        file: read_only.into(),
        length: content.len() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(count: u8) -> Vec<Partition> {
        (0..count)
            .map(|i| Partition {
                diff_id: Digest::of(&[i]),
                bytes: (u64::from(i) + 1) * 4096,
            })
            .collect()
    }

    fn number(bytes: &[u8]) -> u64 {
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    #[test]
    fn both_headers_are_right_and_mirror_each_other() {
        for count in [0, 1, 3, 128, 129, 255] {
            let partitions = partitions(count);
            let table = PartitionTable::new(Digest::of(b"disk"), &partitions);
            assert_eq!((table.head.len() % 4096, table.tail.len() % 4096), (0, 0));
            let total = table.head.len() as u64
                + table.tail.len() as u64
                + partitions.iter().map(|partition| partition.bytes).sum::<u64>();
            let last = total / 512 - 1;
            let primary = &table.head[512..1024];
            let backup = &table.tail[table.tail.len() - 512..];
            for (header, own, other) in [(primary, 1, last), (backup, last, 1)] {
                let mut blank = header[..92].to_vec();
                blank[16..20].fill(0);
                assert_eq!(number(&header[16..20]), u64::from(crc32fast::hash(&blank)));
                assert_eq!((number(&header[24..32]), number(&header[32..40])), (own, other));
                let entries = usize::try_from(number(&header[80..84])).unwrap() * 128;
                let at = usize::try_from(number(&header[72..80]) * 512).unwrap();
                let array = if own == 1 {
                    &table.head[at..at + entries]
                } else {
                    let at = at - (usize::try_from(total).unwrap() - table.tail.len());
                    &table.tail[at..at + entries]
                };
                assert_eq!(number(&header[88..92]), u64::from(crc32fast::hash(array)));
                let mut start = table.head.len() as u64;
                for (partition, entry) in partitions.iter().zip(array.chunks(128)) {
                    assert_eq!(number(&entry[32..40]) * 512, start);
                    start += partition.bytes;
                    assert_eq!((number(&entry[40..48]) + 1) * 512, start);
                }
            }
        }
    }
}
