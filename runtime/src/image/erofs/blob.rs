//! The blob's blocks: those of data, written in large pieces with holes left out, and those of inodes, filled side by side.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{BLOCK_BYTES, SLOT_BYTES};

/// Blocks of a cluster of inodes. Several blocks are filled at the same time so that little of them stays empty:
/// 16 blocks leave about 3 % of a layer of small files unused, one block a quarter.
pub(super) const CLUSTER_BLOCKS: usize = 16;

/// Data kept back to be written in one go.
const DATA_BUFFER_BYTES: usize = 1 << 20;

/// The run of zeros that is worth a hole in the blob.
const HOLE_BYTES: usize = 64 << 10;

/// The file and what is next in it.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) file: File,
    pub(super) next_block: u32,
    /// Full blocks not yet written, which go to `buffer_block`.
    buffer: Vec<u8>,
    buffer_block: u32,
}

impl Blob {
    /// A blob whose first block is written last.
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            next_block: 1,
            buffer: Vec::new(),
            buffer_block: 1,
        }
    }

    /// Adds whole blocks and says where they start.
    pub(super) fn append(&mut self, blocks: &[u8]) -> io::Result<u32> {
        let first = self.next_block;
        let count = (blocks.len() / BLOCK_BYTES) as u64;
        self.next_block = self.after(count)?;
        if self.buffer.is_empty() {
            self.buffer_block = first;
        }
        self.buffer.extend_from_slice(blocks);
        if self.buffer.len() >= DATA_BUFFER_BYTES {
            self.flush()?;
        }
        Ok(first)
    }

    /// Leaves `count` blocks out and says where they start.
    pub(super) fn skip_blocks(&mut self, count: u64) -> io::Result<u32> {
        let first = self.next_block;
        if count > 0 {
            self.flush()?;
            self.next_block = self.after(count)?;
        }
        Ok(first)
    }

    fn after(&self, count: u64) -> io::Result<u32> {
        u32::try_from(u64::from(self.next_block) + count).map_err(|_| too_large())
    }

    /// Writes the buffer, without its long runs of zeros.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let start = u64::from(self.buffer_block) * BLOCK_BYTES as u64;
        let mut run = 0..0;
        for (index, piece) in self.buffer.chunks(HOLE_BYTES).enumerate() {
            let offset = index * HOLE_BYTES;
            let is_hole = piece.len() == HOLE_BYTES && is_zero(piece);
            if is_hole {
                self.write_run(start, run.clone())?;
                run = offset + piece.len()..offset + piece.len();
            } else {
                run.end = offset + piece.len();
            }
        }
        self.write_run(start, run)?;
        self.buffer.clear();
        Ok(())
    }

    fn write_run(&self, start: u64, run: std::ops::Range<usize>) -> io::Result<()> {
        let offset = start + run.start as u64;
        match self.buffer.get(run) {
            Some(bytes) if !bytes.is_empty() => self.file.write_all_at(bytes, offset),
            _ => Ok(()),
        }
    }
}

/// Blocks of inodes that are being filled.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    first_block: u32,
    content: Vec<u8>,
    /// Bytes taken in each block.
    used: Vec<usize>,
}

impl Cluster {
    /// An empty one from this block on.
    pub(super) fn at(first_block: u32) -> Self {
        Self {
            first_block,
            content: vec![0; CLUSTER_BLOCKS * BLOCK_BYTES],
            used: vec![0; CLUSTER_BLOCKS],
        }
    }

    fn offset(&self) -> u64 {
        u64::from(self.first_block) * BLOCK_BYTES as u64
    }

    /// The first place with `bytes` bytes in one block.
    pub(super) fn reserve(&mut self, bytes: usize) -> Option<u64> {
        let (index, used) = self
            .used
            .iter_mut()
            .enumerate()
            .find(|(_, used)| **used + bytes <= BLOCK_BYTES)?;
        let within = index * BLOCK_BYTES + *used;
        *used = (*used + bytes).next_multiple_of(SLOT_BYTES);
        Some(self.offset() + within as u64)
    }

    /// Puts `parts` at `offset` of the blob, if that is in here.
    pub(super) fn fill(&mut self, offset: u64, parts: &[&[u8]]) -> bool {
        let Some(within) = offset.checked_sub(self.offset()) else {
            return false;
        };
        let Some(place) = self.content.get_mut(low_usize(within)..) else {
            return false;
        };
        if place.len() < parts.iter().map(|part| part.len()).sum() {
            return false;
        }
        for (place, byte) in place.iter_mut().zip(parts.iter().copied().flatten()) {
            *place = *byte;
        }
        true
    }

    /// The block behind it.
    pub(super) fn end_block(&self) -> u32 {
        self.used.iter().fold(self.first_block, |block, _| block + 1)
    }

    /// How many of its blocks, the last ones, have nothing in them.
    pub(super) fn unused_blocks(&self) -> u32 {
        self.used
            .iter()
            .filter(|used| **used == 0)
            .fold(0, |blocks, _| blocks + 1)
    }

    /// Writes the blocks that have something in them.
    pub(super) fn write(&self, file: &File) -> io::Result<()> {
        // Blocks are taken into use one after the other.
        let blocks = self.used.iter().take_while(|used| **used > 0).count();
        match self.content.get(..blocks * BLOCK_BYTES) {
            Some(content) if !content.is_empty() => file.write_all_at(content, self.offset()),
            _ => Ok(()),
        }
    }
}

const ZEROS: &[u8; BLOCK_BYTES] = &[0; BLOCK_BYTES];

/// Fewer than a block of zeros.
pub(super) fn zeros(count: u64) -> &'static [u8] {
    ZEROS.get(..low_usize(count)).unwrap_or(ZEROS)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(BLOCK_BYTES).all(|block| ZEROS.starts_with(block))
}

/// A number known to be small, for slicing.
pub(super) fn low_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

pub(super) fn too_large() -> io::Error {
    io::Error::new(
        io::ErrorKind::FileTooLarge,
        "an EROFS file system has at most 2^32 blocks and inodes",
    )
}
