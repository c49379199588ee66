//! One connection: a stream on the host's side, a pair of ports on the guest's, and what is between them.
//!
//! A connection reacts to packets of the guest and to readiness of the stream, and makes packets for the guest when it
//! is asked for one. Each reaction ends in a [`Verdict`], which the muxer carries out. The stream is watched for edges,
//! so `readable` and `writable` stand until the kernel says otherwise.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvFlags, Shutdown, recv, shutdown},
};
use vmm_sys_util::epoll::EventSet;

use super::{
    backlog::Backlog,
    credit::{BUFFER_BYTES, FromGuest, ToGuest},
    lobby::say,
    packet::{HOST_CID, Header, NO_RECEIVE, NO_SEND, Op, PAYLOAD_BYTES, Ports, STREAM},
};
use crate::virtio::{buffer::GuestBuffer, scatter};

/// How long the guest may take to answer a request. Its kernel answers, whether or not a program accepts.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// How long the guest may take to confirm the end of a connection.
pub const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// A connection.
#[derive(Debug)]
pub struct Connection {
    ports: Ports,
    stream: UnixStream,
    phase: Phase,
    to_guest: ToGuest,
    from_guest: FromGuest,
    /// What the guest has sent and the stream has not taken.
    backlog: Backlog,
    readable: bool,
    writable: bool,
    /// The host's side has ended: nothing more will come of it, or it takes nothing more. Bits of a shutdown packet.
    host_ended: u32,
    /// What of that the guest has been told.
    host_end_told: u32,
    /// What the guest has said of its own end.
    guest_ended: u32,
    /// Whether the guest was asked for credit since it last gave some.
    credit_asked: bool,
    deadline: Option<Instant>,
    /// Whether it is in the muxer's list of those that have something for the guest.
    pub queued: bool,
    /// The deadline by which the muxer watches it.
    pub watched_deadline: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host's side asked for it and waits.
    Requested { sent: bool },
    /// The guest asked for it and is to be answered.
    Accepted,
    /// Both have it.
    Open,
    /// The guest has left it; what it sent before is still going to the host's side.
    Left,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Stay,
    /// The guest's side of it is over; its ports are free.
    Leave,
    /// It is over.
    Close,
    /// It is over, and the guest is to be told so.
    Reset,
}

impl Connection {
    /// A connection that the host's side asks for.
    pub fn request(ports: Ports, stream: UnixStream) -> Self {
        let mut connection = Self::new(ports, stream, Phase::Requested { sent: false });
        connection.deadline = Some(Instant::now() + ANSWER_PATIENCE);
        connection
    }

    /// A connection that the guest has asked for with this packet, and that is granted.
    pub fn accept(ports: Ports, stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(ports, stream, Phase::Accepted);
        // Nothing was sent that a first count could lie about.
        let _ = connection.to_guest.learn(request.buf_alloc, 0);
        connection
    }

    fn new(ports: Ports, stream: UnixStream, phase: Phase) -> Self {
        Self {
            ports,
            stream,
            phase,
            to_guest: ToGuest::default(),
            from_guest: FromGuest::default(),
            backlog: Backlog::default(),
            readable: true,
            writable: true,
            host_ended: 0,
            host_end_told: 0,
            guest_ended: 0,
            credit_asked: false,
            deadline: None,
            queued: false,
            watched_deadline: None,
        }
    }

    /// Its two ends.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Its stream, to be watched.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// When [`Connection::expire`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Takes a packet of the guest. `payload` has all the bytes that the chain has after the header.
    pub fn take(&mut self, header: &Header, payload: &GuestBuffer<'_>) -> Verdict {
        let verdict = match Op::from_number(header.op) {
            Some(Op::Reset) => self.reset_by_guest(),
            Some(op) => self.take_op(op, header, payload),
            None => Verdict::Reset,
        };
        if verdict == Verdict::Reset {
            self.refuse("the guest does not keep to the protocol");
        }
        verdict
    }

    fn take_op(&mut self, op: Op, header: &Header, payload: &GuestBuffer<'_>) -> Verdict {
        if self.to_guest.learn(header.buf_alloc, header.fwd_cnt).is_err() {
            return Verdict::Reset;
        }
        self.credit_asked &= self.to_guest.room() == 0;
        match (self.phase, op) {
            (Phase::Requested { sent: true }, Op::Response) => self.granted(),
            (Phase::Open, Op::Data) => self.take_data(payload, header.len),
            (Phase::Open | Phase::Accepted, Op::Shutdown) => self.take_shutdown(header.flags),
            (Phase::Open | Phase::Accepted, Op::CreditUpdate) => Verdict::Stay,
            (Phase::Open | Phase::Accepted, Op::CreditRequest) => {
                self.from_guest.ask();
                Verdict::Stay
            }
            _ => Verdict::Reset,
        }
    }

    /// The guest refuses the connection or ends it at once. What it has sent before still arrives.
    fn reset_by_guest(&mut self) -> Verdict {
        self.refuse("the guest refused the connection: nobody listens on that port");
        if self.backlog.is_empty() {
            return Verdict::Close;
        }
        self.phase = Phase::Left;
        self.deadline = None;
        self.end_host_send();
        Verdict::Leave
    }

    fn granted(&mut self) -> Verdict {
        self.phase = Phase::Open;
        self.deadline = None;
        if say(&self.stream, &format!("OK {}\n", self.ports.host)) {
            Verdict::Stay
        } else {
            Verdict::Reset
        }
    }

    fn take_data(&mut self, payload: &GuestBuffer<'_>, len: u32) -> Verdict {
        let whole = payload.len() >= len as usize;
        if !whole || self.guest_ended & NO_SEND != 0 || self.from_guest.receive(len).is_err() {
            return Verdict::Reset;
        }
        let payload = payload.part(0, len as usize);
        let mut done = 0;
        if self.backlog.is_empty() && self.writable && self.host_ended & NO_RECEIVE == 0 && len > 0 {
            match scatter::send(self.stream.as_fd(), &payload) {
                Ok(count) => done = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.host_ended |= NO_RECEIVE,
            }
            // It took a part at most when its buffer is full: the next edge says when it is not.
            self.writable = done == payload.len();
        }
        if self.host_ended & NO_RECEIVE != 0 {
            // Nobody will read it. It leaves the buffer all the same, so that the guest's end is not held up.
            done = payload.len();
        }
        self.forward(done);
        if done < payload.len() {
            self.backlog.push(&payload.part(done, usize::MAX));
        }
        Verdict::Stay
    }

    fn take_shutdown(&mut self, flags: u32) -> Verdict {
        let before = self.guest_ended;
        self.guest_ended |= flags & (NO_RECEIVE | NO_SEND);
        if self.guest_ended & !before & NO_RECEIVE != 0 {
            self.end_host_send();
        }
        if self.guest_ended & !before & NO_SEND != 0 && self.backlog.is_empty() {
            self.end_host_receive();
        }
        self.finished()
    }

    /// Whether the guest has said that it is done with both directions, and has been heard to the end.
    fn finished(&self) -> Verdict {
        if self.guest_ended == NO_RECEIVE | NO_SEND && self.backlog.is_empty() {
            Verdict::Reset
        } else {
            Verdict::Stay
        }
    }

    /// The host's side may write no more: the guest receives no more.
    fn end_host_send(&self) {
        // It fails only when the other end is gone, and then so is what it could write.
        let _ = shutdown(&self.stream, Shutdown::Read);
    }

    /// The host's side reads an end after what was sent before: the guest sends no more.
    fn end_host_receive(&self) {
        if self.backlog.is_empty() {
            let _ = shutdown(&self.stream, Shutdown::Write);
        }
    }

    /// Something has happened to the stream.
    pub fn host_event(&mut self, readiness: EventSet) -> Verdict {
        if readiness.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR) {
            self.readable = true;
        }
        if readiness.contains(EventSet::OUT) {
            self.writable = true;
        }
        if readiness.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            // Both directions are closed. If it is not this side that has closed the one to the host, the host has.
            self.host_ended |= NO_RECEIVE;
            if let Phase::Requested { sent } = self.phase {
                return if sent { Verdict::Reset } else { Verdict::Close };
            }
            if self.guest_ended & NO_RECEIVE != 0 {
                // Nobody looks for the end of what is not read.
                self.host_ended |= NO_SEND;
            }
        }
        self.flush()
    }

    /// Gives the stream what waits for it.
    fn flush(&mut self) -> Verdict {
        if self.backlog.is_empty() {
            return Verdict::Stay;
        }
        if self.writable && self.host_ended & NO_RECEIVE == 0 {
            match self.backlog.write_to(self.stream.as_fd()) {
                Ok(count) => self.forward(count),
                Err(_) => self.host_ended |= NO_RECEIVE,
            }
            self.writable = self.backlog.is_empty();
        }
        if self.host_ended & NO_RECEIVE != 0 {
            let lost = self.backlog.clear();
            self.forward(lost);
        }
        if !self.backlog.is_empty() {
            return Verdict::Stay;
        }
        if self.phase == Phase::Left {
            return Verdict::Close;
        }
        if self.guest_ended & NO_SEND != 0 {
            self.end_host_receive();
        }
        self.finished()
    }

    fn forward(&mut self, bytes: usize) {
        // No more than the credit, which is far below 2^32.
        self.from_guest.forward(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Whether there may be something for the guest.
    pub fn wants_guest(&self) -> bool {
        match self.phase {
            Phase::Requested { sent } => !sent,
            Phase::Accepted => true,
            Phase::Left => false,
            Phase::Open => {
                (self.may_read() && (self.to_guest.room() > 0 || !self.credit_asked))
                    || self.host_ended != self.host_end_told
                    || self.from_guest.should_tell()
            }
        }
    }

    fn may_read(&self) -> bool {
        self.readable && self.host_ended & NO_SEND == 0 && self.guest_ended & NO_RECEIVE == 0
    }

    /// Makes the next packet for the guest, with its payload in `room`; `None` when there is nothing after all.
    pub fn next_packet(&mut self, guest_cid: u32, room: &GuestBuffer<'_>) -> Option<Header> {
        let (op, len, flags) = match self.phase {
            Phase::Requested { sent: false } => {
                self.phase = Phase::Requested { sent: true };
                (Op::Request, 0, 0)
            }
            Phase::Accepted => {
                self.phase = Phase::Open;
                (Op::Response, 0, 0)
            }
            Phase::Open => self.next_of_open(room)?,
            Phase::Requested { sent: true } | Phase::Left => return None,
        };
        Some(Header {
            src_cid: HOST_CID,
            dst_cid: u64::from(guest_cid),
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            kind: STREAM,
            op: op as u16,
            flags,
            buf_alloc: BUFFER_BYTES,
            fwd_cnt: self.from_guest.tell(),
        })
    }

    fn next_of_open(&mut self, room: &GuestBuffer<'_>) -> Option<(Op, u32, u32)> {
        if self.may_read() {
            let credit = self.to_guest.room() as usize;
            if credit > 0 {
                let len = self.read_host(&room.part(0, credit.min(PAYLOAD_BYTES)));
                if len > 0 {
                    self.to_guest.send(len);
                    return Some((Op::Data, len, 0));
                }
            } else if !self.credit_asked {
                self.credit_asked = true;
                return Some((Op::CreditRequest, 0, 0));
            }
        }
        if self.host_ended != self.host_end_told {
            self.host_end_told = self.host_ended;
            if self.host_end_told == NO_RECEIVE | NO_SEND {
                self.deadline = Some(Instant::now() + CLOSE_PATIENCE);
            }
            return Some((Op::Shutdown, 0, self.host_end_told));
        }
        self.from_guest.should_tell().then_some((Op::CreditUpdate, 0, 0))
    }

    /// Reads from the host's side into guest memory; 0 when there is nothing now, or nothing more.
    fn read_host(&mut self, room: &GuestBuffer<'_>) -> u32 {
        match scatter::read(self.stream.as_fd(), room) {
            // An end that is read before its event has come: were a client that is gone told as one that merely sends
            // no more, the guest would take it for a deliberate end of what was sent.
            Ok(0) if is_hung_up(&self.stream) => self.host_ended |= NO_SEND | NO_RECEIVE,
            Ok(0) => self.host_ended |= NO_SEND,
            Ok(count) => return u32::try_from(count).unwrap_or(u32::MAX),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(_) => self.host_ended |= NO_SEND | NO_RECEIVE,
        }
        0
    }

    /// Its deadline has come.
    pub fn expire(&mut self) -> Verdict {
        match self.phase {
            Phase::Requested { sent } => {
                self.refuse("the guest did not answer in time");
                if sent { Verdict::Reset } else { Verdict::Close }
            }
            Phase::Accepted | Phase::Open => Verdict::Reset,
            Phase::Left => Verdict::Close,
        }
    }

    /// Says to a client that still waits for its connection why there will be none.
    pub fn refuse(&self, reason: &str) {
        if matches!(self.phase, Phase::Requested { .. }) {
            say(&self.stream, &format!("ERR {reason}\n"));
        }
    }
}

/// Whether both directions of the stream are closed. The kernel closes them in one step when the other end is closed.
fn is_hung_up(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default())).is_ok() && polled[0].revents().contains(PollFlags::HUP)
}

impl Drop for Connection {
    /// Ends the stream in order: a socket that is closed with bytes unread is an error at its other end instead of an
    /// end, so what the client wrote to nobody is taken away first.
    fn drop(&mut self) {
        let _ = shutdown(&self.stream, Shutdown::Both);
        let mut waste = [0; 4096];
        // No more can come than the socket holds, for the other end can write no more.
        while matches!(recv(&self.stream, &mut waste, RecvFlags::DONTWAIT), Ok((_, 1..))) {}
    }
}
