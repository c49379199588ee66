//! A pod's network between a machine and its host: a tap in a network namespace of the test's own.

#![allow(
    unsafe_code,
    reason = "namespaces and taps are made with system calls that nothing wraps"
)]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
    thread,
    time::Duration,
};

use bulkhead_proto::agent;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::sleep,
};

use crate::{
    guest::{self, SharedGuest, client},
    host::{Host, container, shell},
    machine,
    network::route,
};

const MAC: &str = "02:00:00:00:00:78";

/// What goes each way over each connection.
const BYTES: usize = 1 << 20;

/// The host's side: an address of each family on the link, and one of each behind it.
const HOST: [&str; 6] = [
    "address add 10.78.0.1/24 dev tap0",
    "address add fd78::1/64 dev tap0 nodad",
    "address add 10.99.0.1/32 dev lo",
    "address add fd99::1/128 dev lo",
    "link set lo up",
    "link set tap0 up",
];

/// Runs the test on a thread with a network namespace of its own, which what it starts is in, too.
pub fn test() {
    let run = || {
        // SAFETY: it changes the network namespace of this thread only, which ends with the test.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(unshared, 0, "{}", io::Error::last_os_error());
        guest::test(start, |guest| Box::pin(a_container_speaks_with_hosts(guest)));
    };
    thread::spawn(run).join().unwrap();
}

async fn start() -> SharedGuest {
    let tap = open_tap();
    for arguments in HOST {
        let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }
    machine::start_on_tap(tap, MAC).await
}

/// Makes the interface "tap0", which is there as long as somebody has it open.
fn open_tap() -> OwnedFd {
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags.try_into().unwrap();
    // SAFETY: TUNSETIFF reads one `ifreq`, which lives through the call.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    tap.into()
}

async fn a_container_speaks_with_hosts(guest: SharedGuest) {
    let request = agent::ConfigureNetworkRequest {
        interfaces: vec![agent::Interface {
            device_mac: MAC.to_owned(),
            name: "eth0".to_owned(),
            mac: "02:00:00:00:00:79".to_owned(),
            mtu: 1400,
            addresses: vec!["10.78.0.2/24".to_owned(), "fd78::2/64".to_owned()],
        }],
        routes: vec![
            route("0.0.0.0/0", "10.78.0.1", "eth0"),
            route("::/0", "fd78::1", "eth0"),
        ],
        neighbors: Vec::new(),
    };
    client(&guest).await.configure_network(request).await.unwrap();
    let host = Host::new(guest).await;

    let server = container("server", shell("exec nc -ll -p 7 -e cat"));
    host.start_idle(server).await;
    for address in ["10.78.0.2:7", "[fd78::2]:7"] {
        exchange(address).await;
    }

    // Not on the link, so by way of the default routes.
    let listener = TcpListener::bind("[::]:9").await.unwrap();
    for address in ["10.99.0.1", "fd99::1"] {
        let script = format!("head -c {BYTES} /dev/zero | nc {address} 9");
        let received = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            bytes.len()
        };
        let (received, ended) = tokio::join!(received, host.sh(&script));
        assert_eq!(received, BYTES, "to {address}: {ended:?}");
    }
    host.remove("server").await.unwrap();
}

/// Sends bytes to the container and gets the same back, in both directions at the same time.
async fn exchange(address: &str) {
    let stream = loop {
        // Refused until the server listens.
        match TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{address}: {error}"),
        }
    };
    let numbers = (0_u32..).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes());
    let sent: Vec<u8> = numbers.take(BYTES).collect();
    let (mut reading, mut writing) = stream.into_split();
    let mut received = Vec::new();
    let (written, read) = tokio::join!(
        async {
            writing.write_all(&sent).await?;
            writing.shutdown().await
        },
        reading.read_to_end(&mut received)
    );
    written.unwrap();
    read.unwrap();
    assert_eq!(received.len(), sent.len(), "with {address}");
    assert!(received == sent, "other bytes came back from {address}");
}
