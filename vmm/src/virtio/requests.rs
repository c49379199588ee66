//! Serves a queue whose chains are requests: each is handled and returned before the next is taken.

use std::{io, time::Instant};

use vmm_sys_util::epoll::EventSet;

use super::{
    ring::{Chain, Ring, RingError},
    worker::{EventLoop, Handler, Next},
};

/// What a device does with a request.
pub trait Serve: Send + 'static {
    /// Handles a request and gives the number of bytes written to its writable part.
    fn serve(&mut self, request: &Chain<'_>) -> usize;

    /// Before when no further request may be served; `None` for no limit. An instant that has passed is no limit.
    fn not_before(&self) -> Option<Instant> {
        None
    }
}

/// A queue of requests and what serves them.
#[derive(Debug)]
pub struct RequestQueue<S> {
    ring: Ring,
    server: S,
    go_on_at: Option<Instant>,
}

/// Requests served before the worker looks whether it is to stop: a guest that never lets its queue run empty must not
/// keep it from that.
const AT_ONCE: usize = 64;

impl<S: Serve> RequestQueue<S> {
    /// Serves `ring` with `server`.
    pub fn new(ring: Ring, server: S) -> Self {
        Self {
            ring,
            server,
            go_on_at: None,
        }
    }

    /// The queue, to be saved.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// What serves it.
    pub fn server(&self) -> &S {
        &self.server
    }

    /// Serves what is in the queue now, without the worker; at most one ring full.
    pub fn drain(&mut self) {
        // The driver is told of a broken ring when the worker goes on.
        let _ = self.serve(usize::from(self.ring.size()));
    }

    fn turn(&mut self) -> Next {
        self.ring.hush();
        match self.serve(AT_ONCE) {
            Ok(go_on_at) => {
                self.go_on_at = go_on_at;
                Next::GoOn
            }
            Err(error) => {
                self.ring.interrupt().needs_reset(&error.to_string());
                Next::Halt
            }
        }
    }

    /// Serves up to `at_most` requests and says when to go on without being rung for.
    fn serve(&mut self, at_most: usize) -> Result<Option<Instant>, RingError> {
        let memory = self.ring.memory();
        let mut left = at_most;
        loop {
            self.ring.ignore()?;
            loop {
                if let Some(instant) = self
                    .server
                    .not_before()
                    .filter(|instant| *instant > Instant::now())
                {
                    return Ok(Some(instant));
                }
                if left == 0 {
                    return Ok(Some(Instant::now()));
                }
                let Some(request) = self.ring.pop(&memory)? else {
                    break;
                };
                left -= 1;
                let written = self.server.serve(&request);
                self.ring.add_used(request.head, written)?;
                // Each at once: what is served here may take long, and by index the driver says what it can wait for.
                self.ring.tell()?;
            }
            if !self.ring.listen()? {
                return Ok(None);
            }
        }
    }
}

const DOORBELL: u64 = 0;

impl<S: Serve> Handler for RequestQueue<S> {
    fn register(&mut self, events: &EventLoop) -> io::Result<()> {
        self.ring.wake();
        events.add(self.ring.doorbell(), DOORBELL, EventSet::IN)
    }

    fn ready(&mut self, _token: u64, _readiness: EventSet, _events: &EventLoop) -> Next {
        self.turn()
    }

    fn deadline(&self) -> Option<Instant> {
        self.go_on_at
    }

    fn expired(&mut self, _events: &EventLoop) -> Next {
        self.turn()
    }
}
