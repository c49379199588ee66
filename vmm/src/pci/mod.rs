//! PCI: one bus with at most 31 functions beside the host bridge, memory-mapped configuration space (ECAM), one 64-bit
//! memory BAR per function, interrupts by MSI-X only.
//!
//! A guest may do anything here at any time: every access is checked for width and offset, an access that hits nothing
//! reads as all ones and writes nowhere, as on hardware.

use std::{fmt, io};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

mod bus;
mod config_space;
mod host_bridge;
mod msix;
mod pvpanic;
pub mod virtio;

pub use bus::{BusFull, FUNCTIONS_MAX, PciBus, SavedBus};
pub use config_space::{ConfigSpace, Identity};
pub use msix::{Message, Msix, SavedMsix};
pub use pvpanic::PvPanic;

use crate::virtio::device::DeviceError;

/// What functions need of the machine around them.
pub trait PciHost: fmt::Debug + Send + Sync {
    /// Delivers a message-signalled interrupt: the write of `data` to `address` that the guest put into a vector.
    fn signal(&self, address: u64, data: u32);

    /// Writes to `doorbell` whenever the guest writes to `address`, of any width, without a way through this process.
    ///
    /// # Errors
    ///
    /// What KVM says; for one, when the address is taken.
    fn attach_doorbell(&self, doorbell: &EventFd, address: u64) -> io::Result<()>;

    /// Undoes [`PciHost::attach_doorbell`] with the same arguments.
    ///
    /// # Errors
    ///
    /// What KVM says.
    fn detach_doorbell(&self, doorbell: &EventFd, address: u64) -> io::Result<()>;
}

/// A function on the bus.
pub trait PciFunction: Send {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;

    /// The guest reads `data.len()` (1, 2 or 4) bytes of configuration space at `offset`, naturally aligned.
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// The guest writes configuration space, with the same alignment.
    fn write_config(&mut self, offset: u16, data: &[u8]);

    /// The guest reads 1 to 8 bytes at `offset` in the function's BAR. `data` is all ones before.
    fn read_memory(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes 1 to 8 bytes at `offset` in the function's BAR.
    fn write_memory(&mut self, offset: u64, data: &[u8]);

    /// Stops what works behind the function, without losing anything.
    fn pause(&mut self) {}

    /// Lets it go on.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] when a worker cannot be started.
    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// What has to be saved of a paused function.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] when it holds what cannot be saved.
    fn save(&self) -> Result<SavedFunction, DeviceError>;

    /// Takes over a saved state; only on a fresh function of the same kind.
    ///
    /// # Errors
    ///
    /// [`DeviceError::BadState`].
    fn restore(&mut self, saved: &SavedFunction) -> Result<(), DeviceError>;
}

/// The state of a function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedFunction {
    /// Version of this structure.
    pub version: u32,
    /// Configuration space.
    pub config: Vec<u8>,
    /// The virtio transport and its device, if it is one.
    pub virtio: Option<virtio::SavedTransport>,
}

/// Bits of the MSI-X message control that a guest may write, as the bytes of a capability's body.
fn msix_control_writable() -> [u8; 2] {
    msix::CONTROL_WRITABLE.to_le_bytes()
}

/// Version of [`SavedFunction`].
const SAVED_FUNCTION_VERSION: u32 = 1;

impl SavedFunction {
    /// A function that is all configuration space, with what `virtio` adds.
    fn new(config: &ConfigSpace, virtio: Option<virtio::SavedTransport>) -> Self {
        Self {
            version: SAVED_FUNCTION_VERSION,
            config: config.save(),
            virtio,
        }
    }

    /// Puts the configuration space back. `name` is for the message.
    fn restore_config(&self, name: &str, config: &mut ConfigSpace) -> Result<(), DeviceError> {
        let bad = |reason: String| DeviceError::BadState {
            device: name.to_owned(),
            reason,
        };
        if self.version != SAVED_FUNCTION_VERSION {
            return Err(bad(format!("its version {} is not known", self.version)));
        }
        config
            .restore(&self.config)
            .map_err(|reason| bad(reason.to_owned()))
    }
}
