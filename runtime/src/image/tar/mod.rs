//! Reads tar archives of image layers: ustar, PAX (POSIX.1-2001), GNU and old V7, with sparse files of both kinds.
//!
//! Archives are hostile. Every record that is held in memory is bounded by [`MAX_EXTENSION_BYTES`] whatever its header
//! says, numbers are checked before they are used, and an error says at which byte of the archive it is. (The `tar`
//! crate reads extension records whole, and without them it cannot take sizes over 8 GiB from PAX.)

mod header;
mod pax;
mod sparse;

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use header::{BLOCK_BYTES, Header};
use pax::PaxRecords;
use serde::{Deserialize, Serialize};
pub(super) use sparse::SparseMap;

/// The most bytes an extension record (PAX header, GNU long name, sparse map) may have, as in Go's `archive/tar`.
pub(super) const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// Why an archive cannot be read.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TarError {
    /// The bytes are no tar archive.
    #[error("the tar archive is malformed at byte {offset}: {reason}")]
    Malformed { offset: u64, reason: String },
    /// The archive ends inside an entry.
    #[error("the tar archive ends at byte {offset}, inside an entry")]
    Truncated { offset: u64 },
    /// The source of the bytes failed.
    #[error("{0}")]
    Read(
        #[source]
        #[serde(with = "super::layer::io_error")]
        Arc<io::Error>,
    ),
}

/// One entry's header, with its extension records applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    /// Target of a link.
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    /// Bytes of the file as a reader of it sees them, holes included.
    pub(super) size: u64,
    pub(super) permissions: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime_seconds: i64,
    pub(super) mtime_nanoseconds: u32,
    /// Major and minor number of a device.
    pub(super) device: (u32, u32),
    /// Extended attributes by full name.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the bytes that follow belong in a sparse file; nothing for any other.
    pub(super) sparse: Option<SparseMap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// A tar archive that is read from front to back.
#[derive(Debug)]
pub(super) struct Archive<R> {
    source: Source<R>,
    /// Bytes of the current entry's data not read yet.
    data_left: u64,
    /// Zeros behind them, up to the next block.
    padding: u64,
    ended: bool,
}

impl<R: BufRead> Archive<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            source: Source { reader, offset: 0 },
            data_left: 0,
            padding: 0,
            ended: false,
        }
    }

    /// The next entry; what is left of the one before it is skipped.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut pax = PaxRecords::default();
        let mut long_path = None;
        let mut long_link = None;
        loop {
            let Some(header) = self.next_header()? else {
                return Ok(None);
            };
            match header.type_flag() {
                b'x' => {
                    let records = self.read_extension("PAX header")?;
                    pax = PaxRecords::parse(&records).map_err(|reason| self.malformed(reason))?;
                }
                // Defaults for all entries: what git and some archivers put there concerns no file.
                b'g' => drop(self.read_extension("global PAX header")?),
                b'L' => long_path = Some(until_nul(self.read_extension("long name")?)),
                b'K' => long_link = Some(until_nul(self.read_extension("long link name")?)),
                _ => return self.entry(&header, &mut pax, long_path, long_link).map(Some),
            }
        }
    }

    /// More of the current entry's data; empty at its end. [`consume`](Self::consume) what was used.
    pub(super) fn data(&mut self) -> Result<&[u8], TarError> {
        if self.data_left == 0 {
            return Ok(&[]);
        }
        let data_left = usize::try_from(self.data_left).unwrap_or(usize::MAX);
        let available = self.source.fill()?;
        Ok(available.get(..data_left).unwrap_or(available))
    }

    /// Marks `bytes` bytes of what [`data`](Self::data) gave as read.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.source.consume(bytes);
        self.data_left = self.data_left.saturating_sub(bytes as u64);
    }

    /// The reader, wherever it stands.
    pub(super) fn into_inner(self) -> R {
        self.source.reader
    }

    fn next_header(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.source.skip(self.data_left + self.padding)?;
        self.data_left = 0;
        self.padding = 0;
        let Some(block) = self.source.read_block_or_end()? else {
            self.ended = true;
            return Ok(None);
        };
        if block == [0; BLOCK_BYTES] {
            self.ended = true;
            return match self.source.read_block_or_end()? {
                Some(second) if second != [0; BLOCK_BYTES] => {
                    Err(self.malformed("one block of zeros is followed by something else"))
                }
                _ => Ok(None),
            };
        }
        let header = Header::parse(&block).map_err(|reason| self.malformed(reason))?;
        let size = header.data_bytes().map_err(|reason| self.malformed(reason))?;
        self.set_data(size);
        Ok(Some(header))
    }

    fn set_data(&mut self, bytes: u64) {
        let block = BLOCK_BYTES as u64;
        self.data_left = bytes;
        self.padding = (block - bytes % block) % block;
    }

    /// Applies extension records to the header they precede.
    fn entry(
        &mut self,
        header: &Header,
        pax: &mut PaxRecords,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let mut entry = header.entry().map_err(|reason| self.malformed(reason))?;
        if let Some(path) = long_path {
            entry.path = path;
        }
        if let Some(link) = long_link {
            entry.link = link;
        }
        pax.apply(&mut entry).map_err(|reason| self.malformed(reason))?;
        // Old archives mark a directory by the slash at its end alone.
        if entry.kind == Kind::Regular && entry.path.ends_with(b"/") {
            entry.kind = Kind::Directory;
        }
        if entry.kind == Kind::Regular {
            self.set_data(entry.size);
            self.read_sparse_map(header, pax, &mut entry)?;
        } else {
            entry.size = 0;
            // PAX gives a hard link the size of its file, but no data follows.
            let data = if entry.kind == Kind::HardLink {
                0
            } else {
                header.data_bytes().unwrap_or(0)
            };
            self.set_data(data);
        }
        Ok(entry)
    }

    /// Finds out where the data of a sparse file belongs, from whichever of the four forms it has.
    fn read_sparse_map(
        &mut self,
        header: &Header,
        pax: &PaxRecords,
        entry: &mut Entry,
    ) -> Result<(), TarError> {
        let map = if header.is_gnu_sparse() {
            let mut map = header
                .gnu_sparse_start()
                .map_err(|reason| self.malformed(reason))?;
            while map.more_follows() {
                // These blocks are part of the header: the size does not count them.
                let Some(block) = self.source.read_block_or_end()? else {
                    return Err(self.truncated());
                };
                map.extend(&block).map_err(|reason| self.malformed(reason))?;
            }
            map.finish()
        } else if pax.has_map_in_data() {
            self.read_sparse_map_from_data(pax)
        } else if let Some(map) = pax.sparse_map() {
            map
        } else {
            return Ok(());
        };
        let map = map.map_err(|reason| self.malformed(reason))?;
        if map.data_bytes() != self.data_left {
            let (listed, left) = (map.data_bytes(), self.data_left);
            return Err(self.malformed(format!(
                "a sparse map lists {listed} bytes of data but {left} follow"
            )));
        }
        entry.size = map.size();
        entry.sparse = Some(map);
        Ok(())
    }

    /// GNU sparse format 1.0: the map is text in front of the data, padded to a block.
    fn read_sparse_map_from_data(&mut self, pax: &PaxRecords) -> Result<SparseMap, String> {
        let mut text = sparse::MapText::default();
        loop {
            if self.data_left < BLOCK_BYTES as u64 {
                return Err("a sparse map does not end inside its file".into());
            }
            let block = match self.source.read_block_or_end() {
                Ok(Some(block)) => block,
                Ok(None) => return Err("the archive ends inside a sparse map".into()),
                Err(error) => return Err(error.to_string()),
            };
            self.data_left -= BLOCK_BYTES as u64;
            if let Some(map) = text.extend(&block, pax.sparse_size()?)? {
                return Ok(map);
            }
        }
    }

    fn read_extension(&mut self, what: &str) -> Result<Vec<u8>, TarError> {
        if self.data_left > MAX_EXTENSION_BYTES {
            let size = self.data_left;
            return Err(self.malformed(format!("a {what} of {size} bytes is over {MAX_EXTENSION_BYTES}")));
        }
        let mut content = Vec::new();
        while self.data_left > 0 {
            let piece = self.data()?;
            content.extend_from_slice(piece);
            let bytes = piece.len();
            self.consume(bytes);
        }
        Ok(content)
    }

    fn malformed(&self, reason: impl Into<String>) -> TarError {
        TarError::Malformed {
            offset: self.source.offset,
            reason: reason.into(),
        }
    }

    fn truncated(&self) -> TarError {
        TarError::Truncated {
            offset: self.source.offset,
        }
    }
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.truncate(length);
    name
}

/// The bytes of the archive and where in them we are.
#[derive(Debug)]
struct Source<R> {
    reader: R,
    offset: u64,
}

impl<R: BufRead> Source<R> {
    /// What can be read now; never empty.
    fn fill(&mut self) -> Result<&[u8], TarError> {
        let offset = self.offset;
        let available = fill_buf(&mut self.reader)?;
        if available.is_empty() {
            Err(TarError::Truncated { offset })
        } else {
            Ok(available)
        }
    }

    fn consume(&mut self, bytes: usize) {
        self.reader.consume(bytes);
        self.offset += bytes as u64;
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), TarError> {
        while bytes > 0 {
            let available = self.fill()?.len();
            let step = available.min(usize::try_from(bytes).unwrap_or(usize::MAX));
            self.consume(step);
            bytes -= step as u64;
        }
        Ok(())
    }

    /// A whole block, or nothing if the bytes end right here.
    fn read_block_or_end(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, TarError> {
        let mut block = [0; BLOCK_BYTES];
        let mut missing = &mut block[..];
        while !missing.is_empty() {
            let mut available = fill_buf(&mut self.reader)?;
            if available.is_empty() {
                let nothing_came = missing.len() == BLOCK_BYTES;
                return if nothing_came {
                    Ok(None)
                } else {
                    Err(TarError::Truncated { offset: self.offset })
                };
            }
            let count = available
                .read(missing)
                .map_err(|error| TarError::Read(Arc::new(error)))?;
            missing = missing.split_at_mut(count).1;
            self.consume(count);
        }
        Ok(Some(block))
    }
}

fn fill_buf<R: BufRead>(reader: &mut R) -> Result<&[u8], TarError> {
    loop {
        match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(TarError::Read(Arc::new(error))),
            // Borrowed anew, because the first borrow would last for the loop.
            Ok(_) => break,
        }
    }
    reader.fill_buf().map_err(|error| TarError::Read(Arc::new(error)))
}

#[cfg(test)]
mod tests;
