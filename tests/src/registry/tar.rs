//! Layers written header by header, so that they can hold what no decent archiver would write.

use std::fmt::Write as _;

const BLOCK: usize = 512;

/// A tar archive in the making.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
}

/// One header. What is not set is zero, and regular.
#[derive(Clone, Debug)]
pub struct Header<'a> {
    /// At most 100 bytes, as they are.
    pub name: &'a [u8],
    /// `0` file, `1` hard link, `2` symbolic link, `3` character device, `4` block device, `5` directory, `6` FIFO.
    pub kind: u8,
    /// Target of a link.
    pub target: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Size that the header claims.
    pub size: u64,
    /// Major and minor number.
    pub device: (u32, u32),
}

impl Default for Header<'_> {
    fn default() -> Self {
        Self {
            name: b"",
            kind: b'0',
            target: b"",
            mode: 0o644,
            owner: (0, 0),
            size: 0,
            device: (0, 0),
        }
    }
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// A directory owned by root.
    #[must_use]
    pub fn directory(self, name: &str, mode: u32) -> Self {
        let name = format!("{name}/");
        self.header(&Header {
            name: name.as_bytes(),
            kind: b'5',
            mode,
            ..Header::default()
        })
    }

    /// A regular file owned by root.
    #[must_use]
    pub fn file(self, name: &str, mode: u32, contents: &[u8]) -> Self {
        let size = contents.len() as u64;
        self.header(&Header {
            name: name.as_bytes(),
            mode,
            size,
            ..Header::default()
        })
        .contents(contents)
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        let (name, target) = (name.as_bytes(), target.as_bytes());
        self.header(&Header {
            name,
            kind: b'2',
            target,
            mode: 0o777,
            ..Header::default()
        })
    }

    /// A hard link.
    #[must_use]
    pub fn hard_link(self, name: &str, target: &str) -> Self {
        let (name, target) = (name.as_bytes(), target.as_bytes());
        self.header(&Header {
            name,
            kind: b'1',
            target,
            ..Header::default()
        })
    }

    /// A PAX record for the next header.
    #[must_use]
    pub fn pax(self, key: &str, value: &[u8]) -> Self {
        // The length counts itself.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        let mut record = format!("{length} {key}=").into_bytes();
        record.extend_from_slice(value);
        record.push(b'\n');
        let size = record.len() as u64;
        self.header(&Header {
            name: b"pax",
            kind: b'x',
            size,
            ..Header::default()
        })
        .contents(&record)
    }

    /// Any header.
    #[must_use]
    pub fn header(mut self, header: &Header<'_>) -> Self {
        self.bytes.extend_from_slice(&encode(header));
        self
    }

    /// What follows a header, filled up to whole blocks.
    #[must_use]
    pub fn contents(mut self, contents: &[u8]) -> Self {
        self.bytes.extend_from_slice(contents);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// The archive so far, without its end.
    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

/// POSIX.1-1988 "ustar" (IEEE Std 1003.1, pax, "ustar Interchange Format").
fn encode(header: &Header<'_>) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |offset: usize, bytes: &[u8]| {
        for (place, byte) in block.iter_mut().skip(offset).zip(bytes) {
            *place = *byte;
        }
    };
    let octal = |value: u64, digits: usize| {
        let mut text = String::new();
        write!(text, "{value:0digits$o}\0").expect("writing to a string");
        text.into_bytes()
    };
    assert!(
        header.name.len() <= 100 && header.target.len() <= 100,
        "a name of ustar has 100 bytes"
    );
    put(0, header.name);
    put(100, &octal(header.mode.into(), 7));
    put(108, &octal(header.owner.0.into(), 7));
    put(116, &octal(header.owner.1.into(), 7));
    put(124, &octal(header.size, 11));
    put(136, &octal(1_700_000_000, 11));
    put(148, b"        ");
    put(156, &[header.kind]);
    put(157, header.target);
    put(257, b"ustar\x0000");
    put(329, &octal(header.device.0.into(), 7));
    put(337, &octal(header.device.1.into(), 7));
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    for (place, byte) in block.iter_mut().skip(148).zip(octal(sum, 6)) {
        *place = byte;
    }
    block
}

#[cfg(test)]
mod tests {
    use std::{io::Write, process::Command};

    use super::*;

    #[test]
    fn another_archiver_reads_it() {
        let archive = Archive::new()
            .directory("d", 0o750)
            .file("d/f", 0o644, b"hello")
            .symlink("d/s", "f")
            .hard_link("d/h", "d/f")
            .pax("path", "long".repeat(50).as_bytes())
            .file("short", 0o600, b"")
            .finish();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&archive).unwrap();
        let listed = Command::new("tar").arg("-tvf").arg(file.path()).output().unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.status.success(), "{text}");
        for part in ["drwxr-x---", "d/s -> f", "d/h link to d/f", &"long".repeat(50)] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}
