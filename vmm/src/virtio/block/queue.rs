//! The request queue: carries requests out on the disk. Whatever goes wrong with one is said in its status and ends
//! nothing else.

use std::{io, sync::Arc};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};

use super::{
    disk::{Disk, SERIAL_BYTES},
    request::{Refusal, Request, status},
};
use crate::{
    config::DiskAccess,
    virtio::{buffer::GuestBuffer, requests::Serve, ring::Chain},
};

/// What serves a disk's queue.
#[derive(Debug)]
pub struct Requests {
    disk: Arc<Disk>,
    /// Whether the driver flushes; otherwise every write is durable before it is done (section 5.2.6.2).
    driver_flushes: bool,
}

impl Requests {
    /// For a driver that accepted `features`.
    pub fn new(disk: Arc<Disk>, features: u64) -> Self {
        Self {
            disk,
            driver_flushes: features & (1 << VIRTIO_BLK_F_FLUSH) != 0,
        }
    }

    /// Carries out a request and gives the number of bytes written before its status.
    fn carry_out(&self, request: &Request<'_>) -> Result<usize, Failure> {
        match request {
            Request::Read { start, into } => {
                self.disk.read(*start, into)?;
                return Ok(into.len());
            }
            Request::GetId { into } => return Ok(self.say_serial(into)),
            Request::Flush => self.disk.flush()?,
            Request::Write { start, from } => self.change(|disk| disk.write(*start, from))?,
            Request::Discard(ranges) => self.change(|disk| {
                ranges
                    .iter()
                    .try_for_each(|range| disk.discard(range.start, range.length))
            })?,
            Request::WriteZeroes(ranges) => self.change(|disk| {
                ranges.iter().try_for_each(|range| {
                    if range.unmap && disk.discard(range.start, range.length).is_ok() {
                        return Ok(());
                    }
                    disk.write_zeroes(range.start, range.length)
                })
            })?,
        }
        Ok(0)
    }

    /// Does something that changes the disk, if it may be changed.
    fn change(&self, change: impl FnOnce(&Disk) -> io::Result<()>) -> Result<(), Failure> {
        if self.disk.access() == DiskAccess::ReadOnly {
            return Err(Failure::Io);
        }
        change(&self.disk)?;
        if !self.driver_flushes {
            self.disk.flush()?;
        }
        Ok(())
    }

    /// The serial, filled up with zeros to its full length, of which the buffer may have less.
    fn say_serial(&self, into: &GuestBuffer<'_>) -> usize {
        let mut serial = self.disk.serial().as_bytes().to_vec();
        serial.resize(SERIAL_BYTES, 0);
        into.copy_in(0, &serial)
    }
}

impl Serve for Requests {
    fn serve(&mut self, chain: &Chain<'_>) -> usize {
        // Without room for a status there is no way to answer; nothing is done then.
        let Some(answer) = status(chain) else {
            return 0;
        };
        let result = Request::parse(chain)
            .map_err(Failure::from)
            .and_then(|request| self.carry_out(&request));
        let (written, code) = match result {
            Ok(written) => (written, VIRTIO_BLK_S_OK),
            Err(Failure::Io) => (0, VIRTIO_BLK_S_IOERR),
            Err(Failure::Unsupported) => (0, VIRTIO_BLK_S_UNSUPP),
        };
        written + answer.copy_in(0, &code.to_le_bytes()[..1])
    }
}

/// What a driver learns of a failure.
#[derive(Debug)]
enum Failure {
    Io,
    Unsupported,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid => Self::Io,
            Refusal::Unsupported => Self::Unsupported,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // A file system that cannot make holes: the driver asks no more.
        if error.kind() == io::ErrorKind::Unsupported {
            Self::Unsupported
        } else {
            Self::Io
        }
    }
}
