//! SIGTERM and SIGINT as a descriptor: the owner's way to end a machine without its control socket.
#![expect(unsafe_code, reason = "no crate in use offers signalfd")]

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use vmm_sys_util::signal::{block_signal, create_sigset};

/// The signals that ask for the end.
const SIGNALS: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGINT];

/// Readable when such a signal has come.
#[derive(Debug)]
pub struct EndSignals {
    descriptor: OwnedFd,
}

/// Holds the signals back, so that only [`EndSignals`] sees them. To be called before the first thread is started: threads
/// inherit it.
///
/// # Errors
///
/// What the kernel says.
pub fn block() -> io::Result<()> {
    for signal in SIGNALS {
        match block_signal(signal) {
            Ok(()) | Err(vmm_sys_util::signal::Error::SignalAlreadyBlocked(_)) => {}
            Err(error) => return Err(io::Error::other(error.to_string())),
        }
    }
    Ok(())
}

impl EndSignals {
    /// Watches for the signals.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        let signals = create_sigset(&SIGNALS)?;
        // SAFETY: The set is a valid one and is only read during the call.
        let number =
            unsafe { libc::signalfd(-1, &raw const signals, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: The call has just given us this descriptor.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Self { descriptor })
    }
}

impl AsRawFd for EndSignals {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}
