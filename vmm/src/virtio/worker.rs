//! The thread that runs a device: an epoll loop around a [`Handler`], which can be stopped and hands its handler back.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    thread::{Builder, JoinHandle},
    time::Duration,
};

use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd},
};

/// What a device does on its thread.
pub trait Handler: Send + 'static {
    /// Names the descriptors to be watched. Called once at the start of each run, before the first event.
    ///
    /// # Errors
    ///
    /// What epoll says; the worker then does not start.
    fn register(&mut self, events: &EventLoop) -> io::Result<()>;

    /// Something has happened on the descriptor registered as `token`.
    fn ready(&mut self, token: u64, readiness: EventSet, events: &EventLoop) -> Next;

    /// How long to wait at most before [`Handler::timeout`] is called; `None` for ever.
    fn wait_at_most(&self) -> Option<Duration> {
        None
    }

    /// The time named by [`Handler::wait_at_most`] has passed without an event.
    fn timeout(&mut self, _events: &EventLoop) -> Next {
        Next::GoOn
    }
}

/// What a worker does after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Waits for the next event.
    GoOn,
    /// Stands still until it is stopped: the device is broken.
    Halt,
}

/// The descriptors that a worker watches.
#[derive(Debug)]
pub struct EventLoop {
    epoll: Epoll,
}

/// Token of the event that stops a worker; not for handlers.
const STOP: u64 = u64::MAX;

/// Events taken from the kernel at once.
const BATCH: usize = 32;

impl EventLoop {
    fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()? })
    }

    /// Watches `fd`; its events come with `token`, which must not be `u64::MAX`.
    ///
    /// # Errors
    ///
    /// What epoll says.
    pub fn add(&self, fd: RawFd, token: u64, interest: EventSet) -> io::Result<()> {
        self.epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(interest, token))
    }

    /// Changes what is watched of `fd`.
    ///
    /// # Errors
    ///
    /// What epoll says.
    pub fn modify(&self, fd: RawFd, token: u64, interest: EventSet) -> io::Result<()> {
        self.epoll
            .ctl(ControlOperation::Modify, fd, EpollEvent::new(interest, token))
    }

    /// Watches `fd` no more.
    ///
    /// # Errors
    ///
    /// What epoll says.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.epoll
            .ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }
}

/// A running worker. Dropping it stops it.
#[derive(Debug)]
pub struct Worker<H: Handler> {
    stop: EventFd,
    thread: Option<JoinHandle<H>>,
}

impl<H: Handler> Worker<H> {
    /// Runs `handler` on a thread named `name` (at most 15 bytes are shown by the kernel).
    ///
    /// # Errors
    ///
    /// What the kernel says to a new thread, epoll or eventfd.
    pub fn start(name: &str, mut handler: H) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let events = EventLoop::new()?;
        events.add(stop.as_raw_fd(), STOP, EventSet::IN)?;
        let only_stop = EventLoop::new()?;
        only_stop.add(stop.as_raw_fd(), STOP, EventSet::IN)?;
        handler.register(&events)?;
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            run(&mut handler, &events, &only_stop);
            handler
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Stops the thread after the event it is at, and gives the handler back.
    ///
    /// # Panics
    ///
    /// If the handler panicked.
    pub fn stop(mut self) -> H {
        self.end().expect("a worker that was not stopped has a thread")
    }

    fn end(&mut self) -> Option<H> {
        let thread = self.thread.take()?;
        // Only an eventfd at its limit refuses, and then the event is there already.
        let _ = self.stop.write(1);
        Some(
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    }
}

impl<H: Handler> Drop for Worker<H> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.stop.write(1);
            let _ = thread.join();
        }
    }
}

/// Serves events until the stop event, or until the handler halts: then only the stop event is waited for, since the
/// level-triggered events of a broken device would turn the loop for ever.
fn run(handler: &mut impl Handler, events: &EventLoop, stop: &EventLoop) {
    while turn(handler, events) == Turn::Next {}
    let mut event = [EpollEvent::default()];
    while wait(stop, None, &mut event) == 0 {}
}

/// Whether a loop is to go on.
#[derive(PartialEq)]
enum Turn {
    Next,
    End,
}

fn turn(handler: &mut impl Handler, events: &EventLoop) -> Turn {
    let mut batch = [EpollEvent::default(); BATCH];
    let count = wait(events, handler.wait_at_most(), &mut batch);
    let ready = batch.get(..count).unwrap_or_default();
    if ready.iter().any(|event| event.data() == STOP) {
        return Turn::End;
    }
    if ready.is_empty() && handler.timeout(events) == Next::Halt {
        return Turn::End;
    }
    for event in ready {
        let readiness = EventSet::from_bits_truncate(event.events());
        if handler.ready(event.data(), readiness, events) == Next::Halt {
            return Turn::End;
        }
    }
    Turn::Next
}

/// Waits for events and gives their number; 0 when the time has passed.
fn wait(events: &EventLoop, at_most: Option<Duration>, batch: &mut [EpollEvent]) -> usize {
    let milliseconds = at_most.map_or(-1, |wait| {
        i32::try_from(wait.as_millis().max(1)).unwrap_or(i32::MAX)
    });
    loop {
        match events.epoll.wait(milliseconds, batch) {
            Ok(count) => return count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                unreachable!("epoll_wait on an owned descriptor with an owned buffer failed: {error}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counter {
        doorbell: EventFd,
        seen: u64,
        halt_at: u64,
    }

    impl Handler for Counter {
        fn register(&mut self, events: &EventLoop) -> io::Result<()> {
            events.add(self.doorbell.as_raw_fd(), 0, EventSet::IN)
        }

        fn ready(&mut self, _: u64, _: EventSet, _: &EventLoop) -> Next {
            if self.seen < self.halt_at {
                self.seen += self.doorbell.read().unwrap_or(0);
            }
            if self.seen >= self.halt_at {
                Next::Halt
            } else {
                Next::GoOn
            }
        }
    }

    fn counter(halt_at: u64) -> (EventFd, Counter) {
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        (
            doorbell.try_clone().unwrap(),
            Counter {
                doorbell,
                seen: 0,
                halt_at,
            },
        )
    }

    #[test]
    fn a_stopped_worker_gives_its_handler_back_and_runs_again() {
        let (bell, handler) = counter(u64::MAX);
        bell.write(3).unwrap();
        let worker = Worker::start("test", handler).unwrap();
        while bell.read().is_ok() {
            bell.write(3).unwrap();
        }
        let handler = worker.stop();
        bell.write(4).unwrap();
        let mut handler = Worker::start("test", handler).unwrap().stop();
        handler.seen += handler.doorbell.read().unwrap_or(0);
        assert!(handler.seen >= 4, "the bell rung between two runs was lost");
    }

    #[test]
    fn a_halted_worker_can_still_be_stopped() {
        let (bell, handler) = counter(1);
        bell.write(1).unwrap();
        let worker = Worker::start("test", handler).unwrap();
        assert_eq!(worker.stop().halt_at, 1);
    }
}
