//! Extended attributes, stored behind the inode they belong to.

use std::collections::BTreeMap;

/// The body's header (`struct erofs_xattr_ibody_header`): no name filter, no shared attributes.
const HEADER_BYTES: usize = 12;
const ENTRY_HEADER_BYTES: usize = 4;

/// The most bytes all attributes of one inode may take, the kernel's own limit for one value (`XATTR_SIZE_MAX`) and
/// some names.
const MAX_BODY_BYTES: usize = 128 * 1024;

/// Attributes whose whole name is its index (`EROFS_XATTR_INDEX_*`).
const WHOLE_NAMES: [(&[u8], u8); 2] = [(b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3)];

/// Prefixes that an index stands for.
const PREFIXES: [(&[u8], u8); 4] = [
    (b"user.", 1),
    (b"trusted.", 4),
    (b"lustre.", 5),
    (b"security.", 6),
];

/// Why an extended attribute cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XattrError {
    /// Of a namespace that EROFS has no index for.
    #[error("the extended attribute {0:?} is in a namespace that EROFS cannot hold")]
    Namespace(String),
    /// The name is empty, over 255 bytes, or has a NUL.
    #[error("the extended attribute {0:?} has a name that no file system can hold")]
    Name(String),
    /// The values are too large.
    #[error("the extended attributes have more than {MAX_BODY_BYTES} bytes")]
    TooLarge,
}

/// The extended attributes of one inode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Xattrs {
    by_name: BTreeMap<(u8, Vec<u8>), Vec<u8>>,
    entry_bytes: usize,
}

impl Xattrs {
    /// Sets the attribute `name` (in full, as `user.mime_type`) to `value`.
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> Result<(), XattrError> {
        let shown = || String::from_utf8_lossy(name).into_owned();
        let (index, suffix) = split_name(name).ok_or_else(|| XattrError::Namespace(shown()))?;
        let has_suffix = index != 2 && index != 3;
        if name.len() > 255 || name.contains(&0) || suffix.is_empty() == has_suffix {
            return Err(XattrError::Name(shown()));
        }
        let key = (index, suffix.to_vec());
        let before = self.by_name.get(&key).map_or(0, |old| entry_bytes(suffix, old));
        let entry_bytes = self.entry_bytes - before + entry_bytes(suffix, value);
        if value.len() > usize::from(u16::MAX) || entry_bytes > MAX_BODY_BYTES {
            return Err(XattrError::TooLarge);
        }
        self.entry_bytes = entry_bytes;
        self.by_name.insert(key, value.to_vec());
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Bytes they take behind the inode, a multiple of four.
    pub fn encoded_bytes(&self) -> usize {
        if self.is_empty() {
            0
        } else {
            HEADER_BYTES + self.entry_bytes
        }
    }

    /// Takes the attribute `name` away; says whether it was there.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        let Some((index, suffix)) = split_name(name) else {
            return false;
        };
        let Some(value) = self.by_name.remove(&(index, suffix.to_vec())) else {
            return false;
        };
        self.entry_bytes -= entry_bytes(suffix, &value);
        true
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let mut xattrs = Self::default();
        let mut rest = if body.is_empty() {
            body
        } else {
            body.get(HEADER_BYTES..)?
        };
        while let Some((header, behind)) = rest.split_first_chunk::<ENTRY_HEADER_BYTES>() {
            let &[name_bytes, index, low, high] = header;
            let (suffix, behind) = behind.split_at_checked(usize::from(name_bytes))?;
            let (value, _) = behind.split_at_checked(usize::from(u16::from_le_bytes([low, high])))?;
            let bytes = entry_bytes(suffix, value);
            xattrs.by_name.insert((index, suffix.to_vec()), value.to_vec());
            xattrs.entry_bytes += bytes;
            rest = rest.get(bytes..)?;
        }
        Some(xattrs)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.encoded_bytes());
        if self.is_empty() {
            return body;
        }
        body.extend([0; HEADER_BYTES]);
        for ((index, suffix), value) in &self.by_name {
            // Both lengths were checked when the attribute was set.
            body.push(u8::try_from(suffix.len()).unwrap_or(u8::MAX));
            body.push(*index);
            body.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
            body.extend(suffix);
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        body
    }
}

/// Bytes of the body that `i_xattr_icount` stands for.
pub(super) fn body_bytes(icount: u16) -> usize {
    if icount == 0 {
        0
    } else {
        HEADER_BYTES + 4 * (usize::from(icount) - 1)
    }
}

/// `i_xattr_icount` for a body of `bytes` bytes.
pub(super) fn icount(bytes: usize) -> u16 {
    if bytes == 0 {
        0
    } else {
        u16::try_from((bytes - HEADER_BYTES) / 4 + 1).unwrap_or(u16::MAX)
    }
}

fn entry_bytes(suffix: &[u8], value: &[u8]) -> usize {
    (ENTRY_HEADER_BYTES + suffix.len() + value.len()).next_multiple_of(4)
}

fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let whole = WHOLE_NAMES
        .iter()
        .find(|(whole, _)| *whole == name)
        .map(|(_, index)| (*index, &[][..]));
    whole.or_else(|| {
        PREFIXES
            .iter()
            .find_map(|(prefix, index)| Some((*index, name.strip_prefix(*prefix)?)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_laid_out_as_the_kernel_reads_them() {
        let mut xattrs = Xattrs::default();
        xattrs.set(b"user.a", b"old").unwrap();
        xattrs.set(b"user.a", b"12345").unwrap();
        xattrs.set(b"system.posix_acl_access", b"\x02\0\0\0").unwrap();
        let body = xattrs.encode();
        assert_eq!(body.len(), xattrs.encoded_bytes());
        assert_eq!(body[..12], [0; 12]);
        assert_eq!(body[12..24], *b"\x01\x01\x05\x00a12345\0\0");
        assert_eq!(body[24..], *b"\x00\x02\x04\x00\x02\0\0\0");
        assert_eq!(icount(body.len()), 6);
        assert_eq!(body_bytes(6), body.len());
        assert_eq!(Xattrs::decode(&body), Some(xattrs.clone()));
        assert_eq!(Xattrs::decode(&body[..body.len() - 4]), None);
        assert!(xattrs.remove(b"user.a") && !xattrs.remove(b"user.a"));
        assert_eq!(xattrs.encode().len(), xattrs.encoded_bytes());
        assert_eq!(icount(0), 0);
    }

    #[test]
    fn attributes_that_cannot_be_held_are_refused() {
        let mut xattrs = Xattrs::default();
        let mut set = |name: &[u8], value: &[u8]| xattrs.set(name, value).unwrap_err();
        assert_eq!(
            set(b"system.nfs4_acl", b""),
            XattrError::Namespace("system.nfs4_acl".into())
        );
        assert_eq!(set(b"user.", b""), XattrError::Name("user.".into()));
        assert!(matches!(set(b"user.a\0b", b""), XattrError::Name(_)));
        assert!(matches!(
            set(&[b"user.", &[b'x'; 251][..]].concat(), b""),
            XattrError::Name(_)
        ));
        assert_eq!(set(b"user.big", &vec![0; 65_536]), XattrError::TooLarge);
        xattrs.set(b"user.1", &vec![0; 65_535]).unwrap();
        assert_eq!(xattrs.set(b"user.2", &vec![0; 65_535]), Err(XattrError::TooLarge));
        assert!(xattrs.encoded_bytes() < 66_000);
    }
}
