//! Signals by number, real-time ones included.

#![allow(
    unsafe_code,
    reason = "the safe wrappers know neither real-time signals nor everyone"
)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

/// Largest signal number of Linux on x86-64.
pub const LARGEST: u32 = 64;

/// Sends signal `number` to a process. One that has ended already is no error.
///
/// # Errors
///
/// What pidfd_send_signal(2) gives: `EINVAL` for a number that is no signal.
pub fn send(process: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    // SAFETY: no structure is given, so none is read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            number,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}

/// Sends SIGKILL to every process of this process namespace but its process 1, which the caller must be.
///
/// # Errors
///
/// What kill(2) gives; nobody there is no error.
pub fn kill_everyone_else() -> io::Result<()> {
    assert_eq!(std::process::id(), 1, "everyone is the whole machine");
    // SAFETY: sends a signal; the sender is left out since it is process 1.
    if unsafe { libc::kill(-1, libc::SIGKILL) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}

/// Has the kernel collect every child of this process, inherited ones included, as soon as it ends.
pub fn let_kernel_reap() {
    assert!(super::clone::in_child(), "the agent collects its children itself");
    // SAFETY: sets a disposition, for which no handler runs.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}
