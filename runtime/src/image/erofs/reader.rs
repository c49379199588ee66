//! Reads directories and attributes back from a blob.
//!
//! Only what [`Writer`](super::Writer) writes is understood. Blobs are our own, but disks fail, so everything is checked:
//! a damaged blob is an error and not a panic.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{
    BLOCK_BYTES, DIRENT_BYTES, DataLayout, FileType, INODE_BYTES, InodeRecord, SLOT_BYTES, SUPERBLOCK_OFFSET,
    root_nid,
};
use super::writer::Attributes;
use super::xattr::Xattrs;

/// The largest directory that is read, of about a million names.
const MAX_DIRECTORY_BYTES: u64 = 256 << 20;

/// A blob open for reading.
#[derive(Debug)]
pub struct Reader {
    file: File,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The number of its inode.
    pub nid: u64,
    /// What it is.
    pub file_type: FileType,
}

impl Reader {
    /// Reads from `file`, from its start.
    pub fn new(file: File) -> Self {
        Self { file }
    }

    /// The root directory.
    pub fn root(&self) -> io::Result<u64> {
        let mut superblock = [0; 64];
        self.file
            .read_exact_at(&mut superblock, SUPERBLOCK_OFFSET as u64)?;
        root_nid(&superblock).ok_or_else(|| damaged("it does not begin with a superblock"))
    }

    /// Owner, mode, time and extended attributes of an inode.
    pub fn attributes(&self, nid: u64) -> io::Result<Attributes> {
        let inode = self.inode(nid)?;
        let mut body = vec![0; inode.xattr_bytes];
        self.file
            .read_exact_at(&mut body, position(nid)? + INODE_BYTES as u64)?;
        Ok(Attributes {
            permissions: inode.mode & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            mtime_seconds: inode.mtime_seconds,
            mtime_nanoseconds: inode.mtime_nanoseconds,
            xattrs: Xattrs::decode(&body).ok_or_else(|| damaged("an inode's attributes cannot be read"))?,
        })
    }

    /// What a directory holds, in the order of names, without `.` and `..`.
    pub fn entries(&self, directory: u64) -> io::Result<Vec<(Vec<u8>, Found)>> {
        let data = self.directory_data(directory)?;
        let mut entries = Vec::new();
        for block in data.chunks(BLOCK_BYTES) {
            read_block(block, &mut entries).ok_or_else(|| damaged("a directory cannot be read"))?;
        }
        Ok(entries)
    }

    fn directory_data(&self, nid: u64) -> io::Result<Vec<u8>> {
        let inode = self.inode(nid)?;
        if inode.mode >> 12 != FileType::Directory.mode_bits() >> 12 || inode.size > MAX_DIRECTORY_BYTES {
            return Err(damaged("a directory's inode is not one"));
        }
        let size = usize::try_from(inode.size).map_err(|_| damaged("a directory is too large"))?;
        let own = match inode.layout {
            DataLayout::Plain => size,
            DataLayout::Inline => size / BLOCK_BYTES * BLOCK_BYTES,
        };
        let mut data = vec![0; size];
        let (own, inline) = data.split_at_mut(own);
        self.file
            .read_exact_at(own, u64::from(inode.data) * BLOCK_BYTES as u64)?;
        let behind = position(nid)? + INODE_BYTES as u64 + inode.xattr_bytes as u64;
        self.file.read_exact_at(inline, behind)?;
        Ok(data)
    }

    fn inode(&self, nid: u64) -> io::Result<InodeRecord> {
        let mut bytes = [0; INODE_BYTES];
        self.file.read_exact_at(&mut bytes, position(nid)?)?;
        InodeRecord::decode(&bytes).ok_or_else(|| damaged("an inode is of another form"))
    }
}

fn position(nid: u64) -> io::Result<u64> {
    nid.checked_mul(SLOT_BYTES as u64)
        .ok_or_else(|| damaged("an inode's number is out of range"))
}

/// Reads one block of a directory.
fn read_block(block: &[u8], entries: &mut Vec<(Vec<u8>, Found)>) -> Option<()> {
    let name_offset = |index: usize| {
        let field = block.get(index * DIRENT_BYTES + 8..)?.first_chunk::<2>()?;
        Some(usize::from(u16::from_le_bytes(*field)))
    };
    let count = name_offset(0)? / DIRENT_BYTES;
    for index in 0..count {
        let entry = block.get(index * DIRENT_BYTES..)?.first_chunk::<DIRENT_BYTES>()?;
        let end = if index + 1 < count {
            name_offset(index + 1)?
        } else {
            block.len()
        };
        // The last name ends with the block, or with a NUL before that.
        let name = block
            .get(name_offset(index)?..end)?
            .split(|byte| *byte == 0)
            .next()?;
        let file_type = FileType::from_number(entry[10])?;
        if name != b"." && name != b".." {
            let nid = u64::from_le_bytes(*entry.first_chunk()?);
            entries.push((name.to_vec(), Found { nid, file_type }));
        }
    }
    Some(())
}

fn damaged(reason: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the EROFS blob is damaged: {reason}"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::tree::{Entry, Tree};
    use super::super::writer::Writer;
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let mut xattrs = Xattrs::default();
        xattrs.set(b"user.a", b"1").unwrap();
        xattrs.set(b"system.posix_acl_default", b"acl").unwrap();
        let attributes = Attributes {
            permissions: 0o1750,
            uid: 70_000,
            gid: 1,
            mtime_seconds: -5,
            mtime_nanoseconds: 7,
            xattrs,
        };
        let mut tree = Tree::new(Attributes::default());
        let mut writer = Writer::new(tempfile::tempfile().unwrap());
        let directory = tree.make_directory(Tree::ROOT, b"d", attributes.clone());
        for i in 0..500 {
            let inode = writer.end_file(&Attributes::default()).unwrap();
            tree.insert(directory, format!("file-{i:03}").as_bytes(), Entry::Other(inode));
        }
        let (file, _) = writer.finish(&tree).unwrap();
        let reader = Reader::new(file);
        let root = reader.entries(reader.root().unwrap()).unwrap();
        assert_eq!(root.len(), 1);
        let (name, found) = &root[0];
        assert_eq!(
            (name.as_slice(), found.file_type),
            (&b"d"[..], FileType::Directory)
        );
        assert_eq!(reader.attributes(found.nid).unwrap(), attributes);
        let entries = reader.entries(found.nid).unwrap();
        assert_eq!(entries.len(), 500);
        assert_eq!(entries[499].0, b"file-499");
        assert!(
            reader.entries(entries[0].1.nid).is_err(),
            "a file is no directory"
        );
        assert!(reader.entries(u64::MAX).is_err() && reader.entries(1 << 40).is_err());
    }

    #[test]
    fn a_damaged_blob_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let reader = Reader::new(file);
        assert!(reader.root().is_err());
        assert!(reader.entries(36).is_err());
    }
}
