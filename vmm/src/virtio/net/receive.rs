//! Packets from the wire into the guest's buffers.
//!
//! How long a packet is shows only when it has been read. So room is made for one as long as the last ones were, and behind
//! that room lies memory of our own: what ends up there is copied to further buffers. In a stream of large packets that is
//! nothing, and a small one does not cost the walk through all the buffers that the largest could take. What was not used is
//! put back; a packet that the guest has no room for is kept until it has.

use std::{collections::VecDeque, io, os::fd::AsFd};

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF};
use vm_memory::VolatileSlice;

use super::tap::{HEADER_BYTES, Tap};
use crate::virtio::{
    buffer::GuestBuffer,
    ring::{Chain, GuestMemory, Ring, RingError},
    scatter,
};

/// Where the header counts the buffers that a packet takes.
const NUM_BUFFERS: usize = 10;

/// Ethernet header with a VLAN tag.
const LINK_BYTES: usize = 14 + 4;

/// Bytes that there is always room made for: an acknowledgement, or a packet of the usual MTU.
const LEAST_ROOM: usize = 1536;

/// By this part of the difference less room is made after a packet that was shorter than expected.
const FORGETTING: usize = 8;

/// The receive queue.
#[derive(Debug)]
pub struct Receiver {
    ring: Ring,
    /// Whether a packet may take several buffers.
    mergeable: bool,
    /// Bytes of the largest packet, its header included.
    largest: usize,
    /// Bytes of the next packet, as the last ones lead to expect.
    expected: usize,
    /// Takes what the room for a packet does not; a byte longer than the largest, for a tap cuts off what does not fit and
    /// does not say so.
    overflow: Vec<u8>,
    /// A packet for which there was no room.
    waiting: Option<Vec<u8>>,
    /// Whether the wire may have a packet: false from when it said no until it is heard of again.
    pub wire_ready: bool,
}

impl Receiver {
    /// For a driver that accepted `features`, on a wire whose packets have `mtu` bytes where they are not segmented later.
    pub fn new(ring: Ring, features: u64, mtu: u16) -> Self {
        let has = |bit: u32| features & (1 << bit) != 0;
        let unsegmented = has(VIRTIO_NET_F_GUEST_TSO4) || has(VIRTIO_NET_F_GUEST_TSO6);
        let payload = if unsegmented {
            usize::from(u16::MAX)
        } else {
            usize::from(mtu)
        };
        let largest = HEADER_BYTES + LINK_BYTES + payload;
        Self {
            ring,
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
            largest,
            expected: LEAST_ROOM.min(largest),
            overflow: vec![0; largest + 1],
            waiting: None,
            wire_ready: true,
        }
    }

    /// The queue.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Takes up to `left` packets from the wire, by whose number `left` is lowered. Ends sooner when the wire has no more
    /// or the guest no room; then the driver rings when it has.
    pub fn run(&mut self, tap: &Tap, left: &mut usize) -> Result<(), RingError> {
        let memory = self.ring.memory();
        let mut room = Room::default();
        self.ring.ignore()?;
        while *left > 0 && (self.wire_ready || self.waiting.is_some()) {
            let needed = self.waiting.as_ref().map_or(self.expected, Vec::len);
            self.gather(&memory, &mut room, needed)?;
            if room.chains.is_empty() {
                break;
            }
            let length = match self.waiting.take() {
                Some(packet) => self.place(packet, &room),
                None => self.read(tap, &memory, &mut room)?,
            };
            if let Some(length) = length {
                let used = room.fill(length);
                self.ring.add_used_together(&used)?;
            } else if self.waiting.is_some() {
                break;
            }
            *left -= 1;
        }
        self.ring.put_back(room.count());
        self.ring.tell()
    }

    /// Takes buffers of the guest until there is room for a packet. If there are too few, the driver rings for the next.
    fn gather<'m>(
        &mut self,
        memory: &'m GuestMemory,
        room: &mut Room<'m>,
        needed: usize,
    ) -> Result<(), RingError> {
        while room.bytes < needed && (self.mergeable || room.chains.is_empty()) {
            if let Some(chain) = self.ring.pop(memory)? {
                room.push(chain);
            } else if !self.ring.listen()? {
                break;
            }
        }
        Ok(())
    }

    /// Puts a packet that has waited where it fits now, or keeps it if it may fit later; gives its length.
    fn place(&mut self, packet: Vec<u8>, room: &Room<'_>) -> Option<usize> {
        if packet.len() <= room.bytes {
            return Some(room.buffer(packet.len()).copy_in(0, &packet));
        }
        // More than all the buffers there can be, or than the only one it may have, is never enough.
        if self.mergeable && room.count() < self.ring.size() {
            self.waiting = Some(packet);
        }
        None
    }

    /// Reads a packet to where it belongs and gives its length, if there is one and it fits.
    fn read<'m>(
        &mut self,
        tap: &Tap,
        memory: &'m GuestMemory,
        room: &mut Room<'m>,
    ) -> Result<Option<usize>, RingError> {
        let mut buffer = room.buffer(room.bytes);
        let fits = buffer.len();
        buffer.push(VolatileSlice::from(self.overflow.as_mut_slice()));
        let result = scatter::read(tap.as_fd(), &buffer);
        let Some(length) = self.heard(result).filter(|length| *length <= self.largest) else {
            return Ok(None);
        };
        self.expect_like(length);
        if length <= fits {
            return Ok(Some(length));
        }
        self.gather(memory, room, length)?;
        let rest = self.overflow.get(..length - fits).unwrap_or_default();
        if length <= room.bytes {
            room.buffer(length).copy_in(fits, rest);
            return Ok(Some(length));
        }
        let mut packet = vec![0; fits];
        room.buffer(fits).copy_out(0, &mut packet);
        packet.extend(rest);
        Ok(self.place(packet, room))
    }

    /// The next packet is expected to be as long as this one, or not much shorter than the last ones.
    fn expect_like(&mut self, length: usize) {
        let less = self.expected.saturating_sub(length) / FORGETTING;
        self.expected = length
            .max(self.expected - less)
            .clamp(LEAST_ROOM.min(self.largest), self.largest);
    }

    /// What the wire has said: the length of a packet, or that there is none before it is heard of again. A wire that is
    /// cut says that too.
    fn heard(&mut self, result: io::Result<usize>) -> Option<usize> {
        match result {
            Ok(length) if length >= HEADER_BYTES => Some(length),
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            Err(_) => {
                self.wire_ready = false;
                None
            }
        }
    }
}

/// Buffers of the guest that were taken and not used yet.
#[derive(Debug, Default)]
struct Room<'m> {
    chains: VecDeque<Chain<'m>>,
    bytes: usize,
}

impl<'m> Room<'m> {
    fn push(&mut self, chain: Chain<'m>) {
        self.bytes = self.bytes.saturating_add(chain.writable.len());
        self.chains.push_back(chain);
    }

    /// The first `length` bytes of it, or more up to the end of a buffer.
    fn buffer(&self, length: usize) -> GuestBuffer<'m> {
        let mut buffer = GuestBuffer::default();
        for chain in &self.chains {
            if buffer.len() >= length {
                break;
            }
            buffer.extend(&chain.writable);
        }
        buffer
    }

    fn count(&self) -> u16 {
        // No more than a ring holds.
        u16::try_from(self.chains.len()).unwrap_or(u16::MAX)
    }

    /// Takes out the buffers that the first `length` bytes are in, as they are to be returned, and counts them in the
    /// packet's header.
    fn fill(&mut self, length: usize) -> Vec<(u16, usize)> {
        let start = self.buffer(HEADER_BYTES);
        let mut used = Vec::new();
        let mut left = length;
        while left > 0 {
            let Some(chain) = self.chains.pop_front() else {
                break;
            };
            let count = chain.writable.len().min(left);
            self.bytes -= chain.writable.len();
            left -= count;
            used.push((chain.head, count));
        }
        let number = u16::try_from(used.len()).unwrap_or(u16::MAX);
        start.copy_in(NUM_BUFFERS, &number.to_le_bytes());
        used
    }
}
