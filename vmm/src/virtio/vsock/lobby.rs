//! The host's socket: clients that have not said yet what they want, and those that wait for the guest's connections.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, send, sendmsg};
use vmm_sys_util::epoll::EventSet;

use super::command::{Command, Line, read_line};
use crate::virtio::worker::EventLoop;

/// How long a client may take to say what it wants.
pub const COMMAND_PATIENCE: Duration = Duration::from_secs(5);

/// Most clients that are not connected to the guest. More wait in the socket's queue.
pub const MOST_CLIENTS: usize = 128;

/// When accepting is tried again after the process had no descriptor left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What a stream is watched for.
pub const EDGES: EventSet = EventSet::IN
    .union(EventSet::OUT)
    .union(EventSet::READ_HANG_UP)
    .union(EventSet::EDGE_TRIGGERED);

/// The clients of the host's socket.
#[derive(Debug)]
pub struct Lobby {
    listener: Arc<UnixListener>,
    clients: HashMap<u64, Client>,
    /// Who takes the connections to a port.
    takers: HashMap<u32, u64>,
    /// When to accept though no edge will tell: there was no room for a client.
    accept_at: Option<Instant>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    wish: Wish,
}

#[derive(Debug)]
enum Wish {
    /// Not said until then.
    Unknown { until: Instant },
    /// The guest's connections to this port.
    Port(u32),
}

/// A client that wants a connection to a port of the guest.
#[derive(Debug)]
pub struct Caller {
    /// Its stream, no longer watched.
    pub stream: UnixStream,
    /// The port.
    pub port: u32,
}

impl Lobby {
    /// For a non-blocking listening socket.
    pub fn new(listener: Arc<UnixListener>) -> Self {
        Self {
            listener,
            clients: HashMap::new(),
            takers: HashMap::new(),
            accept_at: None,
        }
    }

    /// Watches the socket, as `token`, and all clients.
    pub fn register(&self, token: u64, events: &EventLoop) -> io::Result<()> {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        events.add(self.listener.as_raw_fd(), token, edges)?;
        for (id, client) in &self.clients {
            events.add(client.stream.as_raw_fd(), *id, EDGES)?;
        }
        Ok(())
    }

    /// Lets clients in; `next_id` numbers them.
    pub fn accept(&mut self, next_id: &mut impl FnMut() -> u64, events: &EventLoop) {
        self.accept_at = None;
        while self.clients.len() < MOST_CLIENTS {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let id = next_id();
                    let watched = stream
                        .set_nonblocking(true)
                        .and_then(|()| events.add(stream.as_raw_fd(), id, EDGES));
                    if watched.is_ok() {
                        let until = Instant::now() + COMMAND_PATIENCE;
                        let wish = Wish::Unknown { until };
                        self.clients.insert(id, Client { stream, wish });
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The client has gone again, or there are no descriptors left.
                Err(_) => break,
            }
        }
        self.accept_at = Some(Instant::now() + ACCEPT_AGAIN);
    }

    /// Something has happened to a client. Gives it when it wants a connection.
    pub fn event(&mut self, id: u64, events: &EventLoop) -> Option<Caller> {
        let client = self.clients.get_mut(&id)?;
        match client.wish {
            Wish::Unknown { .. } => match read_line(&client.stream) {
                Line::Partial => None,
                Line::Whole(Command::Connect(port)) => {
                    let client = self.clients.remove(&id)?;
                    events.remove(client.stream.as_raw_fd()).ok()?;
                    Some(Caller {
                        stream: client.stream,
                        port,
                    })
                }
                Line::Whole(Command::Listen(port)) => {
                    self.listen(id, port);
                    None
                }
                Line::Bad => {
                    self.dismiss(id, "that is no command; say CONNECT <port> or LISTEN <port>");
                    None
                }
                Line::Closed => {
                    self.forget(id);
                    None
                }
            },
            Wish::Port(_) => {
                // It has nothing more to say: whatever comes, the end included, is the end of its listening.
                let mut byte = [0];
                let silent = recv(&client.stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT);
                if !matches!(silent, Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)) {
                    self.forget(id);
                }
                None
            }
        }
    }

    fn listen(&mut self, id: u64, port: u32) {
        if self.takers.contains_key(&port) {
            self.dismiss(id, "port in use");
            return;
        }
        if let Some(client) = self.clients.get_mut(&id)
            && say(&client.stream, &format!("OK {port}\n"))
        {
            client.wish = Wish::Port(port);
            self.takers.insert(port, id);
        } else {
            self.forget(id);
        }
    }

    /// Whether somebody takes the guest's connections to this port.
    pub fn listens(&self, port: u32) -> bool {
        self.takers.contains_key(&port)
    }

    /// Hands one end of a connection to the client that listens on `port`. False when it cannot take it now.
    pub fn hand_over(&mut self, port: u32, end: &OwnedFd) -> bool {
        let taker = self.takers.get(&port).and_then(|id| self.clients.get(id));
        let Some(taker) = taker else {
            return false;
        };
        let descriptors = [end.as_fd()];
        let rights = SendAncillaryMessage::ScmRights(&descriptors);
        let mut space = vec![std::mem::MaybeUninit::uninit(); rights.size()];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        ancillary.push(rights)
            && sendmsg(&taker.stream, &[IoSlice::new(&[0])], &mut ancillary, flags) == Ok(1)
    }

    /// When [`Lobby::expire`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let patience = self.clients.values().filter_map(|client| match client.wish {
            Wish::Unknown { until } => Some(until),
            Wish::Port(_) => None,
        });
        patience.chain(self.accept_at).min()
    }

    /// Sends away those who have said nothing for too long, and lets others in if there was no room.
    pub fn expire(&mut self, now: Instant, next_id: &mut impl FnMut() -> u64, events: &EventLoop) {
        let silent = |client: &Client| matches!(client.wish, Wish::Unknown { until } if until <= now);
        let late: Vec<u64> = self
            .clients
            .iter()
            .filter_map(|(id, client)| silent(client).then_some(*id))
            .collect();
        for id in late {
            self.dismiss(id, "no command came in time");
        }
        if self.accept_at.is_some_and(|instant| instant <= now) {
            self.accept(next_id, events);
        }
    }

    fn dismiss(&mut self, id: u64, reason: &str) {
        if let Some(client) = self.clients.get(&id) {
            say(&client.stream, &format!("ERR {reason}\n"));
        }
        self.forget(id);
    }

    fn forget(&mut self, id: u64) {
        if let Some(Client {
            wish: Wish::Port(port),
            ..
        }) = self.clients.remove(&id)
        {
            self.takers.remove(&port);
        }
    }
}

/// Says a line to a client, and whether it was taken whole.
pub fn say(stream: &UnixStream, line: &str) -> bool {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    send(stream, line.as_bytes(), flags).is_ok_and(|count| count == line.len())
}
