//! Bytes of the guest that the host's side has not taken yet.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::BorrowedFd,
};

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use crate::virtio::buffer::GuestBuffer;

/// Waiting bytes. Their number is bounded by the credit that the guest was given.
#[derive(Debug, Default)]
pub struct Backlog {
    bytes: VecDeque<u8>,
}

impl Backlog {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Copies a buffer to the end.
    pub fn push(&mut self, buffer: &GuestBuffer<'_>) {
        let mut bytes = vec![0; buffer.len()];
        buffer.copy_out(0, &mut bytes);
        self.bytes.extend(bytes);
    }

    /// Gives what waits to a socket and says how much it took, 0 when it takes nothing now.
    ///
    /// # Errors
    ///
    /// What the kernel says, when nothing more will be taken.
    pub fn write_to(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut done = 0;
        while !self.bytes.is_empty() {
            let (first, second) = self.bytes.as_slices();
            let parts = [IoSlice::new(first), IoSlice::new(second)];
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(socket, &parts, &mut SendAncillaryBuffer::default(), flags) {
                Ok(count) => {
                    self.bytes.drain(..count.min(self.bytes.len()));
                    done += count;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if self.bytes.is_empty() {
            // A connection that was slow once must not hold memory for ever.
            self.bytes = VecDeque::new();
        }
        Ok(done)
    }

    /// Throws away what waits and says how much it was.
    pub fn clear(&mut self) -> usize {
        std::mem::take(&mut self.bytes).len()
    }
}
