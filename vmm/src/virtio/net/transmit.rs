//! Packets from the guest's buffers onto the wire.

use std::{io, os::fd::AsFd};

use super::tap::{HEADER_BYTES, Tap};
use crate::virtio::{
    ring::{Ring, RingError},
    scatter,
};

/// Longest packet with its header: what an IP packet can have, an Ethernet header and a VLAN tag.
const LONGEST: usize = HEADER_BYTES + 14 + 4 + 65_535;

/// The transmit queue.
#[derive(Debug)]
pub struct Transmitter {
    ring: Ring,
}

impl Transmitter {
    /// For a queue.
    pub fn new(ring: Ring) -> Self {
        Self { ring }
    }

    /// The queue.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Sends up to `left` packets, by whose number `left` is lowered. What the wire does not take is lost, as it is on a
    /// wire: nothing waits here for a host that is slow.
    pub fn run(&mut self, tap: &Tap, left: &mut usize) -> Result<(), RingError> {
        let memory = self.ring.memory();
        self.ring.ignore()?;
        while *left > 0 {
            let Some(chain) = self.ring.pop(&memory)? else {
                if self.ring.listen()? {
                    continue;
                }
                break;
            };
            *left -= 1;
            let packet = &chain.readable;
            if packet.len() > HEADER_BYTES && packet.len() <= LONGEST {
                while scatter::write(tap.as_fd(), packet)
                    .is_err_and(|error| error.kind() == io::ErrorKind::Interrupted)
                {}
            }
            self.ring.add_used(chain.head, 0)?;
        }
        self.ring.tell()
    }
}
