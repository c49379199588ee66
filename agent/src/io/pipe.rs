//! The agent's ends of pipes to its children.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::read,
    pipe::{PipeFlags, pipe_with},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::sys::reactor;

/// A new pipe, read end first, of which only the agent's end is to be made non-blocking: the two ends are files of
/// their own, and a process expects its standard streams to block.
pub fn new() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

/// Makes `fd` non-blocking and registers it with the event loop.
pub fn own_end(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    set_nonblocking(&fd)?;
    reactor::register(fd)
}

/// Makes reads and writes of `fd` return instead of wait.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&fd)?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    Ok(())
}

/// Reads a pipe until all of its writers are gone.
///
/// # Errors
///
/// `InvalidData` beyond `most` bytes.
pub async fn read_to_end(fd: OwnedFd, most: usize) -> io::Result<Vec<u8>> {
    let pipe = own_end(fd)?;
    let mut bytes = Vec::new();
    loop {
        let mut part = [0; 1024];
        let length = read_part(&pipe, &mut part).await?;
        if length == 0 {
            return Ok(bytes);
        }
        bytes.extend(part.iter().take(length));
        if bytes.len() > most {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// Reads what there is; 0 at the end.
pub async fn read_part(pipe: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    pipe.async_io(Interest::READABLE, |fd| Ok(read(fd, &mut *buffer)?))
        .await
}
