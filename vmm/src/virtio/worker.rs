//! The thread that runs a device: an epoll loop around a [`Handler`], which can be stopped and hands its handler back.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd},
};

use crate::threads;

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

    /// When [`Handler::expired`] is to be called; `None` for never. Asked anew after each round of events. A handler
    /// that has more to do than it may do at once names an instant that has passed.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The instant named by [`Handler::deadline`] has come, whether or not there were events before.
    fn expired(&mut self, _events: &EventLoop) -> Next {
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
    pub(super) fn new() -> io::Result<Self> {
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
        let thread = threads::named(name).spawn(move || {
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
    wait(stop, None, &mut [EpollEvent::default()]);
}

/// Whether a loop is to go on.
#[derive(PartialEq)]
enum Turn {
    Next,
    End,
}

fn turn(handler: &mut impl Handler, events: &EventLoop) -> Turn {
    let mut batch = [EpollEvent::default(); BATCH];
    let deadline = handler.deadline();
    let count = wait(events, deadline, &mut batch);
    let ready = batch.get(..count).unwrap_or_default();
    if ready.iter().any(|event| event.data() == STOP) {
        return Turn::End;
    }
    for event in ready {
        let readiness = EventSet::from_bits_truncate(event.events());
        if handler.ready(event.data(), readiness, events) == Next::Halt {
            return Turn::End;
        }
    }
    // What was asked for before the events is what counts: a handler that puts its deadline off at every event would
    // otherwise never meet it.
    if deadline.is_some_and(|deadline| deadline <= Instant::now()) && handler.expired(events) == Next::Halt {
        return Turn::End;
    }
    Turn::Next
}

/// Waits for events and gives their number: 0 only when the deadline has come.
fn wait(events: &EventLoop, deadline: Option<Instant>, batch: &mut [EpollEvent]) -> usize {
    loop {
        let milliseconds = deadline.map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: rounded down, the last millisecond would be spent turning.
            i32::try_from((left + Duration::from_nanos(999_999)).as_millis()).unwrap_or(i32::MAX)
        });
        match events.epoll.wait(milliseconds, batch) {
            Ok(0) if deadline.is_none_or(|deadline| deadline > Instant::now()) => {}
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
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Tells of every event on a channel, and halts at a ring of more than 100.
    struct Bell {
        doorbell: EventFd,
        heard: Sender<Heard>,
        alarm: Option<Instant>,
    }

    #[derive(Debug, PartialEq)]
    enum Heard {
        Rings(u64),
        Expired,
    }

    impl Handler for Bell {
        fn register(&mut self, events: &EventLoop) -> io::Result<()> {
            events.add(self.doorbell.as_raw_fd(), 0, EventSet::IN)
        }

        fn ready(&mut self, _: u64, _: EventSet, _: &EventLoop) -> Next {
            let rings = self.doorbell.read().unwrap();
            self.heard.send(Heard::Rings(rings)).unwrap();
            if rings > 100 {
                // Rung again, so that the loop would turn if the halted handler were still asked.
                self.doorbell.write(1).unwrap();
                Next::Halt
            } else {
                Next::GoOn
            }
        }

        fn deadline(&self) -> Option<Instant> {
            self.alarm
        }

        fn expired(&mut self, _: &EventLoop) -> Next {
            self.alarm = None;
            self.heard.send(Heard::Expired).unwrap();
            Next::GoOn
        }
    }

    fn bell() -> (EventFd, Receiver<Heard>, Bell) {
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        let (heard, hear) = channel();
        let bell = Bell {
            doorbell: doorbell.try_clone().unwrap(),
            heard,
            alarm: None,
        };
        (doorbell, hear, bell)
    }

    #[test]
    fn a_stopped_worker_gives_its_handler_back_and_what_happens_meanwhile_is_heard_in_the_next_run() {
        let (ring, hear, bell) = bell();
        let worker = Worker::start("test", bell).unwrap();
        ring.write(3).unwrap();
        assert_eq!(hear.recv_timeout(PATIENCE), Ok(Heard::Rings(3)));
        let bell = worker.stop();
        ring.write(4).unwrap();
        assert!(hear.try_recv().is_err(), "a stopped worker has heard a ring");
        let worker = Worker::start("test", bell).unwrap();
        assert_eq!(hear.recv_timeout(PATIENCE), Ok(Heard::Rings(4)));
        drop(worker);
        assert!(
            hear.recv().is_err(),
            "a dropped worker has left its handler alive"
        );
    }

    #[test]
    fn a_halted_worker_hears_nothing_more_but_can_be_stopped() {
        let (ring, hear, mut bell) = bell();
        bell.alarm = Some(Instant::now() + PATIENCE);
        let worker = Worker::start("test", bell).unwrap();
        ring.write(101).unwrap();
        assert_eq!(hear.recv_timeout(PATIENCE), Ok(Heard::Rings(101)));
        let bell = worker.stop();
        assert!(hear.try_recv().is_err());
        assert_eq!(
            bell.doorbell.read().unwrap(),
            1,
            "the ring after the halt was taken"
        );
    }

    #[test]
    fn a_deadline_is_met_with_and_without_events() {
        let (_ring, hear, mut quiet) = bell();
        quiet.alarm = Some(Instant::now() + Duration::from_millis(3));
        let _worker = Worker::start("test", quiet).unwrap();
        assert_eq!(hear.recv_timeout(PATIENCE), Ok(Heard::Expired));

        let (ring, hear, mut noisy) = bell();
        noisy.alarm = Some(Instant::now());
        ring.write(1).unwrap();
        let _worker = Worker::start("test", noisy).unwrap();
        assert_eq!(hear.recv_timeout(PATIENCE), Ok(Heard::Rings(1)));
        assert_eq!(hear.recv_timeout(PATIENCE), Ok(Heard::Expired));
    }
}
