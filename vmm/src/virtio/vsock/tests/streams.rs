//! Bytes on their way: whole, in order, bounded, and fairly shared.

use super::*;

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
fn bytes_sent_with_the_command_belong_to_the_stream() {
    let mut guest = FakeGuest::new(PAGE);
    guest.listening.insert(5000, Program::Check);
    let mut stream = guest.host.open();
    stream.write_all(b"CONNECT 5000\n").unwrap();
    stream.write_all(&pattern(0, 1000)).unwrap();
    guest.run_until(|guest| guest.sockets.values().any(|socket| socket.consumed == 1000));
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
