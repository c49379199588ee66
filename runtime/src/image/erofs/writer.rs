//! Places data and inodes in the blob as they come.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::blob::{Blob, CLUSTER_BLOCKS, Cluster, low_usize, too_large, zeros};
use super::directory::{self, Target};
use super::format::{
    BLOCK_BYTES, DataLayout, FileType, INODE_BYTES, INODE_LINKS_OFFSET, InodeRecord, SLOT_BYTES,
    SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Superblock,
};
use super::tree::{DirectoryId, Tree};
use super::xattr::Xattrs;

/// Where the root directory's inode lies: behind the superblock.
const ROOT_OFFSET: usize = SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES;

/// Owner, permissions, time and extended attributes of an inode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with set-user-ID, set-group-ID and sticky (`07777`).
    pub permissions: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Modification time, seconds since 1970, negative before.
    pub mtime_seconds: i64,
    /// Nanoseconds added to `mtime_seconds`.
    pub mtime_nanoseconds: u32,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// A written inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    pub(super) nid: u64,
    pub(super) file_type: FileType,
}

/// An inode that is neither file, directory nor symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A character device. `0, 0` is overlayfs's whiteout.
    Character {
        /// Major number, 12 bits.
        major: u32,
        /// Minor number, 20 bits.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number, 12 bits.
        major: u32,
        /// Minor number, 20 bits.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Writes one file system to a file.
///
/// One regular file at a time is written with [`write`](Self::write) and [`hole`](Self::hole) and ended with
/// [`end_file`](Self::end_file).
#[derive(Debug)]
pub struct Writer {
    blob: Blob,
    cluster: Cluster,
    file: OpenFile,
    inodes: u32,
}

/// The regular file being written.
#[derive(Debug, Default)]
struct OpenFile {
    first_block: Option<u32>,
    /// Bytes of full blocks so far.
    full_bytes: u64,
    /// What does not fill a block yet.
    rest: Vec<u8>,
}

impl Writer {
    /// A writer to `file`, which must be empty, open for reading and writing, and seekable.
    pub fn new(file: File) -> Self {
        Self {
            blob: Blob::new(file),
            cluster: Cluster::default(),
            file: OpenFile::default(),
            inodes: 1,
        }
    }

    /// Appends `data` to the current regular file.
    pub fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        if !self.file.rest.is_empty() {
            let missing = BLOCK_BYTES - self.file.rest.len();
            let (head, tail) = data.split_at(missing.min(data.len()));
            self.file.rest.extend(head);
            data = tail;
            if self.file.rest.len() < BLOCK_BYTES {
                return Ok(());
            }
            let block = std::mem::take(&mut self.file.rest);
            self.append_blocks(&block)?;
            self.file.rest = block;
            self.file.rest.clear();
        }
        let (blocks, rest) = data.split_at(data.len() / BLOCK_BYTES * BLOCK_BYTES);
        self.append_blocks(blocks)?;
        self.file.rest.extend(rest);
        Ok(())
    }

    /// Appends `length` zeros to the current regular file, without writing them.
    pub fn hole(&mut self, length: u64) -> io::Result<()> {
        let block = BLOCK_BYTES as u64;
        let used = self.file.rest.len() as u64;
        let to_boundary = (block - used) % block;
        if length < to_boundary {
            return self.write(zeros(length));
        }
        self.write(zeros(to_boundary))?;
        let length = length - to_boundary;
        let blocks = length / block;
        if blocks > 0 {
            let first = self.blob.skip_blocks(blocks)?;
            self.file.first_block.get_or_insert(first);
            self.file.full_bytes += blocks * block;
        }
        self.write(zeros(length % block))
    }

    fn append_blocks(&mut self, blocks: &[u8]) -> io::Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        let first = self.blob.append(blocks)?;
        self.file.first_block.get_or_insert(first);
        self.file.full_bytes += blocks.len() as u64;
        Ok(())
    }

    /// Ends the current regular file, which is empty if nothing was written since the last one.
    pub fn end_file(&mut self, attributes: &Attributes) -> io::Result<Inode> {
        let OpenFile {
            first_block,
            full_bytes,
            rest,
        } = std::mem::take(&mut self.file);
        let size = full_bytes + rest.len() as u64;
        self.put_inode(FileType::Regular, attributes, first_block, size, &rest)
    }

    /// Forgets what was written of the current regular file.
    pub fn abandon_file(&mut self) {
        self.file = OpenFile::default();
    }

    /// Writes a symbolic link to `target`.
    pub fn symlink(&mut self, target: &[u8], attributes: &Attributes) -> io::Result<Inode> {
        self.put_inode(FileType::Symlink, attributes, None, target.len() as u64, target)
    }

    /// Writes a device node or a pipe.
    pub fn device(&mut self, device: Device, attributes: &Attributes) -> io::Result<Inode> {
        let (file_type, number) = match device {
            Device::Character { major, minor } => (FileType::CharacterDevice, device_number(major, minor)),
            Device::Block { major, minor } => (FileType::BlockDevice, device_number(major, minor)),
            Device::Fifo => (FileType::Fifo, 0),
        };
        self.put_inode(file_type, attributes, Some(number), 0, &[])
    }

    /// Writes the directories and the superblock, and gives the file back with its length, a multiple of
    /// [`BLOCK_BYTES`].
    pub fn finish(mut self, tree: &Tree) -> io::Result<(File, u64)> {
        let reachable = tree.reachable();
        let mut places = HashMap::with_capacity(reachable.len());
        for id in &reachable {
            let place = self.place_directory(tree, *id)?;
            places.insert(*id, place);
        }
        self.flush()?;

        let mut block_0 = [0; BLOCK_BYTES];
        for id in &reachable {
            let inode = self.encode_directory(tree, *id, &places)?;
            let offset = places.get(id).map_or(0, |place| place.nid) * SLOT_BYTES as u64;
            if *id == Tree::ROOT {
                for (byte, value) in block_0.iter_mut().skip(ROOT_OFFSET).zip(&inode) {
                    *byte = *value;
                }
            } else {
                self.blob.file.write_all_at(&inode, offset)?;
            }
        }
        self.blob.flush()?;
        for (nid, links) in tree.link_counts() {
            let offset = nid * SLOT_BYTES as u64 + INODE_LINKS_OFFSET;
            self.blob.file.write_all_at(&links.to_le_bytes(), offset)?;
        }
        let superblock = Superblock {
            root_nid: u16::try_from(ROOT_OFFSET / SLOT_BYTES).unwrap_or(u16::MAX),
            inodes: u64::from(self.inodes),
            blocks: self.blob.next_block,
        };
        superblock.put(&mut block_0);
        self.blob.file.write_all_at(&block_0, 0)?;
        let length = u64::from(self.blob.next_block) * BLOCK_BYTES as u64;
        self.blob.file.set_len(length)?;
        Ok((self.blob.file, length))
    }

    /// Reserves a directory's inode and data.
    fn place_directory(&mut self, tree: &Tree, id: DirectoryId) -> io::Result<Place> {
        let directory = tree.directory(id);
        let size = directory::data_bytes(directory);
        let (full, rest) = (size / BLOCK_BYTES, size % BLOCK_BYTES);
        let inode_bytes = INODE_BYTES + directory.attributes.xattrs.encoded_bytes();
        let (nid, inline) = if id == Tree::ROOT {
            if ROOT_OFFSET + inode_bytes > BLOCK_BYTES {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the extended attributes of the root directory have more than 2880 bytes",
                ));
            }
            (
                ROOT_OFFSET / SLOT_BYTES,
                rest > 0 && ROOT_OFFSET + inode_bytes + rest <= BLOCK_BYTES,
            )
        } else {
            self.inodes += 1;
            let inline = rest > 0 && inode_bytes + rest <= BLOCK_BYTES;
            let bytes = if inline { inode_bytes + rest } else { inode_bytes };
            let offset = self.reserve(bytes)?;
            (low_usize(offset / SLOT_BYTES as u64), inline)
        };
        let own_blocks = if inline { full } else { size.div_ceil(BLOCK_BYTES) };
        let first_block = self.blob.skip_blocks(own_blocks as u64)?;
        Ok(Place {
            nid: nid as u64,
            first_block,
            own_blocks,
            serial: self.inodes,
        })
    }

    /// Writes a directory's own blocks and returns its inode with what follows it in the same block.
    fn encode_directory(
        &self,
        tree: &Tree,
        id: DirectoryId,
        places: &HashMap<DirectoryId, Place>,
    ) -> io::Result<Vec<u8>> {
        let directory = tree.directory(id);
        let nid_of = |id: DirectoryId| places.get(&id).map_or(0, |place| place.nid);
        let mut subdirectories = 0;
        let data = directory::encode(directory, |target| match target {
            Target::Itself => nid_of(id),
            Target::Parent => nid_of(directory.parent()),
            Target::Child(super::Entry::Directory(child)) => {
                subdirectories += 1;
                nid_of(*child)
            }
            Target::Child(super::Entry::Symlink(inode, _) | super::Entry::Other(inode)) => inode.nid,
        });
        let Some(place) = places.get(&id) else {
            return Ok(Vec::new());
        };
        let (own, inline) = data.split_at((place.own_blocks * BLOCK_BYTES).min(data.len()));
        self.blob
            .file
            .write_all_at(own, u64::from(place.first_block) * BLOCK_BYTES as u64)?;
        let xattrs = directory.attributes.xattrs.encode();
        let attributes = &directory.attributes;
        let record = InodeRecord {
            layout: if inline.is_empty() {
                DataLayout::Plain
            } else {
                DataLayout::Inline
            },
            xattr_bytes: xattrs.len(),
            mode: FileType::Directory.mode_bits() | attributes.permissions,
            size: data.len() as u64,
            data: place.first_block,
            serial: place.serial,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime_seconds: attributes.mtime_seconds,
            mtime_nanoseconds: attributes.mtime_nanoseconds,
            links: 2 + subdirectories,
        };
        Ok([&record.encode()[..], &xattrs, inline].concat())
    }

    /// Writes an inode, and `rest` behind it or in a block of its own.
    fn put_inode(
        &mut self,
        file_type: FileType,
        attributes: &Attributes,
        data: Option<u32>,
        size: u64,
        rest: &[u8],
    ) -> io::Result<Inode> {
        let xattrs = attributes.xattrs.encode();
        let inline = !rest.is_empty() && INODE_BYTES + xattrs.len() + rest.len() <= BLOCK_BYTES;
        let mut data = data;
        if !rest.is_empty() && !inline {
            let mut block = rest.to_vec();
            block.resize(BLOCK_BYTES, 0);
            let own_block = self.blob.append(&block)?;
            data.get_or_insert(own_block);
        }
        self.inodes = self.inodes.checked_add(1).ok_or_else(too_large)?;
        let record = InodeRecord {
            layout: if inline {
                DataLayout::Inline
            } else {
                DataLayout::Plain
            },
            xattr_bytes: xattrs.len(),
            mode: file_type.mode_bits() | attributes.permissions,
            size,
            data: data.unwrap_or(0),
            serial: self.inodes,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime_seconds: attributes.mtime_seconds,
            mtime_nanoseconds: attributes.mtime_nanoseconds,
            links: 1,
        };
        let record = record.encode();
        let behind = if inline { rest } else { &[] };
        let bytes = record.len() + xattrs.len() + behind.len();
        let offset = self.reserve(bytes)?;
        self.fill(offset, &[&record, &xattrs, behind])?;
        Ok(Inode {
            nid: offset / SLOT_BYTES as u64,
            file_type,
        })
    }

    /// Finds a place for an inode of `bytes` bytes with what follows it, in one block unless it is larger.
    fn reserve(&mut self, bytes: usize) -> io::Result<u64> {
        if bytes > BLOCK_BYTES {
            let first = self.blob.skip_blocks(bytes.div_ceil(BLOCK_BYTES) as u64)?;
            return Ok(u64::from(first) * BLOCK_BYTES as u64);
        }
        if let Some(offset) = self.cluster.reserve(bytes) {
            return Ok(offset);
        }
        self.cluster.write(&self.blob.file)?;
        let first = self.blob.skip_blocks(CLUSTER_BLOCKS as u64)?;
        self.cluster = Cluster::at(first);
        self.cluster.reserve(bytes).ok_or_else(too_large)
    }

    fn fill(&mut self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        if self.cluster.fill(offset, parts) {
            return Ok(());
        }
        self.blob.file.write_all_at(&parts.concat(), offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.cluster.write(&self.blob.file)?;
        let cluster = std::mem::take(&mut self.cluster);
        // A blob that ends with a cluster ends with the cluster's last block in use.
        if cluster.end_block() == self.blob.next_block {
            self.blob.next_block -= cluster.unused_blocks();
        }
        self.blob.flush()
    }
}

/// Where a directory goes.
#[derive(Debug, Clone, Copy)]
struct Place {
    nid: u64,
    first_block: u32,
    /// Blocks of data outside the inode's block.
    own_blocks: usize,
    serial: u32,
}

/// `new_encode_dev()` of the kernel.
fn device_number(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12
}
