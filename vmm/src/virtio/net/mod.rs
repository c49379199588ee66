//! Network device (virtio 1.2, section 5.1) on a tap that is handed in open, with one pair of queues.
//!
//! Packets go straight between the tap and guest memory. Checksums and segmentation are passed on to whoever is last:
//! the tap is told what the driver can take, and the host what the guest left undone.

mod config;
mod queue;
mod receive;
mod state;
mod tap;
mod transmit;

use std::{os::fd::OwnedFd, sync::Arc};

pub use tap::TapError;

use super::{
    device::{Activation, DeviceError, DeviceKind, SavedDevice, VirtioDevice},
    ring,
    stage::Stage,
};
use queue::Link;
use receive::Receiver;
use tap::Tap;
use transmit::Transmitter;

const NAME: &str = "net";

/// Receive, transmit.
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// Smallest largest packet: what every IPv4 host has to take (RFC 791).
const SMALLEST_MTU: u16 = 68;

/// The device.
#[derive(Debug)]
pub struct Net {
    tap: Arc<Tap>,
    mac: [u8; 6],
    mtu: u16,
    stage: Stage<Link>,
    /// Features that the driver accepted.
    accepted: u64,
}

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The hardware address names no single interface.
    #[error(
        "the hardware address {0:02x?} is that of a group or of nobody; its first byte must be even, and not all zero"
    )]
    Mac([u8; 6]),
    /// No protocol gets through.
    #[error("packets of at most {0} bytes are too small; the least is {SMALLEST_MTU}")]
    Mtu(u16),
    /// There is no wire.
    #[error(transparent)]
    Tap(#[from] TapError),
}

impl Net {
    /// An interface with this hardware address on an attached tap (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR), whose packets have at
    /// most `mtu` bytes, the Ethernet header not counted.
    ///
    /// # Errors
    ///
    /// [`NetError`].
    pub fn new(tap: OwnedFd, mac: [u8; 6], mtu: u16) -> Result<Self, NetError> {
        Self::on(Tap::new(tap)?, mac, mtu)
    }

    fn on(tap: Tap, mac: [u8; 6], mtu: u16) -> Result<Self, NetError> {
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(NetError::Mac(mac));
        }
        if mtu < SMALLEST_MTU {
            return Err(NetError::Mtu(mtu));
        }
        Ok(Self {
            tap: Arc::new(tap),
            mac,
            mtu,
            stage: Stage::Inactive,
            accepted: 0,
        })
    }

    /// Gets ready to run on the driver's queues.
    fn take(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.accepted = activation.features;
        self.tap
            .set_offloads(activation.features)
            .map_err(|source| DeviceError::Worker {
                device: NAME.to_owned(),
                source,
            })?;
        let interrupt = activation.interrupt.clone();
        match ring::take_all(activation) {
            Ok([receive, transmit]) => {
                let receiver = Receiver::new(receive, self.accepted, self.mtu);
                let link = Link::new(Arc::clone(&self.tap), receiver, Transmitter::new(transmit));
                self.stage = Stage::Paused(link);
            }
            Err(error) => interrupt.needs_reset(&error.to_string()),
        }
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        config::FEATURES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config::read(self.mac, self.mtu, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.take(activation)?;
        self.resume()
    }

    fn pause(&mut self) {
        self.stage.pause();
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.stage.resume(NAME, "virtio-net")
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

#[cfg(test)]
mod tap_tests;
#[cfg(test)]
mod tests;
