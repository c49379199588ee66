//! unshare(2), for the one thread that the agent or its child has.

#![allow(unsafe_code, reason = "unshare(2) is unsafe where descriptors are unshared")]

use std::io;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Leaves the host name and System V IPC namespaces for new ones.
pub fn unshare_uts_and_ipc() -> io::Result<()> {
    unshare(UnshareFlags::NEWUTS | UnshareFlags::NEWIPC)
}

/// Makes the control group this process is in the root of those it sees.
pub fn unshare_cgroup() -> io::Result<()> {
    unshare(UnshareFlags::NEWCGROUP)
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the flags given above unshare neither descriptors nor memory.
    unsafe { unshare_unsafe(flags) }.map_err(io::Error::from)
}
