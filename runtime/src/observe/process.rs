//! What processes of this host use, from /proc.

use std::{fs, io};

use rustix::param::{clock_ticks_per_second, page_size};

use crate::sandbox::process::ProcessIdentity;

/// The resident memory of a process in bytes: field 2 of /proc/PID/statm. For a virtual machine's, that is the memory of the
/// guest that was touched, and what the monitor needs itself.
///
/// # Errors
///
/// `NotFound` when it has ended.
pub fn resident_bytes(process: &ProcessIdentity) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{}/statm", process.pid))?;
    // Compared after reading: what was read then was this process's.
    if ProcessIdentity::of(process.pid)? != *process {
        return Err(io::ErrorKind::NotFound.into());
    }
    resident(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
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
        let resident = resident(&fs::read_to_string("/proc/self/statm")?);
        let ticks = cpu_ticks(&fs::read_to_string("/proc/self/stat")?);
        let (Some(resident_bytes), Some(ticks)) = (resident, ticks) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let cpu_seconds = ticks as f64 / clock_ticks_per_second() as f64;
        Ok(Self {
            resident_bytes,
            cpu_seconds,
            // Not the one that reads the directory.
            descriptors: u64::try_from(fs::read_dir("/proc/self/fd")?.count().saturating_sub(1)).unwrap_or(0),
        })
    }
}

fn resident(statm: &str) -> Option<u64> {
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(page_size()).ok()?)
}

/// Fields 14 and 15 of /proc/PID/stat, counted behind the program's name, which may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_become_figures() {
        let page = u64::try_from(page_size()).unwrap();
        assert_eq!(resident("1000 25 7 1 0 90 0\n"), Some(25 * page));
        assert_eq!(resident("1000"), None);
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 1 0 5000 1 1";
        assert_eq!(cpu_ticks(stat), Some(42));
        assert_eq!(cpu_ticks("7 (a) S"), None);
    }

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
