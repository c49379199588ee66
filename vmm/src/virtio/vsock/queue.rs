//! The three queues: packets to the guest, packets from it, and events (virtio 1.2, section 5.10.6).
//!
//! A turn takes packets of the guest and gives it some until neither goes any further, or until so many have passed that
//! the worker has to look at its other descriptors. The driver is told of each queue once per turn.

use std::{io, os::unix::net::UnixListener, sync::Arc, time::Instant};

use vmm_sys_util::epoll::EventSet;

use super::{
    muxer::Muxer,
    packet::{HEADER_BYTES, Header, PAYLOAD_BYTES},
};
use crate::virtio::{
    ring::{GuestMemory, Ring, RingError},
    worker::{EventLoop, Handler, Next},
};

/// Packets that pass in one turn.
const AT_ONCE: usize = 256;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET: all connections are gone, and the context id may be another.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

const TO_GUEST: u64 = 0;
const FROM_GUEST: u64 = 1;
const EVENTS: u64 = 2;
const LISTENER: u64 = 3;

/// The device's end: its queues, once there are some, and the connections.
#[derive(Debug)]
pub struct Endpoint {
    muxer: Muxer,
    rings: Option<Rings>,
    /// Whether more is to be done without an event.
    again: bool,
}

/// The driver's queues.
#[derive(Debug)]
pub struct Rings {
    pub to_guest: Ring,
    pub from_guest: Ring,
    pub events: Ring,
    /// Features that the driver accepted.
    pub accepted: u64,
    /// Whether the guest has yet to hear that its connections are gone.
    pub reset_untold: bool,
}

impl Endpoint {
    /// Without a driver.
    pub fn new(guest_cid: u32, listener: Arc<UnixListener>) -> Self {
        Self {
            muxer: Muxer::new(guest_cid, listener),
            rings: None,
            again: false,
        }
    }

    /// The driver is ready.
    pub fn start_guest(&mut self, rings: Rings) {
        self.rings = Some(rings);
        self.muxer.start_guest();
    }

    /// The driver is gone.
    pub fn lose_guest(&mut self) {
        self.rings = None;
        self.muxer.lose_guest();
    }

    /// The driver's queues, to be saved.
    pub fn rings(&self) -> Option<&Rings> {
        self.rings.as_ref()
    }

    fn turn(&mut self, events: &EventLoop) -> Next {
        let Some(rings) = &mut self.rings else {
            return Next::GoOn;
        };
        match rings.turn(&mut self.muxer, events) {
            Ok(again) => {
                self.again = again;
                Next::GoOn
            }
            Err(error) => {
                rings.to_guest.interrupt().needs_reset(&error.to_string());
                Next::Halt
            }
        }
    }
}

impl Rings {
    /// Moves packets and says whether more could be.
    fn turn(&mut self, muxer: &mut Muxer, events: &EventLoop) -> Result<bool, RingError> {
        let memory = self.to_guest.memory();
        let mut left = AT_ONCE;
        self.tell_reset(&memory)?;
        loop {
            let before = left;
            self.take_packets(&memory, muxer, events, &mut left)?;
            self.give_packets(&memory, muxer, &mut left)?;
            if left == before || left == 0 {
                break;
            }
        }
        self.from_guest.tell()?;
        self.to_guest.tell()?;
        Ok(left == 0)
    }

    /// Takes packets of the guest until there are none, or the guest has to take answers first.
    fn take_packets(
        &mut self,
        memory: &GuestMemory,
        muxer: &mut Muxer,
        events: &EventLoop,
        left: &mut usize,
    ) -> Result<(), RingError> {
        self.from_guest.ignore()?;
        while *left > 0 && !muxer.is_full() {
            let Some(chain) = self.from_guest.pop(memory)? else {
                if self.from_guest.listen()? {
                    continue;
                }
                break;
            };
            *left -= 1;
            let mut header = [0; HEADER_BYTES];
            // A chain without a whole header says nothing that could be answered.
            if chain.readable.copy_out(0, &mut header) == HEADER_BYTES {
                let payload = chain.readable.part(HEADER_BYTES, usize::MAX);
                muxer.take(&Header::parse(&header), &payload, events);
            }
            self.from_guest.add_used(chain.head, 0)?;
        }
        Ok(())
    }

    /// Gives the guest packets until there are none, or it has no buffers.
    fn give_packets(
        &mut self,
        memory: &GuestMemory,
        muxer: &mut Muxer,
        left: &mut usize,
    ) -> Result<(), RingError> {
        self.to_guest.ignore()?;
        while *left > 0 && muxer.wants_guest() {
            let Some(chain) = self.to_guest.pop(memory)? else {
                if self.to_guest.listen()? {
                    continue;
                }
                break;
            };
            let room = chain.writable.part(HEADER_BYTES, PAYLOAD_BYTES);
            if room.is_empty() {
                return Err(RingError::Useless {
                    queue: 0,
                    reason: "a buffer has no room for a header and a byte",
                });
            }
            let Some(header) = muxer.next_packet(&room) else {
                self.to_guest.put_back(1);
                break;
            };
            *left -= 1;
            chain.writable.copy_in(0, &header.bytes());
            self.to_guest
                .add_used(chain.head, HEADER_BYTES + header.len as usize)?;
        }
        Ok(())
    }

    /// Says that all connections are gone, once the guest has a buffer for it.
    fn tell_reset(&mut self, memory: &GuestMemory) -> Result<(), RingError> {
        if !self.reset_untold {
            return Ok(());
        }
        while self.reset_untold {
            let Some(chain) = self.events.pop(memory)? else {
                if self.events.listen()? {
                    continue;
                }
                break;
            };
            let written = chain.writable.copy_in(0, &TRANSPORT_RESET);
            self.events.add_used(chain.head, written)?;
            self.reset_untold = written < TRANSPORT_RESET.len();
        }
        self.events.tell()
    }
}

impl Handler for Endpoint {
    fn register(&mut self, events: &EventLoop) -> io::Result<()> {
        self.muxer.register(LISTENER, events)?;
        if let Some(rings) = &self.rings {
            for (token, ring) in [
                (TO_GUEST, &rings.to_guest),
                (FROM_GUEST, &rings.from_guest),
                (EVENTS, &rings.events),
            ] {
                ring.wake();
                events.add(ring.doorbell(), token, EventSet::IN)?;
            }
        }
        Ok(())
    }

    fn ready(&mut self, token: u64, readiness: EventSet, events: &EventLoop) -> Next {
        match (token, &self.rings) {
            (LISTENER, _) => self.muxer.accept(events),
            (TO_GUEST, Some(rings)) => rings.to_guest.hush(),
            (FROM_GUEST, Some(rings)) => rings.from_guest.hush(),
            (EVENTS, Some(rings)) => rings.events.hush(),
            _ => self.muxer.host_event(token, readiness, events),
        }
        self.turn(events)
    }

    fn deadline(&self) -> Option<Instant> {
        if self.again {
            return Some(Instant::now());
        }
        self.muxer.deadline()
    }

    fn expired(&mut self, events: &EventLoop) -> Next {
        self.muxer.expire(Instant::now(), events);
        self.turn(events)
    }
}
