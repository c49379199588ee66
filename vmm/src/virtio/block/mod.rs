//! Block device (virtio 1.2, section 5.2): a disk made of one or more files, seen as one contiguous run of sectors.
//!
//! Each disk has a thread of its own, which moves bytes straight between the files and guest memory. Writes are cached
//! by the host until the driver flushes; a driver that does not know how to flush gets every write flushed. What the
//! guest discards becomes a hole in the file, so space freed in the guest is free on the host.

mod config;
mod disk;
mod queue;
mod request;
mod state;

use std::{fs::File, sync::Arc};

pub use disk::BlockError;

use super::{
    device::{Activation, DeviceError, DeviceKind, SavedDevice, VirtioDevice},
    requests::RequestQueue,
    ring,
    stage::Stage,
};
use crate::config::DiskAccess;
use disk::Disk;
use queue::Requests;

/// One queue. Its size bounds how many pieces a request has, see [`config`].
const QUEUE_SIZES: [u16; 1] = [256];

/// The beginning of a file, which is a piece of a disk.
#[derive(Debug)]
pub struct Segment {
    /// The file, or a block device of the host. Open for writing if the disk is.
    pub file: File,
    /// How many of its first bytes are the disk's: a multiple of 512, and not 0.
    pub length: u64,
}

/// The device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    /// What it is called in messages.
    name: String,
    stage: Stage<RequestQueue<Requests>>,
    /// Features that the driver accepted.
    accepted: u64,
}

impl Block {
    /// A disk of `segments`, in order, whose serial is `serial`: 1 to 20 bytes of ASCII.
    ///
    /// # Errors
    ///
    /// [`BlockError`] for a serial or a segment that cannot be.
    pub fn new(serial: &str, access: DiskAccess, segments: Vec<Segment>) -> Result<Self, BlockError> {
        Ok(Self {
            disk: Arc::new(Disk::new(serial, access, segments)?),
            name: format!("block {serial}"),
            stage: Stage::Inactive,
            accepted: 0,
        })
    }

    /// Size of the disk in bytes.
    pub fn capacity(&self) -> u64 {
        self.disk.capacity()
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        config::features(self.disk.access())
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config::read(&self.disk, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.take(activation);
        self.resume()
    }

    fn pause(&mut self) {
        self.stage.pause();
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.stage.resume(&self.name, "virtio-block")
    }

    fn reset(&mut self) {
        self.stage = Stage::Inactive;
    }

    fn save(&self) -> Result<SavedDevice, DeviceError> {
        state::save(self)
    }

    fn restore(&mut self, saved: &SavedDevice, activation: Option<Activation>) -> Result<(), DeviceError> {
        state::restore(self, saved, activation)
    }
}

impl Block {
    /// Gets ready to run on the driver's queues.
    fn take(&mut self, activation: Activation) {
        self.accepted = activation.features;
        let interrupt = activation.interrupt.clone();
        let requests = Requests::new(Arc::clone(&self.disk), activation.features);
        match ring::take_all(activation) {
            Ok([ring]) => self.stage = Stage::Paused(RequestQueue::new(ring, requests)),
            Err(error) => interrupt.needs_reset(&error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
