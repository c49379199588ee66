//! The files under a disk: what is done to a run of its bytes is done to each file that has some of them.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
};

use rustix::{
    fs::{FallocateFlags, OFlags, SeekFrom, fallocate, fcntl_getfl, seek},
    io::Errno,
};

use super::Segment;
use crate::{
    config::DiskAccess,
    virtio::{buffer::GuestBuffer, scatter},
};

/// Bytes in a sector, the unit of the protocol whatever the disk's own is.
pub const SECTOR: u64 = 512;

/// Longest serial (VIRTIO_BLK_ID_BYTES).
pub const SERIAL_BYTES: usize = 20;

/// Zeros written at once where a file system cannot make them itself.
const ZEROS: &[u8] = &[0; 256 * 1024];

/// Why there is no such disk.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The serial is what the guest tells disks apart by.
    #[error("the disk serial {0:?} is not 1 to {SERIAL_BYTES} printable ASCII characters")]
    Serial(String),
    /// A disk has bytes.
    #[error("disk {serial} has no segments")]
    Empty {
        /// Of the disk.
        serial: String,
    },
    /// A segment's length is not one.
    #[error(
        "segment {index} of disk {serial} has {length} bytes; it takes a multiple of {SECTOR}, at least one, and less \
         than 2^63 for the whole disk"
    )]
    Length {
        /// Of the disk.
        serial: String,
        /// Of the segment, from 0.
        index: usize,
        /// In bytes.
        length: u64,
    },
    /// A segment's file is not long enough.
    #[error("segment {index} of disk {serial} is to have {length} bytes, but its file has {actual}")]
    Short {
        /// Of the disk.
        serial: String,
        /// Of the segment, from 0.
        index: usize,
        /// What was asked for, in bytes.
        length: u64,
        /// What there is.
        actual: u64,
    },
    /// A file is not open for what the guest may do.
    #[error("the file of segment {index} of disk {serial} is not open for {needed}")]
    Mode {
        /// Of the disk.
        serial: String,
        /// Of the segment, from 0.
        index: usize,
        /// "reading" or "reading and writing".
        needed: &'static str,
    },
    /// A file cannot be looked at.
    #[error("the file of segment {index} of disk {serial} cannot be used: {source}")]
    File {
        /// Of the disk.
        serial: String,
        /// Of the segment, from 0.
        index: usize,
        /// Why.
        source: io::Error,
    },
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    serial: String,
    access: DiskAccess,
    pieces: Vec<Piece>,
    capacity: u64,
}

/// A segment in its place.
#[derive(Debug)]
struct Piece {
    start: u64,
    length: u64,
    file: File,
}

impl Disk {
    /// Checks everything that can be checked of the files before a guest sees them.
    pub fn new(serial: &str, access: DiskAccess, segments: Vec<Segment>) -> Result<Self, BlockError> {
        let printable = serial.bytes().all(|byte| byte.is_ascii_graphic());
        if serial.is_empty() || serial.len() > SERIAL_BYTES || !printable {
            return Err(BlockError::Serial(serial.to_owned()));
        }
        let serial = serial.to_owned();
        if segments.is_empty() {
            return Err(BlockError::Empty { serial });
        }
        let mut pieces = Vec::with_capacity(segments.len());
        let mut capacity: u64 = 0;
        for (index, Segment { file, length }) in segments.into_iter().enumerate() {
            let end = capacity
                .checked_add(length)
                .filter(|end| i64::try_from(*end).is_ok());
            let (Some(end), false) = (end, length == 0 || length % SECTOR != 0) else {
                return Err(BlockError::Length {
                    serial,
                    index,
                    length,
                });
            };
            check_file(&file, &serial, index, access, length)?;
            pieces.push(Piece {
                start: capacity,
                length,
                file,
            });
            capacity = end;
        }
        Ok(Self {
            serial,
            access,
            pieces,
            capacity,
        })
    }

    /// What the guest reads as its serial.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// What the guest may do.
    pub fn access(&self) -> DiskAccess {
        self.access
    }

    /// In bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Fills `buffer` with the bytes from `start` on.
    pub fn read(&self, start: u64, buffer: &GuestBuffer<'_>) -> io::Result<()> {
        self.each(start, buffer.len() as u64, |piece, offset, done, length| {
            scatter::read_exact_at(piece.file.as_fd(), &slice(buffer, done, length), offset)
        })
    }

    /// Writes `buffer` from `start` on.
    pub fn write(&self, start: u64, buffer: &GuestBuffer<'_>) -> io::Result<()> {
        self.each(start, buffer.len() as u64, |piece, offset, done, length| {
            scatter::write_all_at(piece.file.as_fd(), &slice(buffer, done, length), offset)
        })
    }

    /// Makes all that was written durable.
    pub fn flush(&self) -> io::Result<()> {
        self.pieces.iter().try_for_each(|piece| piece.file.sync_data())
    }

    /// Gives the space of `length` bytes back to the host. They read as zeros afterwards.
    pub fn discard(&self, start: u64, length: u64) -> io::Result<()> {
        self.each(start, length, |piece, offset, _, length| {
            Ok(fallocate(
                &piece.file,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                offset,
                length,
            )?)
        })
    }

    /// Makes `length` bytes zero and keeps their space, so that writing them later cannot fail for want of it.
    pub fn write_zeroes(&self, start: u64, length: u64) -> io::Result<()> {
        self.each(start, length, |piece, offset, _, length| {
            let range = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            match fallocate(&piece.file, range, offset, length) {
                Ok(()) => Ok(()),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    write_zeros(&piece.file, offset, length)
                }
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Calls `act` with every piece that has some of the `length` bytes from `start` on: the piece, the offset in its
    /// file, how many bytes came before, and how many there are.
    fn each(
        &self,
        start: u64,
        length: u64,
        mut act: impl FnMut(&Piece, u64, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = start
            .checked_add(length)
            .filter(|end| *end <= self.capacity)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let first = self
            .pieces
            .partition_point(|piece| piece.start + piece.length <= start);
        let mut at = start;
        for piece in self.pieces.iter().skip(first) {
            if at == end {
                break;
            }
            let offset = at - piece.start;
            let count = (piece.length - offset).min(end - at);
            act(piece, offset, at - start, count)?;
            at += count;
        }
        Ok(())
    }
}

fn check_file(
    file: &File,
    serial: &str,
    index: usize,
    access: DiskAccess,
    length: u64,
) -> Result<(), BlockError> {
    let serial = serial.to_owned();
    let result = fcntl_getfl(file).and_then(|mode| Ok((mode, seek(file, SeekFrom::End(0))?)));
    let (mode, actual) = match result {
        Ok(found) => found,
        Err(error) => {
            return Err(BlockError::File {
                serial,
                index,
                source: error.into(),
            });
        }
    };
    let opened = mode & OFlags::RWMODE;
    let (fits, needed) = match access {
        DiskAccess::ReadOnly => (opened != OFlags::WRONLY, "reading"),
        // With O_APPEND, Linux writes at the end whatever offset is named.
        DiskAccess::ReadWrite => (
            opened == OFlags::RDWR && !mode.contains(OFlags::APPEND),
            "reading and writing",
        ),
    };
    if !fits || mode.contains(OFlags::PATH) {
        return Err(BlockError::Mode {
            serial,
            index,
            needed,
        });
    }
    if actual < length {
        return Err(BlockError::Short {
            serial,
            index,
            length,
            actual,
        });
    }
    Ok(())
}

/// The `length` bytes of `buffer` after the first `done`.
fn slice<'m>(buffer: &GuestBuffer<'m>, done: u64, length: u64) -> GuestBuffer<'m> {
    // Both come from the length of the same buffer.
    let size = |count| usize::try_from(count).unwrap_or(usize::MAX);
    buffer.part(size(done), size(length))
}

fn write_zeros(file: &File, mut offset: u64, length: u64) -> io::Result<()> {
    let end = offset + length;
    while offset < end {
        let count = usize::try_from(end - offset)
            .unwrap_or(usize::MAX)
            .min(ZEROS.len());
        file.write_all_at(ZEROS.get(..count).unwrap_or(ZEROS), offset)?;
        offset += count as u64;
    }
    Ok(())
}
