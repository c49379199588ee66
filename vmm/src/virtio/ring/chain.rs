//! A chain of descriptors, walked to its end before a device sees it.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::GuestMemory;
use crate::virtio::buffer::GuestBuffer;

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
    pub(super) fn check(
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
