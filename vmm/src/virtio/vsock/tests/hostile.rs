//! Guests that do not keep to the protocol.

use super::*;

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
    // Each buffer that it has given holds an answer, and the device holds 256.
    let held = guest.buffers_given() + 256;
    for _ in 0..held {
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
    guest.run_until(|guest| guest.strays.len() == held + 100);
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
