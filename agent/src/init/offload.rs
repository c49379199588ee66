//! Work that blocks, done in a child process: the agent has one thread, and it must not stand still while a tree of a
//! million files is removed.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
};

use rustix::pipe::{PipeFlags, pipe_with};

use super::reaper::{End, Reaper};
use crate::{
    io::pipe,
    sys::{
        clone::{self, NewNamespaces},
        fds,
    },
};

/// Most bytes that a result may have.
const RESULT_BYTES: usize = 4096;

/// Runs `work` in a child and gives the bytes that it returned.
///
/// # Errors
///
/// The error of `work`, by its number or else its text; or why there is no child, or how it died.
pub async fn offload(reaper: &Reaper, work: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<Vec<u8>> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let child = clone::spawn(NewNamespaces::default(), None, || {
        if fds::close_others(&[write.as_fd()]).is_err() {
            return 1;
        }
        let (code, bytes) = match work() {
            Ok(bytes) => (0, bytes),
            Err(error) => match error.raw_os_error() {
                Some(number) => (2, number.to_le_bytes().to_vec()),
                None => (3, error.to_string().into_bytes()),
            },
        };
        match File::from(write).write_all(&bytes) {
            Ok(()) => code,
            Err(_) => 1,
        }
    })?;
    let end = reaper.track(child.pid);
    let bytes = pipe::read_to_end(read, RESULT_BYTES).await?;
    match end.await {
        Ok(End::Exited(0)) => Ok(bytes),
        Ok(End::Exited(2)) => Err(match bytes.as_slice().try_into() {
            Ok(number) => io::Error::from_raw_os_error(i32::from_le_bytes(number)),
            Err(_) => io::Error::other("the child process reported an error without its number"),
        }),
        Ok(End::Exited(3)) => Err(io::Error::other(String::from_utf8_lossy(&bytes).into_owned())),
        Ok(end) => Err(io::Error::other(format!("the child process died: {end:?}"))),
        Err(_) => Err(io::Error::other("the child process was lost")),
    }
}
