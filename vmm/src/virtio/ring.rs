//! A queue of a running device: its split ring, with every chain checked before a device sees it.
//!
//! A chain that breaks the rules of the ring itself (virtio 1.2, section 2.7) is an error that ends the device until its
//! driver resets it: after it nothing in the ring can be trusted to be where it seems.

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
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};
use vmm_sys_util::eventfd::EventFd;

use super::{
    buffer::GuestBuffer,
    device::{Activation, ActiveQueue, Interrupt},
};
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
    let mut rings = Vec::with_capacity(N);
    for (index, active) in (0..).zip(activation.queues) {
        let active = active.ok_or(RingError::Disabled { queue: index })?;
        rings.push(Ring::new(
            active,
            activation.features,
            Arc::clone(&activation.memory),
            Arc::clone(&activation.interrupt),
        ));
    }
    rings.try_into().map_err(|rings: Vec<Ring>| RingError::Disabled {
        queue: u16::try_from(rings.len()).unwrap_or(u16::MAX),
    })
}

/// A chain of buffers from the driver.
#[derive(Clone, Debug)]
pub struct Chain<'m> {
    /// What names the chain when it is returned.
    pub head: u16,
    /// What the driver has written.
    pub readable: GuestBuffer<'m>,
    /// What the device may write.
    pub writable: GuestBuffer<'m>,
}

impl<'m> Chain<'m> {
    /// Walks a chain to its end. `size` is the ring's, which no chain may exceed, not even with an indirect table
    /// (section 2.7.5.3.1).
    fn check(
        descriptors: DescriptorChain<&'m GuestMemory>,
        memory: &'m GuestMemory,
        size: u16,
    ) -> Result<Self, ChainFault> {
        let head = descriptors.head_index();
        let mut chain = Chain {
            head,
            readable: GuestBuffer::default(),
            writable: GuestBuffer::default(),
        };
        let mut writable_seen = false;
        // The iterator ends silently where it cannot go on; that it got to the end shows in the last flag.
        let mut ended = false;
        for (count, descriptor) in (1..).zip(descriptors) {
            if count > u32::from(size) {
                return Err(ChainFault::Endless { head });
            }
            writable_seen |= descriptor.is_write_only();
            if writable_seen && !descriptor.is_write_only() {
                return Err(ChainFault::Order { head });
            }
            let buffer = if descriptor.is_write_only() {
                &mut chain.writable
            } else {
                &mut chain.readable
            };
            let (address, length) = (descriptor.addr(), descriptor.len());
            push(buffer, memory, address, length).ok_or(ChainFault::Address {
                head,
                address: address.0,
                length,
            })?;
            ended = !descriptor.has_next();
        }
        if ended {
            Ok(chain)
        } else {
            Err(ChainFault::Endless { head })
        }
    }
}

fn push<'m>(
    buffer: &mut GuestBuffer<'m>,
    memory: &'m GuestMemory,
    address: GuestAddress,
    length: u32,
) -> Option<()> {
    for piece in GuestMemoryBackend::get_slices(memory, address, length as usize) {
        buffer.push(piece.ok()?);
    }
    Some(())
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

/// How a chain breaks the rules.
#[derive(Debug, thiserror::Error)]
pub enum ChainFault {
    /// It loops, is longer than the ring or leads out of its table.
    #[error("chain {head} does not end")]
    Endless {
        /// Its first descriptor.
        head: u16,
    },
    /// A buffer for the device to read comes after one for it to write.
    #[error("chain {head} has a readable buffer after a writable one")]
    Order {
        /// Its first descriptor.
        head: u16,
    },
    /// A buffer is not in guest memory.
    #[error("chain {head} has {length} bytes at {address:#x}, which is not memory")]
    Address {
        /// Its first descriptor.
        head: u16,
        /// Guest physical address.
        address: u64,
        /// Bytes.
        length: u32,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "noise may be cut off")]

    use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

    use super::*;
    use crate::virtio::{
        fake_driver::{Buffer, FakeDriver, Noise, PLAIN},
        rng::Rng,
    };

    fn driver(features: u64) -> (FakeDriver, Ring) {
        let driver = FakeDriver::accepting(&Rng::new(), 1 << 20, features);
        let [ring] = take_all(driver.activation()).unwrap();
        (driver, ring)
    }

    fn fault(ring: &mut Ring) -> String {
        let memory = ring.memory();
        ring.pop(&memory).unwrap_err().to_string()
    }

    #[test]
    fn chains_come_in_order_and_whole_whether_direct_or_indirect() {
        let (mut driver, mut ring) = driver(RING_FEATURES);
        let memory = ring.memory();
        let (data, table) = (driver.allocate_with(b"readable"), driver.allocate(16 * 4));
        let buffers = [
            Buffer::Readable(data, 4),
            Buffer::Readable(data + 4, 4),
            Buffer::Writable(data, 0),
            Buffer::Writable(data, 3),
        ];
        let heads = [
            driver.queues[0].offer(&buffers),
            driver.queues[0].offer_indirect(table, &buffers),
        ];
        for head in heads {
            let chain = ring.pop(&memory).unwrap().unwrap();
            let mut text = [0; 9];
            assert_eq!(chain.readable.copy_out(0, &mut text), 8);
            assert_eq!(&text[..8], b"readable");
            assert_eq!((chain.head, chain.writable.len()), (head, 3));
            ring.add_used(chain.head, 3).unwrap();
        }
        assert!(ring.pop(&memory).unwrap().is_none());
        ring.tell().unwrap();
        ring.tell().unwrap();
        assert_eq!(
            driver.interrupt.count(0),
            1,
            "the driver is told once of what is used"
        );
        assert_eq!(driver.queues[0].take_used(), Some((heads[0], 3)));
        assert_eq!(driver.queues[0].take_used(), Some((heads[1], 3)));
        assert_eq!(driver.queues[0].take_used(), None);
    }

    #[test]
    fn chains_that_belong_together_are_seen_together_and_told_of_once() {
        for features in [PLAIN, RING_FEATURES] {
            let (mut driver, mut ring) = driver(features);
            let memory = ring.memory();
            for round in 0..100 {
                let heads = [(); 5].map(|()| driver.queues[0].offer(&[Buffer::Writable(0x8000, 10)]));
                let chains = heads.map(|_| ring.pop(&memory).unwrap().unwrap());
                let used: Vec<(u16, usize)> = (1..).zip(&chains).map(|(n, chain)| (chain.head, n)).collect();
                ring.add_used_together(&used).unwrap();
                ring.tell().unwrap();
                assert_eq!(driver.interrupt.count(0), round + 1);
                for (head, n) in heads.into_iter().zip(1..) {
                    assert_eq!(driver.queues[0].take_used(), Some((head, n)));
                }
                assert_eq!(driver.queues[0].take_used(), None);
            }
        }
    }

    #[test]
    fn a_driver_that_wants_no_interrupts_gets_none() {
        let (mut driver, mut ring) = driver(PLAIN);
        let flags = driver.queues[0].available();
        for (flag, told) in [(1, 0), (0, 1), (1, 1)] {
            driver.queues[0].store(flags, flag);
            driver.queues[0].offer(&[Buffer::Readable(0x8000, 1)]);
            let memory = ring.memory();
            let head = ring.pop(&memory).unwrap().unwrap().head;
            ring.add_used(head, 0).unwrap();
            ring.tell().unwrap();
            assert_eq!(driver.interrupt.count(0), told);
            driver.queues[0].take_used();
        }
    }

    #[test]
    fn what_is_put_back_comes_again() {
        let (mut driver, mut ring) = driver(PLAIN);
        let memory = ring.memory();
        let buffer = [Buffer::Readable(0x8000, 1)];
        let heads = [(); 3].map(|()| driver.queues[0].offer(&buffer));
        for head in heads {
            assert_eq!(ring.pop(&memory).unwrap().unwrap().head, head);
        }
        ring.put_back(2);
        assert_eq!(ring.pop(&memory).unwrap().unwrap().head, heads[1]);
    }

    #[test]
    fn a_driver_that_was_told_not_to_ring_is_listened_to_again() {
        for features in [PLAIN, RING_FEATURES] {
            let (mut driver, mut ring) = driver(features);
            let memory = ring.memory();
            let buffer = [Buffer::Readable(0x8000, 1)];
            assert!(!ring.listen().unwrap());
            driver.queues[0].offer(&buffer);
            assert!(driver.queues[0].doorbell.read().is_ok());
            ring.ignore().unwrap();
            driver.queues[0].offer(&buffer);
            assert!(
                driver.queues[0].doorbell.read().is_err(),
                "features {features:#x}"
            );
            assert!(ring.listen().unwrap(), "there are two");
            while ring.pop(&memory).unwrap().is_some() {}
            assert!(!ring.listen().unwrap());
            driver.queues[0].offer(&buffer);
            assert!(driver.queues[0].doorbell.read().is_ok(), "features {features:#x}");
        }
    }

    #[test]
    fn a_chain_must_end() {
        let (mut driver, mut ring) = driver(RING_FEATURES);
        let queue = &mut driver.queues[0];
        queue.write_descriptor(0, 0x8000, 1, VRING_DESC_F_NEXT, 1);
        queue.write_descriptor(1, 0x8000, 1, VRING_DESC_F_NEXT, 0);
        queue.offer_head(0);
        assert_eq!(fault(&mut ring), "queue 0 is broken: chain 0 does not end");

        queue.write_descriptor(2, 0x8000, 1, VRING_DESC_F_NEXT, 64);
        queue.offer_head(2);
        assert!(fault(&mut ring).contains("chain 2 does not end"));

        queue.offer_head(64);
        assert!(fault(&mut ring).contains("chain 64 does not end"));
    }

    #[test]
    fn an_indirect_table_must_be_one_and_no_longer_than_the_ring() {
        let (mut driver, mut ring) = driver(RING_FEATURES);
        let table = driver.allocate(16 * 65);
        let queue = &mut driver.queues[0];
        let buffers = [Buffer::Writable(0x8000, 1); 65];
        queue.offer_indirect(table, &buffers[..64]);
        let memory = ring.memory();
        assert_eq!(ring.pop(&memory).unwrap().unwrap().writable.len(), 64);
        queue.offer_indirect(table, &buffers);
        assert!(fault(&mut ring).contains("does not end"));

        // A table in a table, one of odd length, one outside memory.
        queue.write_descriptor_at(table, table, 16, VRING_DESC_F_INDIRECT, 0);
        for (index, (address, length)) in (10..).zip([(table, 16), (table, 17), (table, 0), (1 << 40, 16)]) {
            queue.write_descriptor(index, address, length, VRING_DESC_F_INDIRECT, 0);
            queue.offer_head(index);
            assert!(fault(&mut ring).contains(&format!("chain {index} does not end")));
        }
    }

    #[test]
    fn buffers_must_be_memory_and_in_order() {
        let (mut driver, mut ring) = driver(RING_FEATURES);
        let queue = &mut driver.queues[0];
        for (address, length) in [
            (1 << 20, 1),
            ((1 << 20) - 1, 2),
            (u64::MAX, 1),
            (u64::MAX, u32::MAX - 1),
            (0, u32::MAX - 1),
        ] {
            queue.offer(&[Buffer::Readable(0x8000, 1), Buffer::Writable(address, length)]);
            assert!(
                fault(&mut ring).contains("which is not memory"),
                "{length} bytes at {address:#x}"
            );
        }
        queue.offer(&[Buffer::Writable(0x8000, 1), Buffer::Readable(0x8000, 1)]);
        assert!(fault(&mut ring).contains("readable buffer after a writable"));
    }

    #[test]
    fn the_ring_itself_must_be_memory_and_hold_no_more_than_its_size() {
        let (driver, mut ring) = driver(RING_FEATURES);
        let queue = &driver.queues[0];
        queue.store(queue.available() + 2, 65);
        assert!(fault(&mut ring).contains("queue 0 is broken"));

        let outside = |change: fn(&mut Queue)| {
            let mut activation = driver.activation();
            change(&mut activation.queues[0].as_mut().unwrap().queue);
            let [ring] = take_all(activation).unwrap();
            ring
        };
        queue.store(queue.available() + 2, 1);
        let mut ring = outside(|queue| queue.set_avail_ring_address(Some(0xfff_fff0), None));
        fault(&mut ring);
        // Its index is the last number in memory, its entries are beyond.
        let mut ring = outside(|queue| queue.set_avail_ring_address(Some((1 << 20) - 4), None));
        driver.write((1 << 20) - 2, &[1, 0]);
        assert!(fault(&mut ring).contains("cannot be read"));
        let mut ring = outside(|queue| queue.set_used_ring_address(Some(0xfff_fff0), None));
        assert!(ring.add_used(0, 1).is_err());
        assert!(ring.listen().is_err());
        let mut ring = outside(|queue| queue.set_desc_table_address(Some(0xfff_fff0), None));
        fault(&mut ring);
    }

    #[test]
    fn a_device_does_not_start_with_a_queue_missing() {
        let (driver, _) = driver(RING_FEATURES);
        let mut activation = driver.activation();
        activation.queues[0] = None;
        assert!(matches!(
            take_all::<1>(activation),
            Err(RingError::Disabled { queue: 0 })
        ));
        assert!(matches!(
            take_all::<2>(driver.activation()),
            Err(RingError::Disabled { queue: 1 })
        ));
    }

    /// Any bytes in the rings end in chains or in an error, within bounds.
    #[test]
    fn noise_in_the_rings_never_does_harm() {
        let mut noise = Noise::new(42);
        let mut popped = 0;
        for _ in 0..3000 {
            let (driver, mut ring) = driver(RING_FEATURES);
            let queue = &driver.queues[0];
            for index in 0..64 {
                let address = if noise.below(20) == 0 {
                    noise.number()
                } else {
                    noise.below(1 << 20)
                };
                let length = if noise.below(20) == 0 {
                    noise.number() as u32
                } else {
                    noise.below(5000) as u32
                };
                let kinds = [
                    0,
                    VRING_DESC_F_NEXT,
                    VRING_DESC_F_NEXT,
                    VRING_DESC_F_WRITE,
                    VRING_DESC_F_INDIRECT,
                ];
                let flags = kinds[noise.below(5) as usize];
                queue.write_descriptor(index, address, length, flags, noise.below(70) as u16);
                queue.store(
                    queue.available() + 4 + u64::from(index) * 2,
                    noise.below(66) as u16,
                );
            }
            queue.store(queue.available() + 2, noise.below(66) as u16);
            let memory = ring.memory();
            while let Ok(Some(chain)) = ring.pop(&memory) {
                popped += 1;
                assert!(chain.readable.pieces().len() + chain.writable.pieces().len() <= 64);
                chain.writable.copy_in(0, &[0; 100]);
                if ring.add_used(chain.head, 1).is_err() {
                    break;
                }
            }
        }
        assert!(
            popped > 1000,
            "the noise was too loud to be a test: {popped} chains"
        );
    }

    #[test]
    fn a_doorbell_rings_until_it_is_hushed() {
        let (driver, ring) = driver(RING_FEATURES);
        ring.wake();
        ring.hush();
        assert!(driver.queues[0].doorbell.read().is_err());
        ring.wake();
        assert_eq!(driver.queues[0].doorbell.read().unwrap(), 1);
    }
}
