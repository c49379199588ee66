//! One daemon per directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// How long a lock may be held by a process that is about to let it go.
const MOMENT: Duration = Duration::from_secs(1);

/// Why a directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon has it.
    #[error(
        "another bulkheadd{holder} uses the directory {directory}; stop it, or give this one other directories \
         (`root` and `state` in its configuration)"
    )]
    Taken {
        /// The directory.
        directory: PathBuf,
        /// " (process N)", where the lock file says so.
        holder: String,
    },
    /// The directory or its lock file cannot be used.
    #[error("cannot use the directory {directory}: {source}")]
    Unusable {
        /// The directory.
        directory: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A directory that is this process's own until it ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Makes `directory` if need be and takes it.
    ///
    /// # Errors
    ///
    /// [`LockError::Taken`] when another process holds it.
    pub fn take(directory: &Path) -> Result<Self, LockError> {
        let unusable = |source| LockError::Unusable {
            directory: directory.to_owned(),
            source,
        };
        fs::create_dir_all(directory).map_err(unusable)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("bulkheadd.lock"))
            .map_err(unusable)?;
        match lock(&file) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = (&file).take(20).read_to_string(&mut pid);
                let pid = pid.trim();
                let holder = if pid.is_empty() {
                    String::new()
                } else {
                    format!(" (process {pid})")
                };
                return Err(LockError::Taken {
                    directory: directory.to_owned(),
                    holder,
                });
            }
            Err(error) => return Err(unusable(error.into())),
        }
        // Who holds it is told to the next one that asks; the lock itself is the kernel's.
        let told = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        told.map_err(unusable)?;
        Ok(Self { _file: file })
    }
}

/// Locks the file; gives up when somebody else has it for longer than a moment. A process that a killed daemon was just
/// starting has its open files until it has become another program.
fn lock(file: &File) -> Result<(), Errno> {
    let deadline = Instant::now() + MOMENT;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(MOMENT / 20),
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_has_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let first = DirectoryLock::take(directory.path()).unwrap();
        let message = DirectoryLock::take(directory.path()).unwrap_err().to_string();
        assert!(
            message.contains(&format!("process {}", std::process::id())),
            "{message}"
        );
        assert!(
            message.contains(&directory.path().display().to_string()),
            "{message}"
        );
        drop(first);
        DirectoryLock::take(directory.path()).unwrap();
    }
}
