//! Descriptors of a child process.

#![allow(unsafe_code, reason = "close_range(2) and dup2(2) have no safe wrapper")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
};

/// Closes every descriptor from 3 on but those in `keep`.
///
/// Only for a child made by [`spawn`](super::clone::spawn), which never returns to code that owns the others.
pub fn close_others(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    assert!(super::clone::in_child(), "the agent keeps its descriptors");
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: this process is a child whose owners of these descriptors never run again.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes `fd` the standard stream `number` (0, 1 or 2), to be inherited by the next program.
pub fn set_standard_stream(number: RawFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    assert!((0..=2).contains(&number), "{number} is no standard stream");
    // SAFETY: replaces one of the three standard descriptors, which no object of this program owns.
    if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
