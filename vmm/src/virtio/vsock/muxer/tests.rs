//! A muxer that is driven by hand, packet by packet and event by event.

use std::{
    io::{Read, Write},
    time::Duration,
};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{
    super::{
        connection::{ANSWER_PATIENCE, CLOSE_PATIENCE},
        fake_guest::{CID, HostSide, answer},
        lobby::COMMAND_PATIENCE,
        packet::{NO_RECEIVE, NO_SEND},
    },
    *,
};

/// A muxer that is driven by hand, with room for its packets.
struct Bench {
    host: HostSide,
    muxer: Muxer,
    events: EventLoop,
    memory: GuestMemoryMmap<()>,
}

impl Bench {
    fn new() -> Self {
        let (host, listener) = HostSide::new();
        listener.set_nonblocking(true).unwrap();
        let mut muxer = Muxer::new(CID, Arc::new(listener));
        muxer.start_guest();
        Self {
            host,
            muxer,
            events: EventLoop::new().unwrap(),
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 65_536)]).unwrap(),
        }
    }

    /// A client that is let in and heard.
    fn client(&mut self, command: &str) -> UnixStream {
        let stream = self.host.begin(command);
        let id = self.muxer.next_id;
        self.muxer.accept(&self.events);
        self.muxer.host_event(id, EventSet::IN, &self.events);
        stream
    }

    fn packet(&mut self) -> Option<Header> {
        let memory = self.memory.clone();
        let mut buffer = GuestBuffer::default();
        buffer.push(memory.get_slice(GuestAddress(0), 65_536).unwrap());
        self.muxer.next_packet(&buffer)
    }

    fn take(&mut self, header: Header) {
        let memory = self.memory.clone();
        let mut buffer = GuestBuffer::default();
        buffer.push(memory.get_slice(GuestAddress(0), 1).unwrap());
        self.muxer.take(&header, &buffer, &self.events);
    }

    fn expire_after(&mut self, time: Duration) {
        let deadline = self.muxer.deadline().expect("nothing is waited for");
        assert!(deadline <= Instant::now() + time);
        self.muxer.expire(
            deadline.checked_sub(Duration::from_millis(1)).unwrap(),
            &self.events,
        );
        assert!(
            self.muxer.deadline() == Some(deadline),
            "it did not wait until the deadline"
        );
        self.muxer.expire(deadline, &self.events);
    }
}

/// What the guest says to a packet of the host.
fn say(to: &Header, op: Op) -> Header {
    Header {
        op: op as u16,
        buf_alloc: 1000,
        ..to.reset_reply()
    }
}

#[test]
fn a_client_that_says_nothing_is_sent_away() {
    let mut bench = Bench::new();
    let stream = bench.host.open();
    bench.muxer.accept(&bench.events);
    bench.expire_after(COMMAND_PATIENCE);
    assert_eq!(answer(&stream), "ERR no command came in time");
    assert_eq!(bench.muxer.deadline(), None);
}

#[test]
fn a_guest_that_does_not_answer_costs_the_client_a_bounded_time() {
    let mut bench = Bench::new();
    let stream = bench.client("CONNECT 7");
    let request = bench.packet().unwrap();
    assert_eq!((request.op, request.dst_port), (Op::Request as u16, 7));
    bench.expire_after(ANSWER_PATIENCE);
    assert_eq!(answer(&stream), "ERR the guest did not answer in time");
    let reset = bench.packet().unwrap();
    assert_eq!((reset.op, reset.src_port), (Op::Reset as u16, request.src_port));
    // An answer that comes after all is for a connection that is not there.
    bench.take(say(&request, Op::Response));
    assert_eq!(bench.packet().unwrap().op, Op::Reset as u16);
    assert_eq!((bench.packet(), bench.muxer.deadline()), (None, None));
}

#[test]
fn a_request_that_was_never_sent_is_not_reset() {
    let mut bench = Bench::new();
    let stream = bench.client("CONNECT 7");
    drop(stream);
    let id = bench.muxer.next_id - 1;
    let gone = EventSet::IN | EventSet::HANG_UP;
    bench.muxer.host_event(id, gone, &bench.events);
    assert_eq!((bench.packet(), bench.muxer.deadline()), (None, None));
    assert!(bench.muxer.connections.is_empty());
}

#[test]
fn a_connection_whose_end_the_guest_does_not_confirm_ends_all_the_same() {
    let mut bench = Bench::new();
    let stream = bench.client("CONNECT 7");
    let request = bench.packet().unwrap();
    bench.take(say(&request, Op::Response));
    assert_eq!(answer(&stream), format!("OK {}", request.src_port));
    assert_eq!(bench.muxer.deadline(), None, "an open connection lasts");
    drop(stream);
    let id = bench.muxer.next_id - 1;
    bench
        .muxer
        .host_event(id, EventSet::IN | EventSet::HANG_UP, &bench.events);
    let end = bench.packet().unwrap();
    assert_eq!((end.op, end.flags), (Op::Shutdown as u16, NO_SEND | NO_RECEIVE));
    assert_eq!(bench.packet(), None);
    bench.expire_after(CLOSE_PATIENCE);
    assert_eq!(bench.packet().unwrap().op, Op::Reset as u16);
    assert!(bench.muxer.connections.is_empty() && bench.muxer.by_ports.is_empty());
}

#[test]
fn a_client_that_closes_is_told_at_once_and_apart_from_one_that_ends_its_sending() {
    // Neither end's event has been handled: the guest may be asked for room, and the end be read, before that.
    let mut bench = Bench::new();
    let closed = bench.client("CONNECT 7");
    let ended = bench.client("CONNECT 8");
    for _ in 0..2 {
        let request = bench.packet().unwrap();
        bench.take(say(&request, Op::Response));
    }
    assert!(answer(&closed).starts_with("OK ") && answer(&ended).starts_with("OK "));
    (&closed).write_all(b"last words").unwrap();
    drop(closed);
    ended.shutdown(std::net::Shutdown::Write).unwrap();
    let mut told = Vec::new();
    while let Some(packet) = bench.packet() {
        told.push((packet.dst_port, packet.op, packet.len, packet.flags));
    }
    told.sort_unstable();
    let (end, data) = (Op::Shutdown as u16, Op::Data as u16);
    assert_eq!(
        told,
        [
            (7, end, 0, NO_SEND | NO_RECEIVE),
            (7, data, 10, 0),
            (8, end, 0, NO_SEND)
        ]
    );
    drop(ended);
    let id = bench.muxer.next_id - 1;
    let gone = EventSet::IN | EventSet::HANG_UP;
    bench.muxer.host_event(id, gone, &bench.events);
    let end = bench.packet().unwrap();
    assert_eq!((end.dst_port, end.flags), (8, NO_SEND | NO_RECEIVE));
}

#[test]
fn connections_take_turns_packet_by_packet() {
    let mut bench = Bench::new();
    let clients = [(); 3].map(|()| bench.client("CONNECT 7"));
    let requests = [(); 3].map(|()| bench.packet().unwrap());
    for (request, mut stream) in requests.iter().zip(&clients) {
        bench.take(say(request, Op::Response));
        answer(stream);
        Write::write_all(&mut stream, &[7; 500]).unwrap();
    }
    let memory = bench.memory.clone();
    let mut room = GuestBuffer::default();
    room.push(memory.get_slice(GuestAddress(0), 100).unwrap());
    let mut ports = Vec::new();
    while let Some(packet) = bench.muxer.next_packet(&room) {
        assert_eq!((packet.op, packet.len), (Op::Data as u16, 100));
        ports.push(packet.src_port);
    }
    assert_eq!(ports.len(), 15);
    let turn: Vec<u32> = requests.iter().map(|request| request.src_port).collect();
    assert!(ports.chunks(3).all(|chunk| chunk == turn), "{ports:?}");
}

#[test]
fn a_guest_that_gives_credit_only_when_asked_is_asked_each_time() {
    let mut bench = Bench::new();
    let mut stream = bench.client("CONNECT 7");
    let request = bench.packet().unwrap();
    bench.take(say(&request, Op::Response));
    answer(&stream);
    Write::write_all(&mut stream, &[7; 2500]).unwrap();
    let mut update = say(&request, Op::CreditUpdate);
    for length in [1000, 1000, 500] {
        let packet = bench.packet().unwrap();
        assert_eq!((packet.op, packet.len), (Op::Data as u16, length));
        if length == 1000 {
            assert_eq!(bench.packet().unwrap().op, Op::CreditRequest as u16);
        }
        assert_eq!(bench.packet(), None);
        update.fwd_cnt += length;
        bench.take(update);
    }
}

#[test]
fn ports_of_the_host_are_never_given_twice_at_once() {
    let mut bench = Bench::new();
    bench.muxer.next_port = u32::MAX / 2;
    let clients = [(); 4].map(|()| bench.client("CONNECT 7"));
    let mut ports: Vec<u32> = (0..4).map(|_| bench.packet().unwrap().src_port).collect();
    assert!(
        ports
            .iter()
            .all(|port| (FIRST_PORT..2 * FIRST_PORT).contains(port)),
        "{ports:?}"
    );
    ports.dedup();
    assert_eq!(ports.len(), 4);
    bench.muxer.next_port = ports[0];
    let client = bench.client("CONNECT 7");
    let port = bench.packet().unwrap().src_port;
    assert!(!ports.contains(&port));
    drop((clients, client));
}

#[test]
fn a_guest_that_goes_takes_all_connections_with_it() {
    let mut bench = Bench::new();
    let (mut open, waiting) = (bench.client("CONNECT 7"), bench.client("CONNECT 8"));
    let request = bench.packet().unwrap();
    bench.take(say(&request, Op::Response));
    answer(&open);
    bench.muxer.lose_guest();
    assert_eq!(open.read(&mut [0]).unwrap(), 0);
    assert_eq!(answer(&waiting), "ERR the guest has restarted");
    assert_eq!((bench.packet(), bench.muxer.deadline()), (None, None));
}
