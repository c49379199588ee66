//! A VMM's process, told from every other by more than its number.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

/// A process that once ran, for finding it again after the daemon's or the host's restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks after boot: field 22 of /proc/PID/stat.
    pub start_ticks: u64,
    /// The boot it belongs to.
    pub boot_id: String,
}

/// A running process, held so that its number cannot come to mean another.
#[derive(Debug)]
pub struct Process {
    identity: ProcessIdentity,
    descriptor: AsyncFd<OwnedFd>,
}

impl ProcessIdentity {
    /// That of the process `pid` now.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is none.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_ticks = start_ticks(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is not as expected"))?;
        Ok(Self {
            pid,
            start_ticks,
            boot_id: boot_id()?,
        })
    }
}

impl Process {
    /// Takes hold of a process. Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// `NotFound` when it has ended or its number means another one by now.
    pub fn hold(identity: ProcessIdentity) -> io::Result<Self> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the process has ended");
        let pid = i32::try_from(identity.pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(gone)?;
        let descriptor = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|_| gone())?;
        // Asked after the descriptor is held: what has this number now keeps it.
        if ProcessIdentity::of(identity.pid).map_err(|_| gone())? != identity {
            return Err(gone());
        }
        Ok(Self {
            identity,
            descriptor: register(descriptor)?,
        })
    }

    /// Which process it is.
    pub fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        // A pidfd is readable when its process has ended (pidfd_open(2)).
        if let Err(error) = self.descriptor.readable().await {
            tracing::error!(pid = self.identity.pid, %error, "cannot wait for a process");
        }
    }

    /// Sends a signal. One that has ended already is not an error.
    pub fn signal(&self, signal: Signal) {
        match pidfd_send_signal(self.descriptor.as_fd(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                let descriptor = self.descriptor.as_raw_fd();
                tracing::error!(pid = self.identity.pid, descriptor, %error, "cannot signal a process");
            }
        }
    }
}

#[expect(
    unsafe_code,
    reason = "tokio wants to know that the descriptor stays the same"
)]
fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and the same descriptor until it is dropped, which the AsyncFd that owns it does.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

/// The host's boot, as the kernel names it.
///
/// # Errors
///
/// When /proc is not there.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Field 22 of /proc/PID/stat. The second field is the program's name in parentheses and may hold anything, also
/// spaces and parentheses, so fields are counted behind the last one.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_an_odd_name_does_not_shift_the_fields() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("1234 (a) (b) 1) S {}", fields.join(" "));
        assert_eq!(start_ticks(&stat), Some(22));
        assert_eq!(start_ticks("no process"), None);
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::hold(ProcessIdentity::of(child.id()).unwrap()).unwrap();
        process.signal(Signal::KILL);
        process.ended().await;
        assert!(!child.wait().unwrap().success());
        process.signal(Signal::KILL);
    }

    #[tokio::test]
    async fn a_later_process_with_the_same_number_is_another() {
        let mut identity = ProcessIdentity::of(std::process::id()).unwrap();
        Process::hold(identity.clone()).unwrap();
        identity.start_ticks += 1;
        assert_eq!(
            Process::hold(identity).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
