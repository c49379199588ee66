//! The 512-byte header block of an entry.

use super::sparse::GnuMap;
use super::{Entry, Kind};

pub(super) const BLOCK_BYTES: usize = 512;

/// A header block whose checksum is right.
#[derive(Debug, Clone)]
pub(super) struct Header([u8; BLOCK_BYTES]);

type Field = std::ops::Range<usize>;

const NAME: Field = 0..100;
const MODE: Field = 100..108;
const UID: Field = 108..116;
const GID: Field = 116..124;
const SIZE: Field = 124..136;
const MTIME: Field = 136..148;
const CHECKSUM: Field = 148..156;
const TYPE_FLAG: usize = 156;
const LINK_NAME: Field = 157..257;
const MAGIC: Field = 257..265;
const DEVICE_MAJOR: Field = 329..337;
const DEVICE_MINOR: Field = 337..345;
const PREFIX: Field = 345..500;
const STAR_PREFIX: Field = 345..476;
const STAR_TRAILER: Field = 508..512;
const GNU_SPARSE: Field = 386..482;
const GNU_SPARSE_MORE: usize = 482;
const GNU_REAL_SIZE: Field = 483..495;

impl Header {
    /// Checks the block's checksum, the sum of its bytes with the checksum itself read as spaces. Some old archivers
    /// summed signed bytes.
    pub(super) fn parse(block: &[u8; BLOCK_BYTES]) -> Result<Self, String> {
        let header = Self(*block);
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (index, byte) in block.iter().enumerate() {
            let byte = if CHECKSUM.contains(&index) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        let stated = header.number(CHECKSUM, "checksum")?;
        if stated != unsigned && stated != signed {
            return Err(format!(
                "a header's checksum is {unsigned} but it states {stated}"
            ));
        }
        Ok(header)
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[TYPE_FLAG]
    }

    /// Bytes of data behind the header, as the header itself has it.
    pub(super) fn data_bytes(&self) -> Result<u64, String> {
        match self.type_flag() {
            // These have none, whatever their size says (POSIX: hard links; pipes and devices store other things).
            b'1' | b'2' | b'3' | b'4' | b'5' | b'6' => Ok(0),
            _ => {
                let size = self.number(SIZE, "size")?;
                let size = u64::try_from(size).map_err(|_| format!("a size is negative ({size})"))?;
                if size > MAX_FILE_BYTES {
                    return Err(format!(
                        "a size of {size} bytes is over what any file system holds"
                    ));
                }
                Ok(size)
            }
        }
    }

    /// The entry without its extension records.
    pub(super) fn entry(&self) -> Result<Entry, String> {
        let kind = match self.type_flag() {
            b'0' | b'\0' | b'7' | b'S' => Kind::Regular,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharacterDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let path = String::from_utf8_lossy(&self.path()).into_owned();
                return Err(format!(
                    "{path:?} is of type {:?}, which no image has",
                    char::from(other)
                ));
            }
        };
        let device = match kind {
            Kind::CharacterDevice | Kind::BlockDevice => (
                self.small(DEVICE_MAJOR, "device number")?,
                self.small(DEVICE_MINOR, "device number")?,
            ),
            _ => (0, 0),
        };
        Ok(Entry {
            path: self.path(),
            link: self.text(LINK_NAME).to_vec(),
            kind,
            size: self.data_bytes()?,
            permissions: permissions(self.number(MODE, "mode")?),
            uid: self.small(UID, "owner")?,
            gid: self.small(GID, "group")?,
            mtime_seconds: self.number(MTIME, "time")?,
            mtime_nanoseconds: 0,
            device,
            xattrs: Vec::new(),
            sparse: None,
        })
    }

    pub(super) fn is_gnu_sparse(&self) -> bool {
        self.type_flag() == b'S' && self.is_gnu()
    }

    /// The sparse map's beginning in the header of an old GNU sparse file.
    pub(super) fn gnu_sparse_start(&self) -> Result<GnuMap, String> {
        let size = self.number(GNU_REAL_SIZE, "size")?;
        let size = u64::try_from(size).map_err(|_| format!("a size is negative ({size})"))?;
        GnuMap::start(&self.0[GNU_SPARSE], self.0[GNU_SPARSE_MORE] != 0, size)
    }

    fn is_gnu(&self) -> bool {
        self.0[MAGIC] == *b"ustar  \0"
    }

    fn path(&self) -> Vec<u8> {
        let name = self.text(NAME);
        let is_ustar = self.0[MAGIC].starts_with(b"ustar\0");
        let prefix = if !is_ustar {
            &[][..]
        } else if self.0[STAR_TRAILER] == *b"tar\0" {
            self.text(STAR_PREFIX)
        } else {
            self.text(PREFIX)
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, name].join(&b'/')
        }
    }

    /// The fields are constants inside the block.
    fn bytes(&self, field: Field) -> &[u8] {
        self.0.get(field).unwrap_or_default()
    }

    fn text(&self, field: Field) -> &[u8] {
        self.bytes(field)
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default()
    }

    fn number(&self, field: Field, what: &str) -> Result<i64, String> {
        number(self.bytes(field)).ok_or_else(|| format!("a {what} is not a number"))
    }

    fn small(&self, field: Field, what: &str) -> Result<u32, String> {
        let number = self.number(field, what)?;
        u32::try_from(number).map_err(|_| format!("the {what} {number} does not fit 32 bits"))
    }
}

/// The most bytes a file may claim: 8 EiB would overflow sums of sizes.
pub(super) const MAX_FILE_BYTES: u64 = 1 << 62;

/// The permission bits of a mode; archivers put the file type there as well.
pub(super) fn permissions(mode: i64) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

/// A number in octal digits with spaces or NULs around them, or in GNU's binary form (first bit set, two's
/// complement, big-endian). Blank is zero.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Bit 6 of the first byte is the sign, bit 7 the mark.
        let mut value = i128::from(if first & 0x40 != 0 { -1 } else { 0 });
        value = value << 6 | i128::from(first & 0x3f);
        for byte in rest {
            value = value.checked_mul(256)? | i128::from(*byte);
        }
        return i64::try_from(value).ok();
    }
    let digits: Vec<u8> = field
        .iter()
        .copied()
        .skip_while(|byte| *byte == b' ')
        .take_while(|byte| *byte != 0 && *byte != b' ')
        .collect();
    if digits.is_empty() {
        return Some(0);
    }
    let text = std::str::from_utf8(&digits).ok()?;
    i64::from_str_radix(text, 8)
        .ok()
        .filter(|number| *number >= 0 && !text.starts_with('+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_both_forms() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"77777777777\0"), Some(0o77_777_777_777));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"        "), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        for bad in [
            &b"12x\0"[..],
            b"-1\0",
            b"+1\0",
            b"9\0",
            b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
    }
}
