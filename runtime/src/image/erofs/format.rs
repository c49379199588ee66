//! The structures of EROFS on disk (fs/erofs/erofs_fs.h of Linux), little-endian throughout.

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;

/// Bytes of the unit that inode numbers count.
pub(super) const SLOT_BYTES: usize = 32;

/// Bytes of an inode of the extended form, the only form written: the compact one has no time of its own.
pub(super) const INODE_BYTES: usize = 64;

/// Where the superblock lies in block 0.
pub(super) const SUPERBLOCK_OFFSET: usize = 1024;

/// Bytes of the superblock.
pub(super) const SUPERBLOCK_BYTES: usize = 128;

/// Bytes of a directory entry without its name.
pub(super) const DIRENT_BYTES: usize = 12;

const MAGIC: u32 = 0xE0F5_E1E2;
const BLOCK_BITS: u8 = 12;

/// The superblock has a CRC32C.
const FEATURE_COMPAT_CHECKSUM: u32 = 0x1;
/// Inode times are modification times.
const FEATURE_COMPAT_MTIME: u32 = 0x2;

/// What a directory entry says its inode is (`EROFS_FT_*`, the same numbers as POSIX `DT_*` lists them in order).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FileType {
    /// A regular file.
    Regular = 1,
    /// A directory.
    Directory = 2,
    /// A character device.
    CharacterDevice = 3,
    /// A block device.
    BlockDevice = 4,
    /// A named pipe.
    Fifo = 5,
    /// A symbolic link.
    Symlink = 7,
}

impl FileType {
    pub(super) fn from_number(number: u8) -> Option<Self> {
        let all = [
            Self::Regular,
            Self::Directory,
            Self::CharacterDevice,
            Self::BlockDevice,
            Self::Fifo,
            Self::Symlink,
        ];
        all.into_iter().find(|file_type| *file_type as u8 == number)
    }

    /// The file type bits of a mode (`S_IFMT`).
    pub(super) fn mode_bits(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::CharacterDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Symlink => 0o120_000,
        }
    }
}

/// Where an inode's data lies (`i_format`, bits 1 to 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// In full blocks of its own.
    Plain,
    /// Full blocks of its own, and the rest behind the inode and its attributes in the same block.
    Inline,
}

/// `struct erofs_inode_extended`.
#[derive(Debug, Clone)]
pub(super) struct InodeRecord {
    pub(super) layout: DataLayout,
    /// Bytes of the inline attributes behind the inode.
    pub(super) xattr_bytes: usize,
    /// Type and permissions.
    pub(super) mode: u16,
    pub(super) size: u64,
    /// First data block, or device number.
    pub(super) data: u32,
    /// A number for 32-bit programs, unique in the file system.
    pub(super) serial: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime_seconds: i64,
    pub(super) mtime_nanoseconds: u32,
    pub(super) links: u32,
}

/// Where `i_nlink` lies in an inode of the extended form.
pub(super) const INODE_LINKS_OFFSET: u64 = 44;

impl InodeRecord {
    pub(super) fn encode(&self) -> [u8; INODE_BYTES] {
        let layout: u16 = match self.layout {
            DataLayout::Plain => 0,
            DataLayout::Inline => 2,
        };
        let mut record = Record::<INODE_BYTES>::new();
        record.u16(1 | layout << 1);
        record.u16(super::xattr::icount(self.xattr_bytes));
        record.u16(self.mode);
        record.u16(0);
        record.u64(self.size);
        record.u32(self.data);
        record.u32(self.serial);
        record.u32(self.uid);
        record.u32(self.gid);
        record.bytes(&self.mtime_seconds.to_le_bytes());
        record.u32(self.mtime_nanoseconds);
        record.u32(self.links);
        record.done()
    }
}

impl InodeRecord {
    /// Reads an inode that [`encode`](Self::encode) wrote.
    pub(super) fn decode(bytes: &[u8; INODE_BYTES]) -> Option<Self> {
        let layout = match u16::from_le_bytes(field(bytes, 0)?) {
            0b001 => DataLayout::Plain,
            0b101 => DataLayout::Inline,
            _ => return None,
        };
        Some(Self {
            layout,
            xattr_bytes: super::xattr::body_bytes(u16::from_le_bytes(field(bytes, 2)?)),
            mode: u16::from_le_bytes(field(bytes, 4)?),
            size: u64::from_le_bytes(field(bytes, 8)?),
            data: u32::from_le_bytes(field(bytes, 16)?),
            serial: u32::from_le_bytes(field(bytes, 20)?),
            uid: u32::from_le_bytes(field(bytes, 24)?),
            gid: u32::from_le_bytes(field(bytes, 28)?),
            mtime_seconds: i64::from_le_bytes(field(bytes, 32)?),
            mtime_nanoseconds: u32::from_le_bytes(field(bytes, 40)?),
            links: u32::from_le_bytes(field(bytes, 44)?),
        })
    }
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// The root directory's number from the start of a superblock.
pub(super) fn root_nid(superblock: &[u8]) -> Option<u64> {
    let is_ours = u32::from_le_bytes(field(superblock, 0)?) == MAGIC;
    is_ours.then(|| field(superblock, 14).map(|nid| u64::from(u16::from_le_bytes(nid))))?
}

/// What differs between two superblocks.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
}

impl Superblock {
    /// Puts the superblock into block 0, whose other content must be complete: the checksum covers it.
    pub(super) fn put(&self, block: &mut [u8; BLOCK_BYTES]) {
        let (_, from_superblock) = block.split_at_mut(SUPERBLOCK_OFFSET);
        if let Some(place) = from_superblock.first_chunk_mut() {
            *place = self.encode(0);
        }
        let checksum = crc32c(!0, from_superblock);
        if let Some(place) = from_superblock.first_chunk_mut() {
            *place = self.encode(checksum);
        }
    }

    /// `struct erofs_super_block`; time, UUID and label stay zero, so that equal content is an equal blob.
    fn encode(&self, checksum: u32) -> [u8; SUPERBLOCK_BYTES] {
        let mut record = Record::<SUPERBLOCK_BYTES>::new();
        record.u32(MAGIC);
        record.u32(checksum);
        record.u32(FEATURE_COMPAT_CHECKSUM | FEATURE_COMPAT_MTIME);
        record.bytes(&[BLOCK_BITS, 0]);
        record.u16(self.root_nid);
        record.u64(self.inodes);
        record.u64(0);
        record.u32(0);
        record.u32(self.blocks);
        record.done()
    }
}

/// Fills a structure of `N` bytes from its start; what is not written stays zero.
struct Record<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Record<N> {
    fn new() -> Self {
        Self {
            bytes: [0; N],
            length: 0,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(self.length).zip(bytes) {
            *place = *byte;
        }
        self.length += bytes.len();
    }

    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    fn done(self) -> [u8; N] {
        self.bytes
    }
}

/// CRC32C (Castagnoli, reflected) without the final inversion, as the kernel's `crc32c()` computes it.
fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    let mut crc = seed;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let low_bit_set = crc & 1 == 1;
            crc >>= 1;
            if low_bit_set {
                crc ^= 0x82F6_3B78;
            }
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_the_published_check_value() {
        // RFC 3720, B.4, and the catalogue's check value for "123456789".
        assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283);
        assert_eq!(!crc32c(!0, &[0; 32]), 0x8A91_36AA);
    }

    #[test]
    fn an_inode_has_its_fields_where_the_kernel_reads_them() {
        let inode = InodeRecord {
            layout: DataLayout::Inline,
            xattr_bytes: 20,
            mode: 0o100_644,
            size: 0x0102_0304_0506_0708,
            data: 0x1112_1314,
            serial: 7,
            uid: 0xffff_fffe,
            gid: 1,
            mtime_seconds: -2,
            mtime_nanoseconds: 9,
            links: 3,
        }
        .encode();
        assert_eq!(inode[0..2], [5, 0]);
        assert_eq!(inode[2..4], [3, 0]);
        assert_eq!(inode[8..16], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(inode[16..20], [0x14, 0x13, 0x12, 0x11]);
        assert_eq!(inode[32..40], (-2_i64).to_le_bytes());
        let links = usize::try_from(INODE_LINKS_OFFSET).unwrap();
        assert_eq!(inode[links..links + 4], [3, 0, 0, 0]);
    }
}
