//! What processes of this host use, for the figures.

use std::{fs, io};

use crate::{sandbox::process::ProcessIdentity, stats::process};

/// The resident memory of a process in bytes.
///
/// # Errors
///
/// `NotFound` when it has ended.
pub fn resident_bytes(process: &ProcessIdentity) -> io::Result<u64> {
    let figures = process::figures(process.pid)?;
    // Compared after reading: what was read then was this process's.
    if ProcessIdentity::of(process.pid)? != *process {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(figures.memory_rss_bytes)
}

/// What the daemon itself uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct OwnUse {
    /// Resident memory in bytes.
    pub(super) resident_bytes: u64,
    /// Processor time in seconds.
    pub(super) cpu_seconds: f64,
    /// Open descriptors.
    pub(super) descriptors: u64,
}

impl OwnUse {
    /// Now.
    ///
    /// # Errors
    ///
    /// When /proc is not there.
    pub(super) fn now() -> io::Result<Self> {
        let figures = process::figures(std::process::id())?;
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let cpu_seconds = figures.cpu_usage_us as f64 / 1e6;
        Ok(Self {
            resident_bytes: figures.memory_rss_bytes,
            cpu_seconds,
            // Not the one that reads the directory.
            descriptors: u64::try_from(fs::read_dir("/proc/self/fd")?.count().saturating_sub(1)).unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_measured_only_as_long_as_it_is_the_same() {
        let this = ProcessIdentity::of(std::process::id()).unwrap();
        assert!(resident_bytes(&this).unwrap() > 0);
        let another = ProcessIdentity {
            start_ticks: this.start_ticks + 1,
            ..this
        };
        assert_eq!(
            resident_bytes(&another).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert!(OwnUse::now().unwrap().descriptors > 0);
    }
}
