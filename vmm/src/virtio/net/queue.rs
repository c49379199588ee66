//! The two queues and the wire, in turns: so many packets one way, so many the other, and then the worker looks whether
//! it is to stop.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    time::Instant,
};

use vmm_sys_util::epoll::EventSet;

use super::{receive::Receiver, tap::Tap, transmit::Transmitter};
use crate::virtio::{
    ring::RingError,
    worker::{EventLoop, Handler, Next},
};

/// Packets in each direction that pass in one turn.
const AT_ONCE: usize = 256;

const DOORBELL: u64 = 0;
const WIRE: u64 = 1;

/// A wire and its queues.
#[derive(Debug)]
pub struct Link {
    tap: Arc<Tap>,
    pub receiver: Receiver,
    pub transmitter: Transmitter,
    /// Whether more is to be done without an event.
    again: bool,
}

impl Link {
    /// Connects a tap to a driver's queues.
    pub fn new(tap: Arc<Tap>, receiver: Receiver, transmitter: Transmitter) -> Self {
        Self {
            tap,
            receiver,
            transmitter,
            again: false,
        }
    }

    fn turn(&mut self) -> Next {
        match self.move_packets() {
            Ok(again) => {
                self.again = again;
                Next::GoOn
            }
            Err(error) => {
                self.receiver.ring().interrupt().needs_reset(&error.to_string());
                Next::Halt
            }
        }
    }

    fn move_packets(&mut self) -> Result<bool, RingError> {
        let (mut to_send, mut to_receive) = (AT_ONCE, AT_ONCE);
        self.transmitter.run(&self.tap, &mut to_send)?;
        self.receiver.run(&self.tap, &mut to_receive)?;
        Ok(to_send == 0 || to_receive == 0)
    }
}

impl Handler for Link {
    fn register(&mut self, events: &EventLoop) -> io::Result<()> {
        // What came while nobody listened is told as well: a descriptor that is ready when it is added is an edge.
        let wire = EventSet::IN | EventSet::EDGE_TRIGGERED;
        events.add(self.tap.as_fd().as_raw_fd(), WIRE, wire)?;
        // Every ring is an edge, too, so that none has to be taken away: a system call less for each.
        for ring in [self.receiver.ring(), self.transmitter.ring()] {
            ring.wake();
            events.add(ring.doorbell(), DOORBELL, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        }
        Ok(())
    }

    fn ready(&mut self, token: u64, _readiness: EventSet, _events: &EventLoop) -> Next {
        if token == WIRE {
            self.receiver.wire_ready = true;
        }
        self.turn()
    }

    fn deadline(&self) -> Option<Instant> {
        self.again.then(Instant::now)
    }

    fn expired(&mut self, _events: &EventLoop) -> Next {
        self.turn()
    }
}
