//! Where a stream connection finds its process.
//!
//! The streams of an exec are opened before the exec is asked for, so connections for a process that is not there yet
//! are parked: a bounded number, each for a bounded time.

use std::{
    collections::HashMap,
    ptr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use bulkhead_proto::agent::{StreamHeader, StreamKind, limits::is_id};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{output::Attachment, streams::ProcessStreams};

/// How long a connection waits for its process.
pub const PARKING_TIME: Duration = Duration::from_secs(30);

/// Most connections that wait.
pub const PARKED_CONNECTIONS: usize = 256;

/// Name of a process: its container, and its exec unless it is the container's first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProcessName {
    /// The container.
    pub container: String,
    /// Empty for the first process.
    pub exec: String,
}

/// Why a connection is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedStream {
    /// No name of a process can be like that.
    #[error("the header names no process: container {container:?}, exec {exec:?}")]
    BadName {
        /// As given.
        container: String,
        /// As given.
        exec: String,
    },
    /// There is none of that number.
    #[error("there is no stream of kind {0}")]
    BadKind(i32),
    /// The container is not known, and only processes of known containers are waited for.
    #[error("there is no container {0}")]
    NoContainer(String),
    /// The process was started without that stream.
    #[error("process {exec:?} of container {container} has no {kind}")]
    NoStream {
        /// The container.
        container: String,
        /// The exec.
        exec: String,
        /// The stream.
        kind: &'static str,
    },
    /// Too many wait.
    #[error("{PARKED_CONNECTIONS} connections wait for processes that do not start")]
    TooManyParked,
    /// A process that has not started has written nothing.
    #[error("offset {0} of a stream that has not begun")]
    NotBegun(u64),
}

/// Where a connection goes.
#[derive(Debug)]
pub enum Route {
    /// To the task of a stream, which answers it.
    Stream(mpsc::Sender<Attachment>),
    /// Nowhere yet: it is answered and handed to [`Registry::park`].
    Park(ProcessName, StreamKind),
}

/// All processes that have streams, and the connections that wait for one.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    containers: HashMap<String, HashMap<String, Arc<ProcessStreams>>>,
    parked: HashMap<(ProcessName, StreamKind), Parked>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Parked {
    attachment: Attachment,
    /// Tells this connection from a later one for the same stream.
    ticket: u64,
}

impl Registry {
    /// Lets connections for the container's processes wait from now on.
    pub fn add_container(&self, container: &str) {
        self.locked().containers.entry(container.to_owned()).or_default();
    }

    /// Drops all that was known of a container, waiting connections included.
    pub fn remove_container(&self, container: &str) {
        let mut shared = self.locked();
        shared.containers.remove(container);
        shared.parked.retain(|(name, _), _| name.container != container);
    }

    /// Makes a process's streams known and hands it the connections that waited for it.
    pub fn add_process(&self, name: &ProcessName, streams: Arc<ProcessStreams>) {
        let mut shared = self.locked();
        for kind in [StreamKind::Stdin, StreamKind::Stdout, StreamKind::Stderr] {
            let parked = shared.parked.remove(&(name.clone(), kind));
            if let (Some(parked), Some(stream)) = (parked, streams.attachments(kind)) {
                let _has_room_for_its_first = stream.try_send(parked.attachment);
            }
        }
        shared
            .containers
            .entry(name.container.clone())
            .or_default()
            .insert(name.exec.clone(), streams);
    }

    /// Forgets a process, unless its name has gone to another by now.
    pub fn remove_process(&self, name: &ProcessName, streams: &Weak<ProcessStreams>) {
        if let Some(processes) = self.locked().containers.get_mut(&name.container)
            && processes
                .get(&name.exec)
                .is_some_and(|held| ptr::eq(Arc::as_ptr(held), streams.as_ptr()))
        {
            processes.remove(&name.exec);
        }
    }

    /// Drops the connections that wait for a process that will not come.
    pub fn drop_parked(&self, process: &ProcessName) {
        self.locked().parked.retain(|(name, _), _| name != process);
    }

    /// Where a connection with this header goes.
    pub fn route(&self, header: &StreamHeader) -> Result<Route, RefusedStream> {
        let name = ProcessName {
            container: header.container_id.clone(),
            exec: header.exec_id.clone(),
        };
        if !is_id(&name.container) || !(name.exec.is_empty() || is_id(&name.exec)) {
            return Err(RefusedStream::BadName {
                container: name.container.chars().take(64).collect(),
                exec: name.exec.chars().take(64).collect(),
            });
        }
        let kind = StreamKind::try_from(header.kind).map_err(|_| RefusedStream::BadKind(header.kind))?;
        let shared = self.locked();
        let processes = shared
            .containers
            .get(&name.container)
            .ok_or_else(|| RefusedStream::NoContainer(name.container.clone()))?;
        if let Some(streams) = processes.get(&name.exec) {
            return match streams.attachments(kind) {
                Some(stream) => Ok(Route::Stream(stream)),
                None => Err(RefusedStream::NoStream {
                    container: name.container,
                    exec: name.exec,
                    kind: match kind {
                        StreamKind::Stdin => "stdin",
                        StreamKind::Stdout => "stdout",
                        StreamKind::Stderr => "stderr",
                        StreamKind::Port => "port",
                    },
                }),
            };
        }
        if header.offset != 0 {
            return Err(RefusedStream::NotBegun(header.offset));
        }
        if shared.parked.len() >= PARKED_CONNECTIONS {
            return Err(RefusedStream::TooManyParked);
        }
        Ok(Route::Park(name, kind))
    }

    /// Keeps a connection for a process that is not there yet, or hands it over if it has come meanwhile. The latest
    /// connection for a stream replaces an earlier one.
    pub fn park(&self, name: ProcessName, kind: StreamKind, attachment: Attachment) {
        let mut shared = self.locked();
        let known = shared
            .containers
            .get(&name.container)
            .and_then(|processes| processes.get(&name.exec));
        if let Some(streams) = known {
            if let Some(stream) = streams.attachments(kind) {
                let _has_room_or_is_busy = stream.try_send(attachment);
            }
            return;
        }
        if shared.parked.len() >= PARKED_CONNECTIONS {
            return;
        }
        let ticket = shared.next_ticket;
        shared.next_ticket += 1;
        shared
            .parked
            .insert((name.clone(), kind), Parked { attachment, ticket });
        drop(shared);
        let registry = self.clone();
        tokio::spawn(async move {
            sleep_until(Instant::now() + PARKING_TIME).await;
            registry.expire(&(name, kind), ticket);
        });
    }

    fn expire(&self, key: &(ProcessName, StreamKind), ticket: u64) {
        let mut shared = self.locked();
        if shared
            .parked
            .get(key)
            .is_some_and(|parked| parked.ticket == ticket)
        {
            shared.parked.remove(key);
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(container: &str, exec: &str) -> StreamHeader {
        StreamHeader {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            kind: StreamKind::Stdout.into(),
            offset: 0,
            port: 0,
        }
    }

    #[test]
    fn a_connection_for_no_container_is_refused() {
        let registry = Registry::default();
        assert!(matches!(
            registry.route(&header("c1", "")),
            Err(RefusedStream::NoContainer(name)) if name == "c1"
        ));
        registry.add_container("c1");
        assert!(matches!(registry.route(&header("c1", "e")), Ok(Route::Park(..))));
        registry.remove_container("c1");
        assert!(registry.route(&header("c1", "e")).is_err());
    }

    #[test]
    fn a_header_must_name_what_can_exist() {
        let registry = Registry::default();
        registry.add_container("c1");
        assert!(matches!(
            registry.route(&header("../c1", "")),
            Err(RefusedStream::BadName { .. })
        ));
        let mut odd = header("c1", "");
        odd.kind = 7;
        assert!(matches!(registry.route(&odd), Err(RefusedStream::BadKind(7))));
        let mut late = header("c1", "e");
        late.offset = 5;
        assert!(matches!(registry.route(&late), Err(RefusedStream::NotBegun(5))));
    }
}
