//! A file that keeps the newest output of a guest and never grows beyond a bound.
//!
//! The file is plain text from its first byte to its last, oldest first, so `cat` and `tail -f` read it. When output
//! does not fit any more, the newest half is moved to the front, from the start of a line where one is near, and the
//! file is cut after it: each byte is written at most twice, and between half of the bound and all of it is kept. A
//! reader that reads while that happens sees some lines twice.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::{OFlags, fcntl_getfl};

/// A guest's log, shared by all that write to it.
#[derive(Clone, Debug)]
pub struct ConsoleLog {
    file: Arc<Mutex<RingFile>>,
    max_bytes: u64,
}

impl ConsoleLog {
    /// A log at the end of `file`, which may hold at most `max_bytes` bytes.
    ///
    /// # Errors
    ///
    /// [`RingFileError`].
    pub fn new(file: File, max_bytes: u64) -> Result<Self, RingFileError> {
        Ok(Self {
            file: Arc::new(Mutex::new(RingFile::new(file, max_bytes)?)),
            max_bytes,
        })
    }

    /// Writes to the end. A file system that takes nothing costs output and never the guest: what was lost is counted,
    /// and said in the log as soon as it takes something again.
    pub fn append(&self, output: &[u8]) {
        self.file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .append(output);
    }

    /// Bound of the file in bytes.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }
}

/// Why a file cannot keep a guest's output.
#[derive(Debug, thiserror::Error)]
pub enum RingFileError {
    /// Pipes, terminals and directories cannot be moved within.
    #[error("the console's output needs a regular file")]
    NotRegular,
    /// The file must be open for reading and writing, at any place.
    #[error("the console's file must be open for reading and writing, and not for appending")]
    Mode,
    /// The bound is too small to be of use.
    #[error("the console's file may hold {0} bytes only; at least {MIN_BYTES} are needed")]
    TooSmall(u64),
    /// The file cannot be looked at.
    #[error("the console's file cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Smallest bound.
pub const MIN_BYTES: u64 = 4096;

/// Bytes moved at once.
const BLOCK: usize = 64 * 1024;

/// The file, with one writer.
#[derive(Debug)]
struct RingFile {
    file: File,
    max_bytes: u64,
    length: u64,
    /// Bytes that could not be written since the last that could.
    lost: u64,
}

impl RingFile {
    fn new(file: File, max_bytes: u64) -> Result<Self, RingFileError> {
        if max_bytes < MIN_BYTES {
            return Err(RingFileError::TooSmall(max_bytes));
        }
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(RingFileError::NotRegular);
        }
        let mode = fcntl_getfl(&file).map_err(io::Error::from)?;
        if mode.contains(OFlags::APPEND) || mode & OFlags::RWMODE != OFlags::RDWR {
            return Err(RingFileError::Mode);
        }
        Ok(Self {
            file,
            max_bytes,
            length: metadata.len(),
            lost: 0,
        })
    }

    fn append(&mut self, output: &[u8]) {
        if self.lost > 0 {
            let notice = format!("\n[{} bytes of output could not be written here]\n", self.lost);
            if self.write(notice.as_bytes()).is_err() {
                self.lost = self.lost.saturating_add(output.len() as u64);
                return;
            }
            self.lost = 0;
        }
        // No more than half a file at once, so that what is kept is always at least that.
        let at_once = usize::try_from(self.max_bytes / 2).unwrap_or(usize::MAX);
        let mut left = output.len() as u64;
        for part in output.chunks(at_once) {
            if self.write(part).is_err() {
                self.lost = left;
                return;
            }
            left -= part.len() as u64;
        }
    }

    fn write(&mut self, output: &[u8]) -> io::Result<()> {
        if self.length.saturating_add(output.len() as u64) > self.max_bytes {
            self.keep_newest_half()?;
        }
        self.file.write_all_at(output, self.length)?;
        self.length += output.len() as u64;
        Ok(())
    }

    fn keep_newest_half(&mut self) -> io::Result<()> {
        let mut block = vec![0; BLOCK];
        let mut from = self.length - (self.max_bytes / 2).min(self.length);
        let mut to = 0;
        while from < self.length {
            let count = self.file.read_at(&mut block, from)?;
            if count == 0 {
                break;
            }
            let mut moved = block.get(..count).unwrap_or_default();
            if to == 0
                && let Some(end) = moved.iter().position(|byte| *byte == b'\n')
            {
                moved = moved.get(end + 1..).unwrap_or_default();
            }
            self.file.write_all_at(moved, to)?;
            from += count as u64;
            to += moved.len() as u64;
        }
        self.file.set_len(to)?;
        self.length = to;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "the files and texts are small")]

    use std::{io::Read, os::fd::OwnedFd};

    use super::*;

    fn content(file: &File) -> String {
        let mut content = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        String::from_utf8(content).unwrap()
    }

    /// Lines of differing lengths, so that half a file seldom ends with one.
    fn line_of(number: usize) -> String {
        format!("line {number} {}", "x".repeat(number % 7))
    }

    #[test]
    fn the_newest_lines_are_kept_whole_and_in_order_within_the_bound() {
        let file = tempfile::tempfile().unwrap();
        let log = ConsoleLog::new(file.try_clone().unwrap(), 10_000).unwrap();
        for line in 0..5000 {
            log.append(line_of(line).as_bytes());
            log.append(b"\n");
            assert!(file.metadata().unwrap().len() <= 10_000);
            if line > 1000 {
                assert!(file.metadata().unwrap().len() >= 4_900, "at line {line}");
            }
        }
        let content = content(&file);
        let lines: Vec<&str> = content.lines().collect();
        let first: usize = 5000 - lines.len();
        for (line, text) in (first..).zip(lines) {
            assert_eq!(text, line_of(line));
        }
    }

    #[test]
    fn one_write_may_be_longer_than_the_file_and_need_not_have_lines() {
        let file = tempfile::tempfile().unwrap();
        let log = ConsoleLog::new(file.try_clone().unwrap(), 4097).unwrap();
        let output: String = (0..100_000u32)
            .map(|byte| char::from(b'a' + (byte % 26) as u8))
            .collect();
        log.append(output.as_bytes());
        let kept = content(&file);
        assert!((2048..=4097).contains(&kept.len()), "{} bytes", kept.len());
        assert!(output.ends_with(&kept));
    }

    #[test]
    fn what_a_file_holds_already_is_kept_before_the_new() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"before\n", 0).unwrap();
        ConsoleLog::new(file.try_clone().unwrap(), 4096)
            .unwrap()
            .append(b"after\n");
        assert_eq!(content(&file), "before\nafter\n");
        // One that is too long is cut with the first write.
        file.write_all_at(&vec![b'x'; 20_000], 0).unwrap();
        ConsoleLog::new(file.try_clone().unwrap(), 4096)
            .unwrap()
            .append(b"after\n");
        assert_eq!(content(&file), "x".repeat(2048) + "after\n");
    }

    #[test]
    fn a_full_disk_costs_output_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let log = ConsoleLog::new(file, 8192).unwrap();
        log.append(b"one\n");
        // A file that takes no more: sealed against writing.
        let sealed =
            File::from(rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap());
        rustix::fs::fcntl_add_seals(&sealed, rustix::fs::SealFlags::GROW).unwrap();
        let good = std::mem::replace(&mut log.file.lock().unwrap().file, sealed);
        log.append(b"two\n");
        log.append(b"three\n");
        log.file.lock().unwrap().file = good;
        log.append(b"four\n");
        let mut text = String::new();
        File::open(&path).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(
            text,
            "one\n\n[10 bytes of output could not be written here]\nfour\n"
        );
    }

    #[test]
    fn files_that_cannot_be_a_ring_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "").unwrap();
        let refuse = |file: File, bytes| ConsoleLog::new(file, bytes).unwrap_err();
        let open = |path| File::options().read(true).write(true).open(path).unwrap();
        assert!(matches!(
            refuse(open(path.as_path()), 4095),
            RingFileError::TooSmall(4095)
        ));
        assert!(matches!(
            refuse(File::open(&path).unwrap(), 4096),
            RingFileError::Mode
        ));
        let appending = File::options().read(true).append(true).open(&path).unwrap();
        assert!(matches!(refuse(appending, 4096), RingFileError::Mode));
        let (pipe, _) = io::pipe().unwrap();
        assert!(matches!(
            refuse(File::from(OwnedFd::from(pipe)), 4096),
            RingFileError::NotRegular
        ));
    }
}
