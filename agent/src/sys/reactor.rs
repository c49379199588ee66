//! Descriptors in tokio's event loop.

#![allow(
    unsafe_code,
    reason = "registering a descriptor asks for a promise about its owner"
)]

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// Registers a non-blocking descriptor with the running event loop.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps one descriptor open for as long as it lives, and AsyncFd gives out no way to swap it
    // but `get_mut`, which the agent does not use.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
