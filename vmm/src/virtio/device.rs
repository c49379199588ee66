//! What a transport needs to know of a device.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;

/// A virtio device behind a transport.
///
/// The transport makes one call at a time, from whatever thread, in this order of life: any number of configuration
/// accesses; `activate` when the driver sets DRIVER_OK; then `pause` and `resume` in turn; `reset` brings it back to the
/// start. `save` only while it is paused or not active, `restore` only on a fresh device, before any other call.
pub trait VirtioDevice: Send {
    /// Device type of the virtio specification, section 5.
    fn kind(&self) -> DeviceKind;

    /// Feature bits offered, VIRTIO_F_VERSION_1 included.
    fn features(&self) -> u64;

    /// The largest size of each queue; its length is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// Reads the device's configuration space at `offset` into the whole of `data`. Bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device's configuration space. What is not writable is left as it is.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts the device's worker on the queues that the driver has set up.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] when the worker cannot be started; the transport then sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError>;

    /// Lets the worker finish what it has begun and stops it. Without effect on a device that does not run.
    fn pause(&mut self);

    /// Starts the worker of a paused device again. Without effect on a device that is not active.
    ///
    /// # Errors
    ///
    /// As for `activate`.
    fn resume(&mut self) -> Result<(), DeviceError>;

    /// Stops the worker and forgets the queues, as the driver's write of 0 to the status demands.
    fn reset(&mut self);

    /// What has to be saved of the device, queues included while it is active.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] when it runs, or holds what cannot be saved.
    fn save(&self) -> Result<SavedDevice, DeviceError>;

    /// Takes over a saved state. An active device starts paused: `resume` runs it, with the parts of `activation`
    /// that a saved state cannot hold; its queues are those of the saved state.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] for a state of another device, an unknown version or contents that contradict each other.
    fn restore(&mut self, saved: &SavedDevice, activation: Option<Activation>) -> Result<(), DeviceError>;
}

/// Device types in use (virtio 1.2, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// Network device.
    Net = 1,
    /// Block device.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Rng = 4,
    /// Socket device.
    Vsock = 19,
}

/// What a device gets when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestRam,
    /// Features that the driver accepted.
    pub features: u64,
    /// One for each of the device's queues, in order; `None` for a queue that the driver left disabled.
    pub queues: Vec<Option<ActiveQueue>>,
    /// How to tell the driver.
    pub interrupt: Arc<dyn Interrupt>,
}

/// A queue that the driver has set up. Its addresses are as the driver gave them: only access through the guest's
/// memory checks them.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Index of the queue in its device.
    pub index: u16,
    /// The split ring.
    pub queue: Queue,
    /// Written by KVM when the driver rings the queue's doorbell. Non-blocking.
    pub doorbell: EventFd,
}

/// How a device tells its driver. Implemented by the transport; masked vectors are its business.
pub trait Interrupt: fmt::Debug + Send + Sync {
    /// Buffers of a queue have been used.
    fn queue_used(&self, queue: u16);

    /// The configuration space has changed.
    fn config_changed(&self);

    /// The driver broke the rules or the device cannot go on: sets DEVICE_NEEDS_RESET and tells the driver.
    fn needs_reset(&self, reason: &str);
}

/// The state of a device as plain data, with what it takes to recognise it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedDevice {
    /// Whose state it is.
    pub kind: DeviceKind,
    /// Version of `state`, counted per device from 1.
    pub version: u32,
    /// The device's own state.
    pub state: serde_json::Value,
}

/// What can go wrong with a device as a whole. What a driver does wrong in a queue ends in
/// [`Interrupt::needs_reset`] instead.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The worker could not be started.
    #[error("the worker of the {device} device could not be started: {source}")]
    Worker {
        /// The device, such as "block disk-1".
        device: String,
        /// Why.
        source: std::io::Error,
    },
    /// The device was asked for something that its phase does not allow.
    #[error("the {device} device cannot {what} now")]
    WrongPhase {
        /// The device.
        device: String,
        /// What was asked.
        what: &'static str,
    },
    /// A saved state cannot be taken over.
    #[error("the saved state of the {device} device cannot be used: {reason}")]
    BadState {
        /// The device.
        device: String,
        /// Why.
        reason: String,
    },
}
