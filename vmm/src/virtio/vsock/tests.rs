//! A guest and its host, connected.

#![allow(clippy::cast_possible_truncation, reason = "tests name small numbers")]

use std::{
    io::{IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    thread,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{
    credit::BUFFER_BYTES,
    fake_guest::{CID, FakeGuest, GUEST_BUFFER, HostSide, Program, answer, pattern},
    packet::{Header, NO_RECEIVE, NO_SEND, Op, Ports},
    *,
};
use crate::virtio::fake_driver::{FakeDriver, Noise, PATIENCE};

/// What Linux posts: a page, of which the header is a part.
const PAGE: u32 = 4096;

const HUNDRED_MB: u64 = 100 << 20;

/// What a unix socket holds at most, with room to spare for how the kernel counts.
const SOCKET_BYTES: u64 = 512 * 1024;

/// Takes a descriptor from a client that listens.
fn take_connection(listening: &UnixStream) -> UnixStream {
    let mut byte = [9];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        listening,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::empty(),
    )
    .unwrap();
    assert_eq!((received.bytes, byte), (1, [0]));
    let mut ends: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            ends.extend(descriptors);
        }
    }
    assert_eq!(ends.len(), 1);
    let stream = UnixStream::from(ends.remove(0));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A connection from the host to a program in the guest.
fn connected(guest: &mut FakeGuest, program: Program) -> (UnixStream, Ports) {
    guest.listening.insert(5000, program);
    let before = guest.sockets.len();
    let stream = guest.host.begin("CONNECT 5000");
    guest.run_until(|guest| guest.sockets.len() > before && guest.unsent() == 0);
    let (host, port) = *guest.sockets.keys().last().unwrap();
    assert_eq!(answer(&stream), format!("OK {host}"));
    (stream, Ports { host, guest: port })
}

fn read_pattern(stream: &mut UnixStream, total: u64, chunk: usize) {
    let mut done = 0;
    let mut bytes = vec![0; chunk];
    while done < total {
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "the stream ended after {done} of {total} bytes");
        assert!(
            bytes[..count] == pattern(done, count),
            "bytes from {done} on are not those sent"
        );
        done += count as u64;
    }
    assert_eq!(done, total);
}

#[test]
fn a_hundred_megabytes_reach_a_slow_host_and_no_more_wait_than_fit() {
    let mut guest = FakeGuest::new(PAGE);
    let (mut stream, ports) = connected(&mut guest, Program::Write { total: HUNDRED_MB });
    // Nobody reads: the guest runs out of credit and stands still.
    guest.run_until(|guest| guest.only().1.credit() == 0 && guest.unsent() == 0);
    guest.send(ports, Op::CreditRequest, 0, &[]);
    guest.run_until(|guest| guest.unsent() == 0);
    let sent = guest.only().1.sent;
    assert_eq!(guest.only().1.credit(), 0);
    assert!(sent >= u64::from(BUFFER_BYTES), "{sent} bytes");
    assert!(
        sent <= u64::from(BUFFER_BYTES) + SOCKET_BYTES,
        "{sent} bytes are held for a host that does not read"
    );
    // Odd small reads first, so that every kind of progress is met.
    let reader = thread::spawn(move || {
        let mut early = vec![0; 1 << 20];
        let mut done = 0;
        for size in (1..4000).cycle().step_by(7) {
            if done + size > early.len() {
                break;
            }
            done += stream.read(&mut early[done..done + size]).unwrap();
        }
        assert!(early[..done] == pattern(0, done));
        let mut rest = vec![0; 300_000];
        let mut at = done as u64;
        loop {
            let count = stream.read(&mut rest).unwrap();
            if count == 0 {
                return at;
            }
            assert!(rest[..count] == pattern(at, count));
            at += count as u64;
        }
    });
    guest.run_until(|guest| guest.only().1.ended & NO_SEND != 0 && guest.unsent() == 0);
    assert_eq!(reader.join().unwrap(), HUNDRED_MB);
}

#[test]
fn a_hundred_megabytes_reach_a_slow_guest_and_no_more_are_taken_than_it_has_room_for() {
    for buffer in [PAGE, 44 + 64 * 1024] {
        let mut guest = FakeGuest::new(buffer);
        let (mut stream, ports) = connected(&mut guest, Program::Idle);
        let total = if buffer == PAGE {
            HUNDRED_MB
        } else {
            HUNDRED_MB / 4
        };
        // Written without blocking first: it ends when all buffers on the way are full.
        stream.set_nonblocking(true).unwrap();
        let mut written: u64 = 0;
        loop {
            match stream.write(&pattern(written, 10_000)) {
                Ok(count) => written += count as u64,
                Err(_) if guest.only().1.received == u64::from(GUEST_BUFFER) => break,
                Err(_) => drop(guest.step()),
            }
        }
        guest.run_until(|guest| guest.unsent() == 0);
        assert_eq!(guest.only().1.received, u64::from(GUEST_BUFFER));
        assert!(
            written <= u64::from(GUEST_BUFFER) + SOCKET_BYTES,
            "{written} bytes were taken"
        );
        stream.set_nonblocking(false).unwrap();
        let writer = thread::spawn(move || {
            while written < total {
                let count = (total - written).min(100_000) as usize;
                stream.write_all(&pattern(written, count)).unwrap();
                written += count as u64;
            }
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        });
        guest.only().1.program = Program::Check;
        guest.send(ports, Op::CreditUpdate, 0, &[]);
        guest.run_until(|guest| guest.only().1.host_ended & NO_SEND != 0);
        assert_eq!(guest.only().1.consumed, total);
        assert_eq!(guest.only().1.host_ended, NO_SEND, "only one direction has ended");
        drop(writer.join().unwrap());
        guest.run_until(|guest| guest.only().1.host_ended == NO_SEND | NO_RECEIVE);
    }
}

#[test]
fn bytes_go_both_ways_at_once_and_each_direction_ends_by_itself() {
    let mut guest = FakeGuest::new(PAGE);
    let (stream, _) = connected(&mut guest, Program::Echo);
    let total = 20 << 20;
    let mut writing = stream.try_clone().unwrap();
    let mut reading = stream;
    let writer = thread::spawn(move || {
        let mut at = 0;
        while at < total {
            writing.write_all(&pattern(at, 65_536)).unwrap();
            at += 65_536;
        }
        writing.shutdown(Shutdown::Write).unwrap();
    });
    let reader = thread::spawn(move || {
        read_pattern(&mut reading, total, 50_000);
        assert_eq!(reading.read(&mut [0]).unwrap(), 0, "the guest's end is not seen");
        reading
    });
    // The guest reads the end, writes the rest back and then ends its own direction.
    guest.run_until(|guest| guest.only().1.ended & NO_SEND != 0 && guest.unsent() == 0);
    writer.join().unwrap();
    drop(reader.join().unwrap());
    guest.run_until(|guest| guest.only().1.host_ended == NO_SEND | NO_RECEIVE);
}

#[test]
fn the_host_may_send_after_the_guest_has_ended_its_direction() {
    let mut guest = FakeGuest::new(PAGE);
    let (mut stream, ports) = connected(&mut guest, Program::Check);
    guest.send(ports, Op::Data, 0, b"last words");
    guest.send(ports, Op::Shutdown, NO_SEND, &[]);
    guest.run_until(|guest| guest.unsent() == 0);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
    stream.write_all(&pattern(0, 100_000)).unwrap();
    guest.run_until(|guest| guest.only().1.consumed == 100_000);
    // Now the guest closes: what it is sent has no reader, and it is told that all is over.
    guest.send(ports, Op::Shutdown, NO_SEND | NO_RECEIVE, &[]);
    guest.run_until(|guest| guest.only().1.reset);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_guest_that_stops_reading_makes_writes_fail_and_still_sends() {
    let mut guest = FakeGuest::new(PAGE);
    let (mut stream, ports) = connected(&mut guest, Program::Idle);
    guest.send(ports, Op::Shutdown, NO_RECEIVE, &[]);
    guest.run_until(|guest| guest.unsent() == 0);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    guest.send(ports, Op::Data, 0, b"still here");
    let mut bytes = [0; 10];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
    drop(stream);
    guest.run_until(|guest| guest.only().1.host_ended == NO_SEND | NO_RECEIVE);
}

#[test]
fn what_a_client_wrote_before_it_closed_arrives_and_what_it_is_sent_is_refused() {
    let mut guest = FakeGuest::new(PAGE);
    let (mut stream, ports) = connected(&mut guest, Program::Idle);
    stream.write_all(&pattern(0, 150_000)).unwrap();
    drop(stream);
    // The guest learns at once that nobody reads, though it has read nothing itself.
    guest.run_until(|guest| guest.only().1.host_ended & NO_RECEIVE != 0);
    guest.send(ports, Op::Data, 0, b"into the void");
    guest.only().1.program = Program::Check;
    guest.run_until(|guest| guest.only().1.host_ended == NO_SEND | NO_RECEIVE);
    assert_eq!(guest.only().1.consumed, 150_000);
    // It confirms with a reset, after which the device knows nothing of the connection.
    guest.send(ports, Op::Reset, 0, &[]);
    guest.send(ports, Op::CreditUpdate, 0, &[]);
    guest.run_until(|guest| guest.only().1.reset);
}

#[test]
fn what_a_guest_sent_before_it_closed_or_reset_waits_for_a_slow_host() {
    for op in [Op::Shutdown, Op::Reset] {
        let mut guest = FakeGuest::new(PAGE);
        let (mut stream, ports) = connected(&mut guest, Program::Write { total: HUNDRED_MB });
        guest.run_until(|guest| guest.only().1.credit() == 0 && guest.unsent() == 0);
        guest.only().1.program = Program::Idle;
        let sent = guest.only().1.sent;
        guest.send(ports, op, NO_SEND | NO_RECEIVE, &[]);
        guest.run_until(|guest| guest.unsent() == 0);
        if op == Op::Shutdown {
            // Unconfirmed while bytes wait; then the guest's kernel gives up waiting.
            assert!(!guest.only().1.reset);
            guest.send(ports, Op::Reset, 0, &[]);
            guest.run_until(|guest| guest.unsent() == 0);
        }
        assert_eq!(stream.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        read_pattern(&mut stream, sent, 7_777);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn a_guest_that_closes_is_confirmed_when_all_has_arrived() {
    let mut guest = FakeGuest::new(PAGE);
    let (mut stream, ports) = connected(&mut guest, Program::Write { total: HUNDRED_MB });
    guest.run_until(|guest| guest.only().1.credit() == 0 && guest.unsent() == 0);
    guest.only().1.program = Program::Idle;
    let sent = guest.only().1.sent;
    guest.send(ports, Op::Shutdown, NO_SEND | NO_RECEIVE, &[]);
    let reader = thread::spawn(move || {
        read_pattern(&mut stream, sent, 7_777);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    });
    guest.run_until(|guest| guest.only().1.reset);
    reader.join().unwrap();
}

#[test]
fn a_client_with_bytes_unread_by_the_guest_sees_an_end_and_no_error() {
    let mut guest = FakeGuest::new(PAGE);
    let (mut stream, ports) = connected(&mut guest, Program::Idle);
    stream.write_all(&vec![7; 400_000]).unwrap();
    guest.run_until(|guest| guest.only().1.received == u64::from(GUEST_BUFFER));
    guest.send(ports, Op::Data, 0, b"enough");
    guest.send(ports, Op::Reset, 0, &[]);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "enough");
}

#[test]
fn a_thousand_streams_share_the_device_fairly() {
    let mut guest = FakeGuest::new(PAGE);
    // A bulk writer that never ends is not in their way.
    let (mut bulk, _) = connected(&mut guest, Program::Echo);
    let (mut bulk_back, bulk_end) = (bulk.try_clone().unwrap(), bulk.try_clone().unwrap());
    let writer = thread::spawn(move || {
        let mut at = 0;
        while bulk.write_all(&pattern(at, 65_536)).is_ok() {
            at += 65_536;
        }
    });
    let reader = thread::spawn(move || while bulk_back.read(&mut [0; 8192]).is_ok_and(|count| count > 0) {});
    guest.listening.insert(7, Program::Echo);
    let size = 50_000;
    let streams: Vec<UnixStream> = (0..1000).map(|_| guest.host.begin("CONNECT 7")).collect();
    let clients = thread::spawn(move || {
        for stream in &streams {
            let answer = answer(stream);
            assert!(answer.starts_with("OK "), "{answer}");
        }
        for mut stream in &streams {
            stream.write_all(&pattern(0, size)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }
        for mut stream in streams {
            read_pattern(&mut stream, size as u64, 65_536);
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
    });
    guest.run_until(|guest| {
        let done = |socket: &&fake_guest::Socket| socket.ended & NO_SEND != 0;
        guest.sockets.values().filter(done).count() == 1000
    });
    bulk_end.shutdown(Shutdown::Both).unwrap();
    guest.run_until(|guest| guest.sockets.values().all(|socket| socket.ended & NO_SEND != 0));
    for thread in [clients, writer, reader] {
        thread.join().unwrap();
    }
}

#[test]
fn a_connection_that_the_guest_refuses_is_an_error_for_the_client() {
    let mut guest = FakeGuest::new(PAGE);
    let stream = guest.host.begin("CONNECT 99");
    guest.run_until(|guest| guest.unsent() > 0);
    assert_eq!(
        answer(&stream),
        "ERR the guest refused the connection: nobody listens on that port"
    );
    assert_eq!((&stream).read(&mut [0]).unwrap(), 0);
}

#[test]
fn bytes_sent_with_the_command_belong_to_the_stream() {
    let mut guest = FakeGuest::new(PAGE);
    guest.listening.insert(5000, Program::Check);
    let mut stream = guest.host.open();
    stream.write_all(b"CONNECT 5000\n").unwrap();
    stream.write_all(&pattern(0, 1000)).unwrap();
    guest.run_until(|guest| guest.sockets.values().any(|socket| socket.consumed == 1000));
}

#[test]
fn clients_that_speak_wrongly_are_told_so() {
    let guest = FakeGuest::new(PAGE);
    for command in ["", "HELLO", "CONNECT", "CONNECT 4294967295", &"x".repeat(64)] {
        let (mut stream, answer) = guest.host.command(command);
        assert_eq!(
            answer, "ERR that is no command; say CONNECT <port> or LISTEN <port>",
            "to {command:?}"
        );
        let _ = stream.read(&mut [0]);
        assert!(
            stream.read(&mut [0]).is_ok_and(|count| count == 0),
            "after {command:?}"
        );
    }
}

#[test]
fn a_client_that_listens_is_handed_the_connections_of_the_guest() {
    let mut guest = FakeGuest::new(PAGE);
    let (listening, ok) = guest.host.command("LISTEN 1024");
    assert_eq!(ok, "OK 1024");
    assert_eq!(guest.host.command("LISTEN 1024").1, "ERR port in use");
    let ports = Ports {
        host: 1024,
        guest: 77,
    };
    guest.connect(ports, Program::Echo);
    let mut stream = take_connection(&listening);
    stream.write_all(&pattern(0, 10_000)).unwrap();
    guest.run_until(|guest| guest.only().1.sent == 10_000 && guest.unsent() == 0);
    read_pattern(&mut stream, 10_000, 4096);

    // Two at once, and one where nobody listens.
    guest.connect(
        Ports {
            host: 1024,
            guest: 78,
        },
        Program::Echo,
    );
    guest.connect(
        Ports {
            host: 1024,
            guest: 79,
        },
        Program::Echo,
    );
    guest.connect(
        Ports {
            host: 1025,
            guest: 79,
        },
        Program::Echo,
    );
    guest.run_until(|guest| {
        let socket = |host, port| &guest.sockets[&(host, port)];
        socket(1024, 78).established && socket(1024, 79).established && socket(1025, 79).reset
    });
    drop((take_connection(&listening), take_connection(&listening)));

    // Nobody listens when the client has gone; a connection that it was given goes on.
    drop(listening);
    for guest_port in 100.. {
        guest.connect(
            Ports {
                host: 1024,
                guest: guest_port,
            },
            Program::Idle,
        );
        let key = (1024, guest_port);
        guest.run_until(|guest| guest.sockets[&key].established || guest.sockets[&key].reset);
        if guest.sockets[&key].reset {
            break;
        }
    }
    stream.write_all(&pattern(10_000, 10)).unwrap();
    guest.run_until(|guest| guest.sockets[&(1024, 77)].sent == 10_010);
    assert_eq!(guest.host.command("LISTEN 1024").1, "OK 1024");
}

#[test]
fn a_client_that_listens_and_says_more_listens_no_more() {
    let guest = FakeGuest::new(PAGE);
    let (mut listening, _) = guest.host.command("LISTEN 1024");
    listening.write_all(b"x").unwrap();
    assert_eq!(listening.read(&mut [0]).unwrap_or(0), 0);
    assert_eq!(guest.host.command("LISTEN 1024").1, "OK 1024");
}

#[test]
fn connections_are_bounded_for_a_guest_whatever_its_client_takes() {
    for takes in [true, false] {
        let mut guest = FakeGuest::new(PAGE);
        let (listening, _) = guest.host.command("LISTEN 1");
        let taker = takes.then(|| {
            let listening = listening.try_clone().unwrap();
            thread::spawn(move || {
                let streams: Vec<UnixStream> = (0..muxer::MOST_CONNECTIONS)
                    .map(|_| take_connection(&listening))
                    .collect();
                streams.len()
            })
        });
        for port in 0..1200 {
            guest.connect(Ports { host: 1, guest: port }, Program::Idle);
            guest.run_until(|guest| {
                let socket = &guest.sockets[&(1, port)];
                // One at a time while the client keeps up, so that only the bound refuses.
                !takes || socket.established || socket.reset
            });
        }
        guest.run_until(|guest| {
            guest
                .sockets
                .values()
                .all(|socket| socket.established || socket.reset)
        });
        let given = guest.sockets.values().filter(|socket| socket.established).count();
        if let Some(taker) = taker {
            assert_eq!(given, muxer::MOST_CONNECTIONS);
            assert_eq!(taker.join().unwrap(), given);
        } else {
            assert!(
                (1..muxer::MOST_CONNECTIONS).contains(&given),
                "{given} connections wait for nobody"
            );
        }
    }
}

#[test]
fn before_there_is_a_driver_clients_listen_and_cannot_connect() {
    let (host, listener) = HostSide::new();
    let mut vsock = Vsock::new(CID, listener).unwrap();
    let refusal = "ERR the guest is not listening: its driver is not ready";
    assert_eq!(host.command("CONNECT 1").1, refusal);
    let (listening, ok) = host.command("LISTEN 1");
    assert_eq!(ok, "OK 1");
    let driver = FakeDriver::new(&vsock, 1 << 20);
    driver.activate(&mut vsock);
    assert_eq!(host.command("LISTEN 1").1, "ERR port in use");
    let connecting = host.begin("CONNECT 1");
    driver.interrupt.wait(|_| true);
    vsock.reset();
    let said = answer(&connecting);
    assert!(said == "ERR the guest has restarted" || said == refusal, "{said}");
    assert_eq!(host.command("CONNECT 1").1, refusal);
    assert_eq!(host.command("LISTEN 1").1, "ERR port in use");
    drop(listening);
}

#[test]
fn a_restart_of_the_guest_ends_connections() {
    let mut guest = FakeGuest::new(PAGE);
    let (mut stream, _) = connected(&mut guest, Program::Idle);
    guest.device.reset();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_paused_device_keeps_its_connections() {
    let mut guest = FakeGuest::new(PAGE);
    let (mut stream, _) = connected(&mut guest, Program::Echo);
    guest.device.pause();
    stream.write_all(&pattern(0, 5000)).unwrap();
    let waiting = guest.host.begin("LISTEN 9");
    guest.device.resume().unwrap();
    guest.run_until(|guest| guest.only().1.sent == 5000);
    read_pattern(&mut stream, 5000, 999);
    assert_eq!(answer(&waiting), "OK 9");
}

#[test]
fn a_restored_guest_hears_that_its_connections_are_gone_and_makes_new_ones() {
    let mut guest = FakeGuest::new(PAGE);
    let (_stream, ports) = connected(&mut guest, Program::Idle);
    guest.device.pause();
    let saved = guest.device.save().unwrap();

    let (host, listener) = HostSide::new();
    let mut vsock = Vsock::new(CID, listener).unwrap();
    vsock.restore(&saved, Some(guest.driver.activation())).unwrap();
    assert_eq!(vsock.save().unwrap(), saved);
    assert_eq!(
        guest.take_event(),
        None,
        "a restored device ran before it was resumed"
    );
    vsock.resume().unwrap();
    guest.device = vsock;
    guest.host = host;
    guest.run_until(|guest| guest.take_event() == Some(0));
    guest.send(ports, Op::CreditUpdate, 0, &[]);
    guest.run_until(|guest| guest.only().1.reset);
    guest.sockets.clear();
    let (mut stream, _) = connected(&mut guest, Program::Echo);
    stream.write_all(&pattern(0, 5000)).unwrap();
    guest.run_until(|guest| guest.only().1.sent == 5000);
    assert!(
        Vsock::new(CID, HostSide::new().1)
            .unwrap()
            .restore(&saved, None)
            .is_err()
    );
}

/// What is done to a header.
type Lie = fn(&mut Header);

/// What a guest does wrong in one connection ends that one, and the others do not notice.
#[test]
fn a_guest_that_lies_loses_the_connection_it_lies_about() {
    let mut guest = FakeGuest::new(PAGE);
    let (mut honest, honest_ports) = connected(&mut guest, Program::Echo);
    let lies: [(&str, Lie); 8] = [
        ("forwarding what was not sent", |header| header.fwd_cnt = 1),
        ("an unknown operation", |header| header.op = 8),
        ("operation 0", |header| header.op = 0),
        ("a second request", |header| header.op = Op::Request as u16),
        ("a response to nothing", |header| header.op = Op::Response as u16),
        ("more bytes than there are", |header| header.len = 101),
        ("all the bytes there can be", |header| header.len = u32::MAX),
        ("bytes after the end", |_| ()),
    ];
    for (what, lie) in lies {
        let (mut stream, ports) = connected(&mut guest, Program::Idle);
        if what == "bytes after the end" {
            guest.send(ports, Op::Shutdown, NO_SEND, &[]);
        }
        let mut header = guest.header(ports, Op::Data, 0, 100);
        lie(&mut header);
        guest.send_raw(&header, &[7; 100]);
        let key = (ports.host, ports.guest);
        guest.run_until(|guest| guest.sockets[&key].reset);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"", "after {what}");
        guest.sockets.remove(&key);
    }
    // A packet for another kind of socket is about no connection.
    let mut header = guest.header(honest_ports, Op::Data, 0, 0);
    header.kind = 2;
    guest.send_raw(&header, &[]);
    let key = (honest_ports.host, honest_ports.guest);
    guest.run_until(|guest| guest.sockets[&key].reset);
    guest.sockets.get_mut(&key).unwrap().reset = false;
    honest.write_all(&pattern(0, 1000)).unwrap();
    guest.run_until(|guest| guest.sockets[&(honest_ports.host, honest_ports.guest)].sent == 1000);
    read_pattern(&mut honest, 1000, 1000);
}

#[test]
fn a_guest_that_overruns_its_credit_loses_the_connection() {
    let mut guest = FakeGuest::new(PAGE);
    let (mut stream, ports) = connected(&mut guest, Program::Write { total: HUNDRED_MB });
    guest.run_until(|guest| guest.only().1.credit() == 0 && guest.unsent() == 0);
    guest.only().1.program = Program::Idle;
    guest.send(ports, Op::Data, 0, &[1]);
    guest.run_until(|guest| guest.only().1.reset);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
}

#[test]
fn packets_in_foreign_names_and_to_foreign_hosts_reach_nobody() {
    let mut guest = FakeGuest::new(PAGE);
    let (listening, _) = guest.host.command("LISTEN 1");
    let ports = Ports { host: 1, guest: 5 };
    let request = guest.header(ports, Op::Request, 0, 0);
    guest.send_raw(
        &Header {
            src_cid: 4,
            ..request
        },
        &[],
    );
    guest.send_raw(
        &Header {
            src_cid: u64::from(CID) | 1 << 32,
            ..request
        },
        &[],
    );
    guest.run_until(|guest| guest.unsent() == 0);
    assert!(guest.strays.is_empty());
    guest.send_raw(
        &Header {
            dst_cid: 7,
            ..request
        },
        &[],
    );
    guest.run_until(|guest| !guest.strays.is_empty());
    let reply = guest.strays[0];
    assert_eq!(
        (reply.op, reply.src_cid, reply.src_port, reply.dst_port),
        (Op::Reset as u16, 7, 1, 5)
    );
    listening.set_nonblocking(true).unwrap();
    assert_eq!(
        (&listening).read(&mut [0]).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
}

#[test]
fn a_guest_that_takes_no_packets_is_not_listened_to_without_end() {
    let mut guest = FakeGuest::new(PAGE);
    guest.takes = false;
    let stray = guest.header(Ports { host: 3, guest: 4 }, Op::CreditUpdate, 0, 0);
    // The buffers that it has given hold 128 answers, and the device holds 256.
    for _ in 0..128 + 256 {
        guest.send_raw(&stray, &[]);
    }
    guest.run_until(|guest| guest.unsent() == 0);
    for _ in 0..100 {
        guest.send_raw(&stray, &[]);
    }
    // Each answer to a client ends a turn of the device in which it could have taken more.
    for port in [1, 2, 3] {
        assert!(guest.host.command(&format!("LISTEN {port}")).1.starts_with("OK"));
    }
    guest.reclaim();
    assert_eq!(
        guest.unsent(),
        100,
        "packets were taken from a guest that takes none"
    );
    guest.takes = true;
    guest.run_until(|guest| guest.strays.len() == 128 + 256 + 100);
}

#[test]
fn noise_for_packets_is_survived() {
    let mut guest = FakeGuest::new(PAGE);
    let (listening, _) = guest.host.command("LISTEN 3");
    let (mut honest, honest_ports) = connected(&mut guest, Program::Echo);
    let key = (honest_ports.host, honest_ports.guest);
    let drain = thread::spawn(move || {
        let mut count = 0;
        listening.set_read_timeout(None).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut byte = [0];
        loop {
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                &listening,
                &mut [IoSliceMut::new(&mut byte)],
                &mut ancillary,
                RecvFlags::empty(),
            );
            if received.is_ok_and(|received| received.bytes == 1) {
                count += 1;
            } else {
                return count;
            }
        }
    });
    let mut noise = Noise::new(99);
    for _ in 0..30_000 {
        let one_of = |noise: &mut Noise, usual: &[u64]| match noise.below(8) {
            0 => noise.number(),
            _ => usual[noise.below(usual.len() as u64) as usize],
        };
        let length = noise.below(300) as usize;
        let header = Header {
            src_cid: one_of(&mut noise, &[3]),
            dst_cid: one_of(&mut noise, &[2]),
            src_port: noise.below(4) as u32,
            dst_port: one_of(&mut noise, &[3, 3, 3, 4]) as u32,
            len: one_of(&mut noise, &[0, length as u64]) as u32,
            kind: one_of(&mut noise, &[1]) as u16,
            op: one_of(&mut noise, &[1, 2, 3, 4, 5, 5, 5, 6, 7]) as u16,
            flags: one_of(&mut noise, &[0, 1, 2, 3]) as u32,
            buf_alloc: one_of(&mut noise, &[0, 65_536]) as u32,
            fwd_cnt: one_of(&mut noise, &[0]) as u32,
        };
        let payload = noise.bytes(length);
        guest.send_raw(&header, &payload);
        guest.step();
    }
    honest.write_all(&pattern(0, 10_000)).unwrap();
    guest.run_until(|guest| guest.sockets[&key].sent == 10_000);
    read_pattern(&mut honest, 10_000, 1000);
    drop(guest);
    let given = drain.join().unwrap();
    assert!(given > 50, "{given} connections came of the noise; it is no test");
}

#[test]
fn a_buffer_too_small_for_a_packet_ends_the_device() {
    let (host, listener) = HostSide::new();
    let mut vsock = Vsock::new(CID, listener).unwrap();
    let mut driver = FakeDriver::new(&vsock, 1 << 20);
    let buffer = driver.allocate(44);
    driver.queues[0].offer(&[crate::virtio::fake_driver::Buffer::Writable(buffer, 44)]);
    driver.activate(&mut vsock);
    let _stream = host.begin("CONNECT 1");
    let reason = driver.interrupt.wait_reset();
    assert!(reason.contains("no room for a header and a byte"), "{reason}");
    vsock.reset();
    assert_eq!(host.command("LISTEN 1").1, "OK 1");
}

#[test]
fn a_device_needs_a_guests_id_and_a_listening_socket() {
    for cid in [0, 1, 2, u32::MAX] {
        assert!(matches!(
            Vsock::new(cid, HostSide::new().1),
            Err(VsockError::Cid(_))
        ));
    }
    let (stream, _other) = UnixStream::pair().unwrap();
    let not_listening = UnixListener::from(OwnedFd::from(stream));
    assert!(matches!(Vsock::new(3, not_listening), Err(VsockError::Socket(_))));
    let (_host, listener) = HostSide::new();
    let vsock = Vsock::new(0x1234_5678, listener).unwrap();
    let mut space = [9; 12];
    vsock.read_config(0, &mut space);
    assert_eq!(space, [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 0, 0]);
}
