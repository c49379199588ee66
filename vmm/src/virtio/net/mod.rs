//! Network device (virtio 1.2, section 5.1) on taps that are handed in open, one for each pair of queues.
//!
//! Packets go straight between a tap and guest memory, each pair of queues on a thread of its own. Checksums and
//! segmentation are passed on to whoever is last: the tap is told what the driver can take, and the host what the guest left
//! undone. With several pairs the host's kernel and the guest's each keep a connection on the pair it started on, and the
//! driver says on a control queue how many pairs it uses.

mod config;
mod control;
mod queue;
mod receive;
mod state;
mod tap;
mod transmit;

use std::{os::fd::OwnedFd, sync::Arc};

pub use tap::TapError;

use super::{
    device::{Activation, DeviceError, DeviceKind, SavedDevice, VirtioDevice},
    requests::RequestQueue,
    ring::{self, Ring},
    stage::Stage,
};
use control::Control;
use queue::Link;
use receive::Receiver;
use tap::Tap;
use transmit::Transmitter;

const NAME: &str = "net";

/// Entries of a receive or transmit queue.
const QUEUE_SIZE: u16 = 256;

/// Receive, transmit.
const QUEUES_OF_A_PAIR: usize = 2;

/// Entries of the control queue: its driver waits for each command.
const CONTROL_QUEUE_SIZE: u16 = 16;

/// Most pairs of queues: more threads would not carry more packets for a machine of the size that pods have.
pub const MOST_PAIRS: usize = 8;

/// Smallest largest packet: what every IPv4 host has to take (RFC 791).
const SMALLEST_MTU: u16 = 68;

/// The device.
#[derive(Debug)]
pub struct Net {
    /// One for each pair of queues.
    taps: Vec<Arc<Tap>>,
    mac: [u8; 6],
    mtu: u16,
    /// Receive and transmit of each pair; then control, if there are several.
    queue_sizes: Vec<u16>,
    /// One for each tap.
    links: Vec<Stage<Link>>,
    /// Inactive in a device with one pair, and with a driver that knows of one only.
    control: Stage<RequestQueue<Control>>,
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
    /// There is no wire, or more than there are pairs.
    #[error("{0} taps for one network interface; it takes 1 to {MOST_PAIRS}, all of the same host interface")]
    Taps(usize),
    /// There is no wire.
    #[error(transparent)]
    Tap(#[from] TapError),
}

impl Net {
    /// An interface with this hardware address on attached taps (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR), whose packets have at
    /// most `mtu` bytes, the Ethernet header not counted. Several taps are the queues of one host interface
    /// (IFF_MULTI_QUEUE), and make as many pairs of queues.
    ///
    /// # Errors
    ///
    /// [`NetError`].
    pub fn new(taps: Vec<OwnedFd>, mac: [u8; 6], mtu: u16) -> Result<Self, NetError> {
        let taps = taps.into_iter().map(Tap::new).collect::<Result<_, _>>()?;
        Self::on(taps, mac, mtu)
    }

    fn on(taps: Vec<Tap>, mac: [u8; 6], mtu: u16) -> Result<Self, NetError> {
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(NetError::Mac(mac));
        }
        if mtu < SMALLEST_MTU {
            return Err(NetError::Mtu(mtu));
        }
        if taps.is_empty() || taps.len() > MOST_PAIRS {
            return Err(NetError::Taps(taps.len()));
        }
        let mut queue_sizes = vec![QUEUE_SIZE; taps.len() * QUEUES_OF_A_PAIR];
        if taps.len() > 1 {
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        Ok(Self {
            mac,
            mtu,
            queue_sizes,
            links: taps.iter().map(|_| Stage::Inactive).collect(),
            taps: taps.into_iter().map(Arc::new).collect(),
            control: Stage::Inactive,
            accepted: 0,
        })
    }

    /// Pairs of queues.
    fn pairs(&self) -> u16 {
        u16::try_from(self.taps.len()).unwrap_or(u16::MAX)
    }

    /// Gets ready to run on the driver's queues, of which the driver uses the first `pairs`.
    fn take(&mut self, activation: Activation, pairs: u16) -> Result<(), DeviceError> {
        self.accepted = activation.features;
        let wire_error = |source| DeviceError::Worker {
            device: NAME.to_owned(),
            source,
        };
        for tap in &self.taps {
            tap.set_offloads(activation.features).map_err(wire_error)?;
        }
        control::use_taps(&self.taps, pairs).map_err(wire_error)?;
        let interrupt = activation.interrupt.clone();
        let count = if config::knows_several_pairs(self.accepted) {
            self.queue_sizes.len()
        } else {
            QUEUES_OF_A_PAIR
        };
        match ring::take_first(activation, count) {
            Ok(rings) => self.connect(rings, pairs),
            Err(error) => interrupt.needs_reset(&error.to_string()),
        }
        Ok(())
    }

    /// Puts each queue to its use: those of a pair, of all pairs or of the first, and control.
    fn connect(&mut self, rings: Vec<Ring>, pairs: u16) {
        let mut rings = rings.into_iter();
        for (tap, link) in self.taps.iter().zip(&mut self.links) {
            let Some((receive, transmit)) = rings.next().zip(rings.next()) else {
                return;
            };
            let receiver = Receiver::new(receive, self.accepted, self.mtu);
            *link = Stage::Paused(Link::new(Arc::clone(tap), receiver, Transmitter::new(transmit)));
        }
        if let Some(ring) = rings.next() {
            let control = Control::new(self.taps.clone(), pairs);
            self.control = Stage::Paused(RequestQueue::new(ring, control));
        }
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        config::features(self.pairs())
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config::read(self.mac, self.pairs(), self.mtu, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        // Until the driver says otherwise it uses the first pair alone (section 5.1.6.5.5).
        self.take(activation, 1)?;
        self.resume()
    }

    fn pause(&mut self) {
        self.control.pause();
        for link in &mut self.links {
            link.pause();
        }
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        for link in &mut self.links {
            link.resume(NAME, "virtio-net")?;
        }
        self.control.resume(NAME, "virtio-net-ctl")
    }

    fn reset(&mut self) {
        self.control = Stage::Inactive;
        self.links.fill_with(|| Stage::Inactive);
    }

    fn save(&self) -> Result<SavedDevice, DeviceError> {
        state::save(self)
    }

    fn restore(&mut self, saved: &SavedDevice, activation: Option<Activation>) -> Result<(), DeviceError> {
        state::restore(self, saved, activation)
    }
}

#[cfg(test)]
mod pairs_tests;
#[cfg(test)]
mod tap_tests;
#[cfg(test)]
mod tests;
