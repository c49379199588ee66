//! What is spoken on the host's socket.

use super::*;

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
