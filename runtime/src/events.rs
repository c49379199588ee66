//! What happens to pods and containers, told in order to whoever listens.
//!
//! A change of state and its event are one step under one lock, so events come in the order of the changes, and each with
//! what the whole pod looked like right after its own. Nothing is kept for nobody: a listener has a queue of its own, from
//! the moment it begins to listen. One that reads too slowly loses no event before its queue is full; then it gets what is
//! in the queue, and after that is told how many events it has missed.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use prost::Message;
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    mpsc::{self, error::TryRecvError},
};

use crate::{
    container::{Container, ContainerState},
    daemon::Daemon,
    identity::now_ns,
    sandbox::{Pod, PodState},
};

/// Events that wait for a listener that is slow.
pub const QUEUE: usize = 1000;

/// Bytes that they hold, in MiB. What is shared with the daemon's own tables does not count for as long as it is there, but a
/// waiting event keeps what has been removed: so each counts the configuration of what it is about, of which all that is
/// removed has an event.
pub const QUEUE_MIB: usize = 64;

/// Listeners at one time.
pub const LISTENERS: usize = 64;

/// What has happened to a pod or container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there, and a container not started.
    Created,
    /// It runs.
    Started,
    /// It has ended.
    Stopped,
    /// It is not listed any more.
    Deleted,
}

/// Whom it has happened to.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// A pod itself.
    Pod(&'a Arc<Pod>),
    /// A container.
    Container(&'a Arc<Container>),
}

/// One event, with the states right after it.
#[derive(Clone, Debug)]
pub struct Event {
    /// What has happened.
    pub change: Change,
    /// Id of the container, or of the pod.
    pub id: String,
    /// Nanoseconds since the epoch, later than of every event before it.
    pub at_ns: i64,
    /// The pod; nothing where a container outlived it.
    pub pod: Option<(Arc<Pod>, PodState)>,
    /// The containers of the pod that are still listed.
    pub containers: Vec<(Arc<Container>, ContainerState)>,
    /// What it takes while it waits, in bytes.
    held: usize,
}

/// Tells of changes.
#[derive(Debug, Default)]
pub struct Events {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    last_ns: i64,
    listeners: Vec<Listener>,
    closed: bool,
}

#[derive(Debug)]
struct Listener {
    queue: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    lost: Arc<AtomicU64>,
}

/// More cannot listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{LISTENERS} clients listen for events already; end one of them")]
pub struct TooManyListeners;

/// A listener has missed events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} events were not read in time and are lost: at most {QUEUE}, and {QUEUE_MIB} MiB of them, wait for a slow reader; call \
     again, then list pods and containers to see what they are now"
)]
pub struct Missed(pub u64);

/// An event in a queue, and its room there.
type Waiting = (Arc<Event>, OwnedSemaphorePermit);

/// The events from when it was made on.
#[derive(Debug)]
pub struct Listening {
    queue: mpsc::Receiver<Waiting>,
    lost: Arc<AtomicU64>,
}

impl Events {
    /// Makes a change and tells of what it says has happened, as one step. `change` is short and does not call back.
    pub fn step(&self, daemon: &Daemon, subject: Subject<'_>, change: impl FnOnce() -> Vec<Change>) {
        let mut inner = self.locked();
        for change in change() {
            let at_ns = inner.next_ns();
            inner.listeners.retain(|listener| !listener.queue.is_closed());
            if !inner.listeners.is_empty() {
                inner.tell(&Arc::new(event(daemon, subject, change, at_ns)));
            }
        }
    }

    /// Listens from now on.
    ///
    /// # Errors
    ///
    /// [`TooManyListeners`].
    pub fn listen(&self) -> Result<Listening, TooManyListeners> {
        let mut inner = self.locked();
        inner.listeners.retain(|listener| !listener.queue.is_closed());
        if inner.listeners.len() >= LISTENERS {
            return Err(TooManyListeners);
        }
        let (sender, queue) = mpsc::channel(QUEUE);
        let lost = Arc::<AtomicU64>::default();
        if !inner.closed {
            inner.listeners.push(Listener {
                queue: sender,
                room: Arc::new(Semaphore::new(QUEUE_MIB << 20)),
                lost: Arc::clone(&lost),
            });
        }
        Ok(Listening { queue, lost })
    }

    /// Ends what listens, now and later: the daemon goes.
    pub fn close(&self) {
        let mut inner = self.locked();
        inner.closed = true;
        inner.listeners.clear();
    }

    /// A time between those of the last event and of the next, for an answer that shows the states of now.
    pub fn now_ns(&self) -> i64 {
        self.locked().next_ns()
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn next_ns(&mut self) -> i64 {
        self.last_ns = now_ns().max(self.last_ns.saturating_add(1));
        self.last_ns
    }

    fn tell(&self, event: &Arc<Event>) {
        for listener in &self.listeners {
            // What comes behind a gap is of no use.
            let missed_some = listener.lost.load(Ordering::Acquire) > 0;
            if missed_some || !listener.take(event) {
                listener.lost.fetch_add(1, Ordering::AcqRel);
            }
        }
    }
}

impl Listener {
    /// Queues an event; says whether there was room.
    fn take(&self, event: &Arc<Event>) -> bool {
        // One that is larger than a queue still has room in an empty one.
        let bytes = event.held.min(QUEUE_MIB << 20);
        let room = u32::try_from(bytes).map(|bytes| Arc::clone(&self.room).try_acquire_many_owned(bytes));
        let Ok(Ok(room)) = room else {
            return false;
        };
        self.queue.try_send((Arc::clone(event), room)).is_ok()
    }
}

impl Listening {
    /// The next event; `None` when the daemon goes.
    ///
    /// # Errors
    ///
    /// [`Missed`] once all that could be kept has been read.
    pub async fn next(&mut self) -> Option<Result<Arc<Event>, Missed>> {
        // Looked at first: where some were lost before, nothing more comes into the queue, and an empty one has been read.
        let missed_some = self.lost.load(Ordering::Acquire) > 0;
        match self.queue.try_recv() {
            Ok((event, _room)) => Some(Ok(event)),
            Err(TryRecvError::Disconnected) => None,
            Err(TryRecvError::Empty) if missed_some => Some(Err(Missed(self.lost.load(Ordering::Acquire)))),
            Err(TryRecvError::Empty) => self.queue.recv().await.map(|(event, _room)| Ok(event)),
        }
    }
}

fn event(daemon: &Daemon, subject: Subject<'_>, change: Change, at_ns: i64) -> Event {
    let (id, pod) = match subject {
        Subject::Pod(pod) => (&pod.id, Some(Arc::clone(pod))),
        Subject::Container(container) => (&container.id, daemon.pods.find(&container.pod_id).ok()),
    };
    let config = match subject {
        Subject::Pod(pod) => pod.config.encoded_len(),
        Subject::Container(container) => container.config.encoded_len(),
    };
    let containers = match &pod {
        Some(pod) => daemon.containers_of(&pod.id),
        None => Vec::new(),
    };
    let state_of = |pod: &Pod| PodState {
        // A machine must not live on in an event.
        machine: None,
        ..pod.state()
    };
    let containers: Vec<_> = containers
        .into_iter()
        .map(|container| {
            let state = container.state();
            (container, state)
        })
        .collect();
    let states = containers.iter().map(|(_, state)| {
        size_of::<(Arc<Container>, ContainerState)>() + state.reason.len() + state.message.len()
    });
    Event {
        change,
        id: id.clone(),
        at_ns,
        held: size_of::<Event>() + config + states.sum::<usize>(),
        pod: pod.map(|pod| {
            let state = state_of(&pod);
            (pod, state)
        }),
        containers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(id: usize) -> Arc<Event> {
        of_size(id, 100)
    }

    fn of_size(id: usize, held: usize) -> Arc<Event> {
        Arc::new(Event {
            change: Change::Created,
            id: id.to_string(),
            at_ns: 0,
            pod: None,
            containers: Vec::new(),
            held,
        })
    }

    #[tokio::test]
    async fn events_that_hold_much_fill_a_queue_sooner() {
        let events = Events::default();
        let mut slow = events.listen().unwrap();
        let mut quick = events.listen().unwrap();
        let third = (QUEUE_MIB << 20) / 3;
        for id in 0..4 {
            events.locked().tell(&of_size(id, third));
            assert_eq!(quick.next().await.unwrap().unwrap().id, id.to_string());
        }
        for id in 0..3 {
            assert_eq!(slow.next().await.unwrap().unwrap().id, id.to_string());
        }
        assert_eq!(slow.next().await.unwrap().unwrap_err(), Missed(1));
        events.locked().tell(&of_size(4, usize::MAX));
        assert_eq!(
            quick.next().await.unwrap().unwrap().id,
            "4",
            "it has all the room"
        );
    }

    #[tokio::test]
    async fn a_slow_listener_gets_a_whole_queue_and_is_told_of_what_it_missed() {
        let events = Events::default();
        let mut slow = events.listen().unwrap();
        let mut quick = events.listen().unwrap();
        for id in 0..QUEUE + 7 {
            events.locked().tell(&numbered(id));
            assert_eq!(quick.next().await.unwrap().unwrap().id, id.to_string());
        }
        for id in 0..QUEUE {
            assert_eq!(slow.next().await.unwrap().unwrap().id, id.to_string());
        }
        // What has room again comes behind a gap.
        events.locked().tell(&numbered(0));
        let missed = slow.next().await.unwrap().unwrap_err();
        assert_eq!(missed, Missed(8));
        assert!(missed.to_string().starts_with("8 events"), "{missed}");
    }

    #[tokio::test]
    async fn listeners_that_are_gone_make_room() {
        let events = Events::default();
        let listening: Vec<_> = (0..LISTENERS).map(|_| events.listen().unwrap()).collect();
        assert_eq!(events.listen().unwrap_err(), TooManyListeners);
        drop(listening);
        assert!(events.listen().is_ok());
    }

    #[tokio::test]
    async fn a_daemon_that_goes_ends_its_listeners() {
        let events = Events::default();
        let mut before = events.listen().unwrap();
        events.locked().tell(&numbered(1));
        events.close();
        assert_eq!(before.next().await.unwrap().unwrap().id, "1");
        assert!(before.next().await.is_none());
        assert!(events.listen().unwrap().next().await.is_none());
    }

    #[test]
    fn times_only_grow() {
        let events = Events::default();
        let times: Vec<_> = (0..1000).map(|_| events.now_ns()).collect();
        assert!(times.is_sorted_by(|a, b| a < b));
    }
}
