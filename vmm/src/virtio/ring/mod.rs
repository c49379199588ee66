//! A queue of a running device: its split ring, with every chain checked before a device sees it.
//!
//! A chain that breaks the rules of the ring itself (virtio 1.2, section 2.7) is an error that ends the device until its
//! driver resets it: after it nothing in the ring can be trusted to be where it seems.

mod chain;

use std::{
    ops::Deref,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT},
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};
use vmm_sys_util::eventfd::EventFd;

pub use chain::{Chain, ChainFault};

use super::device::{Activation, ActiveQueue, Interrupt};
use crate::memory::GuestRam;

/// What [`GuestRam`] shares.
pub type GuestMemory = <GuestRam as Deref>::Target;

/// Feature bits of the ring, offered by every device.
pub const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A queue that the driver has set up.
#[derive(Debug)]
pub struct Ring {
    index: u16,
    queue: Queue,
    doorbell: EventFd,
    memory: GuestRam,
    interrupt: Arc<dyn Interrupt>,
    /// How far the used ring was when the driver was last told.
    told: u16,
}

impl Ring {
    /// Puts the ring to use. Whether events are told by index follows from the accepted `features`.
    pub fn new(active: ActiveQueue, features: u64, memory: GuestRam, interrupt: Arc<dyn Interrupt>) -> Self {
        let mut queue = active.queue;
        queue.set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        Self {
            index: active.index,
            told: queue.next_used(),
            queue,
            doorbell: active.doorbell,
            memory,
            interrupt,
        }
    }

    /// The descriptor that becomes readable when the driver rings.
    pub fn doorbell(&self) -> RawFd {
        self.doorbell.as_raw_fd()
    }

    /// Rings as the driver does: for a worker that starts and does not know what it has missed.
    pub fn wake(&self) {
        // Only an eventfd at its limit refuses, and then it rings already.
        let _ = self.doorbell.write(1);
    }

    /// Takes the ringing away.
    pub fn hush(&self) {
        // A doorbell that does not ring says so with an error.
        let _ = self.doorbell.read();
    }

    /// The guest's memory, to be held while chains are.
    pub fn memory(&self) -> GuestRam {
        Arc::clone(&self.memory)
    }

    /// How to tell the driver of other things than used chains.
    pub fn interrupt(&self) -> &Arc<dyn Interrupt> {
        &self.interrupt
    }

    /// The split ring, to be saved.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Most chains that the ring holds.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next chain that the driver has made available.
    ///
    /// # Errors
    ///
    /// [`RingError`] for a ring that the driver has broken.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemory) -> Result<Option<Chain<'m>>, RingError> {
        let available = self
            .queue
            .avail_idx(memory, Ordering::Acquire)
            .map_err(|error| self.broken(error))?;
        if available.0 == self.queue.next_avail() {
            return Ok(None);
        }
        let (queue, size) = (self.index, self.queue.size());
        let chain = self.queue.iter(memory).map(|mut chains| chains.next());
        match chain {
            Ok(Some(chain)) => Chain::check(chain, memory, size)
                .map(Some)
                .map_err(|fault| RingError::Chain { queue, fault }),
            Ok(None) => Err(RingError::Unreadable { queue }),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// Gives back the newest `count` chains that were taken and not used, as if they had not been taken.
    pub fn put_back(&mut self, count: u16) {
        self.queue
            .set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Returns a chain to the driver, with the number of bytes written to it.
    ///
    /// # Errors
    ///
    /// [`RingError`] for a ring that is not in guest memory.
    pub fn add_used(&mut self, head: u16, written: usize) -> Result<(), RingError> {
        self.add_used_together(&[(head, written)])
    }

    /// Returns chains to the driver so that it sees all of them at once: a packet in several buffers must not be seen
    /// in part (section 5.1.6.4).
    ///
    /// # Errors
    ///
    /// [`RingError`] for a ring that is not in guest memory.
    pub fn add_used_together(&mut self, chains: &[(u16, usize)]) -> Result<(), RingError> {
        let size = self.queue.size();
        let mut next = self.queue.next_used();
        for (head, written) in chains {
            let entry = self.used_field(4 + 8 * u64::from(next % size))?;
            let written = u32::try_from(*written).unwrap_or(u32::MAX);
            let element = u64::from(*head) | u64::from(written) << 32;
            self.memory
                .write_obj(element.to_le(), entry)
                .map_err(|error| self.outside(error))?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        let index = self.used_field(2)?;
        self.memory
            .store(next.to_le(), index, Ordering::Release)
            .map_err(|error| self.outside(error))
    }

    /// Interrupts the driver if chains were used since the last call and it wants to know of them (section 2.7.7.2).
    ///
    /// # Errors
    ///
    /// [`RingError`] for a ring that is not in guest memory.
    pub fn tell(&mut self) -> Result<(), RingError> {
        let (old, new) = (self.told, self.queue.next_used());
        if old == new {
            return Ok(());
        }
        self.told = new;
        // The driver first says what it wants to know and then looks at the used ring: one of both sees the other.
        fence(Ordering::SeqCst);
        let wanted = if self.queue.event_idx_enabled() {
            let event = self.load_available(4 + 2 * u64::from(self.queue.size()))?;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u32::from(self.load_available(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.interrupt.queue_used(self.index);
        }
        Ok(())
    }

    fn used_field(&self, offset: u64) -> Result<GuestAddress, RingError> {
        GuestAddress(self.queue.used_ring())
            .checked_add(offset)
            .ok_or_else(|| self.broken(virtio_queue::Error::AddressOverflow))
    }

    fn load_available(&self, offset: u64) -> Result<u16, RingError> {
        let address = GuestAddress(self.queue.avail_ring())
            .checked_add(offset)
            .ok_or_else(|| self.broken(virtio_queue::Error::AddressOverflow))?;
        self.memory
            .load(address, Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|error| self.outside(error))
    }

    fn outside(&self, error: GuestMemoryError) -> RingError {
        self.broken(virtio_queue::Error::GuestMemory(error))
    }

    /// Asks the driver not to ring.
    ///
    /// # Errors
    ///
    /// [`RingError`] for a ring that is not in guest memory.
    pub fn ignore(&mut self) -> Result<(), RingError> {
        let memory = Arc::clone(&self.memory);
        self.queue
            .disable_notification(&*memory)
            .map_err(|error| self.broken(error))
    }

    /// Asks the driver to ring for the next chain. True when there is one already, for which it may not ring.
    ///
    /// # Errors
    ///
    /// [`RingError`] for a ring that is not in guest memory.
    pub fn listen(&mut self) -> Result<bool, RingError> {
        let memory = Arc::clone(&self.memory);
        self.queue
            .enable_notification(&*memory)
            .map_err(|error| self.broken(error))
    }

    fn broken(&self, source: virtio_queue::Error) -> RingError {
        RingError::Queue {
            queue: self.index,
            source,
        }
    }
}

/// Takes the rings of a device that needs exactly `N` of them.
///
/// # Errors
///
/// [`RingError::Disabled`] when the driver did not set up one of them.
pub fn take_all<const N: usize>(activation: Activation) -> Result<[Ring; N], RingError> {
    let count = activation.queues.len();
    let disabled = |rings: Vec<Ring>| RingError::Disabled {
        queue: u16::try_from(rings.len()).unwrap_or(u16::MAX),
    };
    take_first(activation, count)?.try_into().map_err(disabled)
}

/// The first `count` queues of a device that can do without the others.
///
/// # Errors
///
/// [`RingError::Disabled`] when the driver did not set up one of them.
pub fn take_first(activation: Activation, count: usize) -> Result<Vec<Ring>, RingError> {
    (0..)
        .zip(activation.queues)
        .take(count)
        .map(|(index, active)| {
            Ok(Ring::new(
                active.ok_or(RingError::Disabled { queue: index })?,
                activation.features,
                Arc::clone(&activation.memory),
                Arc::clone(&activation.interrupt),
            ))
        })
        .collect()
}

/// How a driver has broken a ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// A queue that the device cannot do without.
    #[error("the driver has not set up queue {queue}")]
    Disabled {
        /// Index of the queue.
        queue: u16,
    },
    /// The ring's own structures.
    #[error("queue {queue} is broken: {source}")]
    Queue {
        /// Index of the queue.
        queue: u16,
        /// What is wrong.
        source: virtio_queue::Error,
    },
    /// The ring of available chains is not wholly in guest memory.
    #[error("queue {queue} is broken: its available ring cannot be read")]
    Unreadable {
        /// Index of the queue.
        queue: u16,
    },
    /// One of its chains.
    #[error("queue {queue} is broken: {fault}")]
    Chain {
        /// Index of the queue.
        queue: u16,
        /// What is wrong.
        fault: ChainFault,
    },
    /// A chain that is in order, but with which the device cannot go on.
    #[error("queue {queue} is useless: {reason}")]
    Useless {
        /// Index of the queue.
        queue: u16,
        /// Why.
        reason: &'static str,
    },
}

#[cfg(test)]
mod tests;
