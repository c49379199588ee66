//! All connections: which packet and which event goes to which, and who may send to the guest next.
//!
//! What waits for the guest is bounded by the number of connections, each of which knows itself what it has to say, and
//! by [`MOST_REPLIES`] answers to packets that belong to none: when the guest does not take those, no more of its
//! packets are taken.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
    time::Instant,
};

use vmm_sys_util::epoll::EventSet;

use super::{
    connection::{Connection, Verdict},
    lobby::{Caller, EDGES, Lobby, say},
    packet::{HOST_CID, Header, Op, Ports, STREAM},
};
use crate::virtio::{buffer::GuestBuffer, worker::EventLoop};

/// Most connections at once, those included of which only the host's side is left.
pub const MOST_CONNECTIONS: usize = 1024;

/// Most answers that wait for the guest before no more of its packets are taken.
const MOST_REPLIES: usize = 256;

/// First token of a stream; those below are the queue's.
const FIRST_ID: u64 = 16;

/// Ports that the host's side of its own connections get, so high that nobody listens there by habit.
const FIRST_PORT: u32 = 1 << 30;

/// All connections of a guest.
#[derive(Debug)]
pub struct Muxer {
    guest_cid: u32,
    lobby: Lobby,
    connections: HashMap<u64, Connection>,
    /// Connections that the guest knows.
    by_ports: HashMap<Ports, u64>,
    /// Connections that have something for the guest, in turn.
    ready: VecDeque<u64>,
    replies: VecDeque<Header>,
    /// When connections have to be looked at.
    deadlines: BTreeSet<(Instant, u64)>,
    next_id: u64,
    next_port: u32,
    /// Whether there is a driver that connections could be asked of.
    driver_ready: bool,
}

impl Muxer {
    /// Without connections, and without a driver.
    pub fn new(guest_cid: u32, listener: Arc<UnixListener>) -> Self {
        Self {
            guest_cid,
            lobby: Lobby::new(listener),
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            replies: VecDeque::new(),
            deadlines: BTreeSet::new(),
            next_id: FIRST_ID,
            next_port: FIRST_PORT,
            driver_ready: false,
        }
    }

    /// Watches the host's socket, as `token`, and all streams.
    pub fn register(&mut self, token: u64, events: &EventLoop) -> io::Result<()> {
        self.lobby.register(token, events)?;
        for (id, connection) in &self.connections {
            events.add(connection.stream().as_raw_fd(), *id, EDGES)?;
        }
        Ok(())
    }

    /// A driver is there.
    pub fn start_guest(&mut self) {
        self.driver_ready = true;
    }

    /// The driver has gone, and with it all connections. Those who listen on the host go on listening.
    pub fn lose_guest(&mut self) {
        self.driver_ready = false;
        for connection in self.connections.values() {
            connection.refuse("the guest has restarted");
        }
        self.connections.clear();
        self.by_ports.clear();
        self.ready.clear();
        self.replies.clear();
        self.deadlines.clear();
    }

    /// Clients wait at the host's socket.
    pub fn accept(&mut self, events: &EventLoop) {
        let next_id = &mut self.next_id;
        self.lobby.accept(&mut || number(next_id), events);
    }

    /// Something has happened to the stream with this token.
    pub fn host_event(&mut self, id: u64, readiness: EventSet, events: &EventLoop) {
        if let Some(connection) = self.connections.get_mut(&id) {
            let verdict = connection.host_event(readiness);
            self.carry_out(id, verdict);
        } else if let Some(caller) = self.lobby.event(id, events) {
            self.call(caller, events);
        }
    }

    /// A client wants a connection to the guest.
    fn call(&mut self, Caller { stream, port }: Caller, events: &EventLoop) {
        if !self.driver_ready {
            say(
                &stream,
                "ERR the guest is not listening: its driver is not ready\n",
            );
            return;
        }
        if self.connections.len() >= MOST_CONNECTIONS {
            say(&stream, "ERR too many connections\n");
            return;
        }
        let ports = self.free_ports(port);
        self.add(Connection::request(ports, stream), events);
    }

    /// A port on the host that makes a new pair with this one of the guest. There are more ports than connections.
    fn free_ports(&mut self, guest: u32) -> Ports {
        loop {
            let ports = Ports {
                host: self.next_port,
                guest,
            };
            self.next_port = FIRST_PORT | ((self.next_port + 1) % FIRST_PORT);
            if !self.by_ports.contains_key(&ports) && !self.lobby.listens(ports.host) {
                return ports;
            }
        }
    }

    /// Takes a packet of the guest; `payload` has all bytes after its header.
    pub fn take(&mut self, header: &Header, payload: &GuestBuffer<'_>, events: &EventLoop) {
        if header.src_cid != u64::from(self.guest_cid) {
            // Sent in a name that is not the guest's, so there is nobody to answer.
            return;
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let to_this_host = header.dst_cid == HOST_CID && header.kind == STREAM;
        let known = self.by_ports.get(&ports).copied().filter(|_| to_this_host);
        if let Some(id) = known {
            if let Some(connection) = self.connections.get_mut(&id) {
                let verdict = connection.take(header, payload);
                self.carry_out(id, verdict);
            }
        } else if header.op == Op::Reset as u16 {
            // Never answered: two sides would answer each other for ever.
        } else if !(to_this_host && header.op == Op::Request as u16 && self.grant(header, ports, events)) {
            self.replies.push_back(header.reset_reply());
        }
    }

    /// The guest wants a connection to a port of the host: gives it if somebody listens there.
    fn grant(&mut self, request: &Header, ports: Ports, events: &EventLoop) -> bool {
        if self.connections.len() >= MOST_CONNECTIONS || !self.lobby.listens(ports.host) {
            return false;
        }
        let Ok((ours, theirs)) = UnixStream::pair() else {
            return false;
        };
        if ours.set_nonblocking(true).is_err() || !self.lobby.hand_over(ports.host, &OwnedFd::from(theirs)) {
            return false;
        }
        self.add(Connection::accept(ports, ours, request), events)
    }

    fn add(&mut self, connection: Connection, events: &EventLoop) -> bool {
        let id = number(&mut self.next_id);
        if events.add(connection.stream().as_raw_fd(), id, EDGES).is_err() {
            connection.refuse("the machine can watch no more connections");
            return false;
        }
        self.by_ports.insert(connection.ports(), id);
        self.connections.insert(id, connection);
        self.carry_out(id, Verdict::Stay);
        true
    }

    /// Does with a connection what came of its last packet or event.
    fn carry_out(&mut self, id: u64, verdict: Verdict) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let ports = connection.ports();
        let over = matches!(verdict, Verdict::Close | Verdict::Reset);
        let deadline = connection.deadline().filter(|_| !over);
        if connection.watched_deadline != deadline {
            if let Some(before) = std::mem::replace(&mut connection.watched_deadline, deadline) {
                self.deadlines.remove(&(before, id));
            }
            if let Some(deadline) = deadline {
                self.deadlines.insert((deadline, id));
            }
        }
        if verdict == Verdict::Stay {
            if connection.wants_guest() && !connection.queued {
                connection.queued = true;
                self.ready.push_back(id);
            }
            return;
        }
        // The guest may have the ports of one that it has left in use again.
        if self.by_ports.get(&ports) == Some(&id) {
            self.by_ports.remove(&ports);
        }
        if over {
            self.connections.remove(&id);
        }
        if verdict == Verdict::Reset {
            self.replies.push_back(self.reset(ports));
        }
    }

    fn reset(&self, ports: Ports) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: u64::from(self.guest_cid),
            src_port: ports.host,
            dst_port: ports.guest,
            len: 0,
            kind: STREAM,
            op: Op::Reset as u16,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// Whether the guest has to take answers before more of its packets are taken.
    pub fn is_full(&self) -> bool {
        self.replies.len() >= MOST_REPLIES
    }

    /// Whether there may be a packet for the guest.
    pub fn wants_guest(&self) -> bool {
        !self.replies.is_empty() || !self.ready.is_empty()
    }

    /// Makes the next packet for the guest, with its payload in `room`; `None` when there is nothing after all.
    pub fn next_packet(&mut self, room: &GuestBuffer<'_>) -> Option<Header> {
        if let Some(reply) = self.replies.pop_front() {
            return Some(reply);
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            connection.queued = false;
            let packet = connection.next_packet(self.guest_cid, room);
            self.carry_out(id, Verdict::Stay);
            if packet.is_some() {
                return packet;
            }
        }
        None
    }

    /// When [`Muxer::expire`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let connections = self.deadlines.first().map(|(deadline, _)| *deadline);
        connections.into_iter().chain(self.lobby.deadline()).min()
    }

    /// Ends what has taken too long.
    pub fn expire(&mut self, now: Instant, events: &EventLoop) {
        let next_id = &mut self.next_id;
        self.lobby.expire(now, &mut || number(next_id), events);
        while let Some((deadline, id)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(connection) = self.connections.get_mut(&id) {
                let verdict = connection.expire();
                self.carry_out(id, verdict);
            }
        }
    }
}

fn number(next: &mut u64) -> u64 {
    let id = *next;
    *next += 1;
    id
}

#[cfg(test)]
mod tests;
