//! A network interface: a guest and its host at the two ends of a tap.

#![allow(
    unsafe_code,
    reason = "namespaces and taps are made with system calls that nothing wraps"
)]

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::Command,
    thread,
    time::Duration,
};

use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::json;

use crate::{linux, running::Running};

/// What goes each way over each connection.
const BYTES: usize = 4 << 20;

/// Longest silence of the other end: an emulated host is slow and may be busy.
const PATIENCE: Duration = Duration::from_mins(2);

/// What a guest does first, to which an interface is added while it runs.
const LOOK_FOR_ADDED: &str = "
say ready
until [ -e /sys/class/net/eth0 ]; do
    echo 1 > /sys/bus/pci/rescan
    sleep 0.2
done
";

/// The guest's part: it gets two addresses, sends to the host from both, and then sends back whatever it gets.
const GUEST: &str = "
echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
busybox ip link set eth0 up
busybox ip addr add 10.77.0.2/24 dev eth0
busybox ip addr add fd77::2/64 dev eth0
for host in 10.77.0.1 fd77::1; do
    busybox yes 'from the guest' | dd bs=65536 count=64 iflag=fullblock | busybox nc $host 9 || say no connection to $host
done
say about to listen
busybox nc -ll -p 7 -e cat
";

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_guest_and_its_host_exchange_megabytes_over_a_tap() {
    exchange_megabytes(|tap| {
        let mut machine = linux::machine(GUEST);
        machine.config["nets"] =
            json!([{"taps": [tap.as_raw_fd()], "mac": "02:00:00:00:00:07", "mtu": 1500}]);
        machine.start()
    });
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_guest_uses_an_interface_that_is_added_while_it_runs() {
    exchange_megabytes(|tap| {
        let mut running = linux::machine(&format!("{LOOK_FOR_ADDED}{GUEST}")).start();
        running.wait_for_console("ready");
        let client = running.client();
        let mac = "02:00:00:00:00:08".to_owned();
        client.add_net(mac.clone(), 1500, &[tap.as_fd()]).unwrap();
        assert_eq!(client.state().unwrap().nets, [mac]);
        running
    });
}

/// Has a guest exchange megabytes with its host, in both directions and both families. `start` starts it with an interface on
/// the tap it is given.
fn exchange_megabytes(start: impl FnOnce(&OwnedFd) -> Running + Send + 'static) {
    // The namespace is that of a thread, and of what it starts.
    thread::spawn(|| {
        // SAFETY: it changes the network namespace of this thread only, which ends with the test.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(unshared, 0, "{}", io::Error::last_os_error());
        let tap = open_tap();
        for arguments in [
            "address add 10.77.0.1/24 dev tap0",
            "address add fd77::1/64 dev tap0 nodad",
            "link set tap0 up",
        ] {
            run("ip", arguments);
        }
        let listener = TcpListener::bind("[::]:9").unwrap();
        let mut running = start(&tap);
        drop(tap);
        for _ in ["10.77.0.2", "fd77::2"] {
            receive(&mut running, &listener);
        }
        running.wait_for_console("about to listen");
        for guest in ["10.77.0.2:7", "[fd77::2]:7"] {
            exchange(&mut running, guest.parse().unwrap());
        }
        // Requests and answers in many fragments each, megabytes of them. One at a time: a kernel drops answers when more than
        // two of 64 KiB wait to be sent (sk_sndbuf of its ICMP socket).
        for _ in 0..50 {
            for guest in ["10.77.0.2", "fd77::2"] {
                run("ping", &format!("-c 1 -s 20000 -W 60 -q {guest}"));
            }
        }
        let console = running.console();
        assert!(!console.contains("no connection"), "{console}");
    })
    .join()
    .unwrap();
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
    // The machine inherits it.
    fcntl_setfd(&tap, FdFlags::empty()).unwrap();
    tap.into()
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
    said
}

/// Takes a connection of the guest and all that it sends.
fn receive(running: &mut Running, listener: &TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let mut stream = running
        .wait_for("connection of the guest", |_| listener.accept().ok())
        .0;
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    let line = b"from the guest\n";
    assert_eq!(received.len(), BYTES);
    assert!(
        received.iter().eq(line.iter().cycle().take(BYTES)),
        "not what the guest sent"
    );
}

/// Sends bytes to the guest and gets the same back, in both directions at the same time.
fn exchange(running: &mut Running, guest: SocketAddr) {
    // It says that it listens when it is about to.
    let stream = running.wait_for("listener in the guest", |_| {
        TcpStream::connect_timeout(&guest, PATIENCE).ok()
    });
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let numbers = (0_u32..).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes());
    let sent: Vec<u8> = numbers.take(BYTES).collect();
    let received = thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        (&stream).read_to_end(&mut received).unwrap();
        received
    });
    assert_eq!(received.len(), sent.len(), "with {guest}");
    assert!(received == sent, "other bytes came back from {guest}");
}
