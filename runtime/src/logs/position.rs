//! How far a log has been written, remembered beside it for a daemon that comes back.
//!
//! The note is written after the log, so a daemon that was killed in between finds records in the log that the note does not
//! have. They are counted then, and the beginning of a record that was not finished is cut off: what the log holds
//! and what is asked of the agent from there on is each byte once.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::format::count;

/// Most bytes that a daemon can have written behind its last note: one batch of records.
const UNNOTED_BYTES: u64 = 1 << 20;

/// How many bytes of each stream are in the log, or in one that was rotated away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// Bytes of standard output.
    pub stdout: u64,
    /// Bytes of standard error.
    pub stderr: u64,
}

/// The note.
#[derive(Debug)]
pub struct PositionNote {
    file: File,
}

/// What the note says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    /// Which file the log is: its inode.
    inode: u64,
    /// How long it is.
    length: u64,
    offsets: Offsets,
}

const NOTE_BYTES: usize = 32;

impl PositionNote {
    /// Opens the note at `path`, made if need be.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        Ok(Self {
            file: options.open(path)?,
        })
    }

    /// Notes that `log` holds this much; without a log, that this much has been let go.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn write(&self, log: Option<&File>, offsets: Offsets) -> io::Result<()> {
        let (inode, length) = match log {
            Some(log) => {
                let metadata = log.metadata()?;
                (metadata.ino(), metadata.len())
            }
            None => (0, 0),
        };
        let mut bytes = Vec::with_capacity(NOTE_BYTES);
        for number in [inode, length, offsets.stdout, offsets.stderr] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        self.file.write_all_at(&bytes, 0)
    }

    /// How much of each stream has been written, by the note and by what `log` holds beyond it. An unfinished record at
    /// the log's end is cut off.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn recover(&self, log: Option<&File>) -> io::Result<Offsets> {
        let Some(position) = self.read()? else {
            return Ok(Offsets::default());
        };
        let Some(log) = log else {
            return Ok(position.offsets);
        };
        let metadata = log.metadata()?;
        // Another inode: the log was rotated after the note, so all of it is beyond the note.
        let noted = if metadata.ino() == position.inode {
            position.length
        } else {
            0
        };
        let beyond = metadata.len().saturating_sub(noted);
        let mut offsets = position.offsets;
        if beyond == 0 || beyond > UNNOTED_BYTES {
            return Ok(offsets);
        }
        let mut bytes = vec![0; usize::try_from(beyond).unwrap_or(0)];
        log.read_exact_at(&mut bytes, noted)?;
        if let Some(counted) = count(&bytes) {
            offsets.stdout += counted.stdout;
            offsets.stderr += counted.stderr;
            log.set_len(noted + counted.log)?;
        }
        Ok(offsets)
    }

    fn read(&self) -> io::Result<Option<Position>> {
        let mut bytes = [0; NOTE_BYTES];
        if self.file.metadata()?.len() < NOTE_BYTES as u64 {
            return Ok(None);
        }
        self.file.read_exact_at(&mut bytes, 0)?;
        let mut numbers = bytes.chunks_exact(8).map(|chunk| {
            chunk
                .iter()
                .rev()
                .fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        });
        let mut next = || numbers.next().unwrap_or(0);
        Ok(Some(Position {
            inode: next(),
            length: next(),
            offsets: Offsets {
                stdout: next(),
                stderr: next(),
            },
        }))
    }
}

/// Opens a log for appending, made if need be, with the rights that CRI logs have.
///
/// # Errors
///
/// What the file system says, with the path.
pub fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

/// Where a log and its note are.
#[derive(Clone, Debug)]
pub struct LogPaths {
    /// The log; `None` where the container has none.
    pub log: Option<PathBuf>,
    /// The note.
    pub note: PathBuf,
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const FIRST: &[u8] = b"1970-01-01T00:00:00.000000000Z stdout F one\n";
    const SECOND: &[u8] = b"1970-01-01T00:00:00.000000000Z stderr P tw\n";

    fn setup() -> (tempfile::TempDir, File, PositionNote) {
        let directory = tempfile::tempdir().unwrap();
        let log = open_log(&directory.path().join("0.log")).unwrap();
        let note = PositionNote::open(&directory.path().join("note")).unwrap();
        (directory, log, note)
    }

    #[test]
    fn a_new_log_holds_nothing() {
        let (_directory, log, note) = setup();
        assert_eq!(note.recover(Some(&log)).unwrap(), Offsets::default());
    }

    #[test]
    fn what_was_noted_is_found_again() {
        let (directory, mut log, note) = setup();
        log.write_all(FIRST).unwrap();
        note.write(Some(&log), Offsets { stdout: 4, stderr: 0 }).unwrap();
        let note = PositionNote::open(&directory.path().join("note")).unwrap();
        assert_eq!(
            note.recover(Some(&log)).unwrap(),
            Offsets { stdout: 4, stderr: 0 }
        );
    }

    #[test]
    fn records_behind_the_note_count_and_a_torn_one_is_cut_off() {
        let (_directory, mut log, note) = setup();
        log.write_all(FIRST).unwrap();
        note.write(
            Some(&log),
            Offsets {
                stdout: 1004,
                stderr: 5,
            },
        )
        .unwrap();
        log.write_all(SECOND).unwrap();
        log.write_all(&FIRST[..40]).unwrap();
        assert_eq!(
            note.recover(Some(&log)).unwrap(),
            Offsets {
                stdout: 1004,
                stderr: 7
            }
        );
        assert_eq!(log.metadata().unwrap().len(), (FIRST.len() + SECOND.len()) as u64);
    }

    #[test]
    fn a_log_that_was_rotated_after_the_note_counts_whole() {
        let (directory, mut log, note) = setup();
        log.write_all(FIRST).unwrap();
        note.write(Some(&log), Offsets { stdout: 4, stderr: 0 }).unwrap();
        let path = directory.path().join("0.log");
        std::fs::rename(&path, directory.path().join("0.log.1")).unwrap();
        let mut new = open_log(&path).unwrap();
        new.write_all(FIRST).unwrap();
        assert_eq!(
            note.recover(Some(&new)).unwrap(),
            Offsets { stdout: 8, stderr: 0 }
        );
    }
}
