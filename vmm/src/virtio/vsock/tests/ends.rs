//! How connections end: each direction by itself, with everything sent before, and with the guest.

use super::*;

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
    let mut writing = stream.try_clone().unwrap();
    let writer = thread::spawn(move || writing.write_all(&vec![7; 400_000]));
    guest.run_until(|guest| guest.only().1.received == u64::from(GUEST_BUFFER));
    writer.join().unwrap().unwrap();
    guest.send(ports, Op::Data, 0, b"enough");
    guest.send(ports, Op::Reset, 0, &[]);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "enough");
}

#[test]
fn a_restart_of_the_guest_ends_connections() {
    let mut guest = FakeGuest::new(PAGE);
    let (mut stream, _) = connected(&mut guest, Program::Idle);
    guest.device.reset();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
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
