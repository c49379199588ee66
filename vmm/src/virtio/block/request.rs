//! A request, parsed from the driver's bytes (section 5.2.6): once it has this form, it fits the protocol; whether it
//! fits the disk is the disk's to say.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::{
    config::{DISCARD_SECTORS, RANGES, ZERO_SECTORS},
    disk::SECTOR,
};
use crate::virtio::{buffer::GuestBuffer, ring::Chain};

/// Type, a reserved word and the first sector.
const HEADER_BYTES: usize = 16;

/// First sector, number of sectors and flags.
const RANGE_BYTES: usize = 16;

/// What the driver wants.
#[derive(Debug)]
pub enum Request<'m> {
    /// Fill the buffer with the bytes from `start` on.
    Read { start: u64, into: GuestBuffer<'m> },
    /// Write the buffer from `start` on.
    Write { start: u64, from: GuestBuffer<'m> },
    /// Make all that was written durable.
    Flush,
    /// Say the serial.
    GetId { into: GuestBuffer<'m> },
    /// The bytes are not needed any more.
    Discard(Vec<Range>),
    /// Make the bytes zero.
    WriteZeroes(Vec<Range>),
}

/// A run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Number of bytes.
    pub length: u64,
    /// Whether zeros may be made by giving up the space.
    pub unmap: bool,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It cannot be carried out as it is.
    Invalid,
    /// It is of a kind that is not offered.
    Unsupported,
}

impl<'m> Request<'m> {
    /// Reads a request from a chain. Its status goes to [`status`].
    pub fn parse(chain: &Chain<'m>) -> Result<Self, Refusal> {
        let mut header = [0; HEADER_BYTES];
        if chain.readable.copy_out(0, &mut header) != HEADER_BYTES {
            return Err(Refusal::Invalid);
        }
        let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let kind = u32::from_le_bytes([t0, t1, t2, t3]);
        let start = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]).checked_mul(SECTOR);
        let written = chain.readable.part(HEADER_BYTES, usize::MAX);
        let room = chain.writable.part(0, chain.writable.len().saturating_sub(1));
        match kind {
            VIRTIO_BLK_T_IN => Ok(Self::Read {
                start: start.ok_or(Refusal::Invalid)?,
                into: sectors(room)?,
            }),
            VIRTIO_BLK_T_OUT => Ok(Self::Write {
                start: start.ok_or(Refusal::Invalid)?,
                from: sectors(written)?,
            }),
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Self::GetId { into: room }),
            VIRTIO_BLK_T_DISCARD => Ok(Self::Discard(ranges(&written, DISCARD_SECTORS, 0)?)),
            VIRTIO_BLK_T_WRITE_ZEROES => Ok(Self::WriteZeroes(ranges(
                &written,
                ZERO_SECTORS,
                VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
            )?)),
            _ => Err(Refusal::Unsupported),
        }
    }
}

/// Where the status of a request goes: the last byte that may be written.
pub fn status<'m>(chain: &Chain<'m>) -> Option<GuestBuffer<'m>> {
    let last = chain.writable.len().checked_sub(1)?;
    Some(chain.writable.part(last, 1))
}

fn sectors(buffer: GuestBuffer<'_>) -> Result<GuestBuffer<'_>, Refusal> {
    if (buffer.len() as u64).is_multiple_of(SECTOR) {
        Ok(buffer)
    } else {
        Err(Refusal::Invalid)
    }
}

/// Reads ranges of at most `most_sectors` each. Flags other than `allowed` are unsupported, as section 5.2.6.2 wants.
fn ranges(written: &GuestBuffer<'_>, most_sectors: u32, allowed: u32) -> Result<Vec<Range>, Refusal> {
    let count = written.len() / RANGE_BYTES;
    if !written.len().is_multiple_of(RANGE_BYTES) || count == 0 || count > RANGES as usize {
        return Err(Refusal::Invalid);
    }
    (0..count)
        .map(|index| {
            let mut bytes = [0; RANGE_BYTES];
            written.copy_out(index * RANGE_BYTES, &mut bytes);
            let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = bytes;
            let start = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            let flags = u32::from_le_bytes([f0, f1, f2, f3]);
            if flags & !allowed != 0 {
                return Err(Refusal::Unsupported);
            }
            if sectors > most_sectors {
                return Err(Refusal::Invalid);
            }
            Ok(Range {
                start: start.checked_mul(SECTOR).ok_or(Refusal::Invalid)?,
                length: u64::from(sectors) * SECTOR,
                unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
            })
        })
        .collect()
}
