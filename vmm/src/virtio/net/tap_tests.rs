//! The device on a real tap, in a network namespace of its own. Needs root and `/dev/net/tun`; where they are missing the
//! tests say so and end.

#![allow(
    unsafe_code,
    reason = "taps and packet sockets are made with system calls that nothing wraps"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests name small numbers"
)]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd},
    process::Command,
};

use super::*;
use crate::virtio::fake_driver::{Buffer, FakeDriver, Noise, PATIENCE};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Runs a test on a thread with a network namespace of its own, in which there is a tap "tap0" with this MTU.
fn with_tap(mtu: u16, test: impl FnOnce(OwnedFd) + Send + 'static) {
    let run = move || {
        // SAFETY: it changes the network namespace of this thread only, which ends with the test.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 || !std::path::Path::new("/dev/net/tun").exists()
        {
            eprintln!("not tried: no permission for a network namespace, or no /dev/net/tun");
            return;
        }
        let tap = open_tap(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
        let up = Command::new("ip")
            .args(["link", "set", "tap0", "mtu", &mtu.to_string(), "up"])
            .status()
            .unwrap();
        assert!(up.success());
        test(tap);
    };
    std::thread::spawn(run).join().unwrap();
}

fn open_tap(flags: libc::c_int) -> OwnedFd {
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads one `ifreq`.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    tap.into()
}

/// A socket for raw frames of tap0.
fn packet_socket() -> File {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: it takes numbers only.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, libc::c_int::from(protocol)) };
    assert!(socket >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the descriptor was just made and nobody else has it.
    let socket = unsafe { File::from_raw_fd(socket) };
    // SAFETY: the name ends with a zero.
    let index = unsafe { libc::if_nametoindex(c"tap0".as_ptr()) };
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: index as libc::c_int,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address lives through the call.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))
        .unwrap();
    socket
}

/// An Ethernet frame for the guest of a protocol that nobody speaks.
fn frame(length: usize) -> Vec<u8> {
    let mut frame = [MAC.as_slice(), &[2, 0, 0, 0, 0, 2], &[0x88, 0xb5]].concat();
    frame.extend(Noise::new(length as u64).bytes(length - frame.len()));
    frame
}

/// Whether a frame is one of ours, and not one that the host's own IPv6 sends.
fn is_ours(frame: &[u8]) -> bool {
    frame[12..14] == [0x88, 0xb5]
}

/// The next frame of ours that the driver gets, and the number of its buffers.
fn guest_receives(driver: &mut FakeDriver) -> (usize, Vec<u8>) {
    let descriptors = driver.queues[0].descriptors();
    loop {
        let (mut packet, mut count, mut all) = (Vec::new(), 0, 1);
        while count < all {
            let (head, written) = driver.queues[0].wait_used();
            let address = driver.read(descriptors + u64::from(head) * 16, 8);
            let address = u64::from_le_bytes(address.try_into().unwrap());
            packet.extend(driver.read(address, written as usize));
            all = usize::from(u16::from_le_bytes([packet[10], packet[11]]));
            count += 1;
        }
        let frame = packet.split_off(12);
        if is_ours(&frame) {
            return (count, frame);
        }
    }
}

/// The next frame of ours that the host gets.
fn receive(socket: &File) -> Vec<u8> {
    let mut bytes = vec![0; 70_000];
    loop {
        let count = io::Read::read(&mut &*socket, &mut bytes).unwrap();
        if is_ours(&bytes) {
            return bytes[..count].to_vec();
        }
    }
}

#[test]
fn frames_pass_both_ways_through_a_real_tap() {
    with_tap(9000, |tap| {
        let host = packet_socket();
        let mut net = Net::new(vec![tap], MAC, 9000).unwrap();
        let mut driver = FakeDriver::new(&net, 8 << 20);
        driver.activate(&mut net);
        for _ in 0..200 {
            let address = driver.allocate(2048);
            driver.queues[0].offer(&[Buffer::Writable(address, 2048)]);
        }
        for length in [60, 1514, 2036, 2037, 9014] {
            let sent = frame(length);
            io::Write::write_all(&mut &host, &sent).unwrap();
            let (buffers, got) = guest_receives(&mut driver);
            assert!(
                got == sent,
                "a frame of {length} bytes came as one of {}",
                got.len()
            );
            assert_eq!(buffers, (12 + length).div_ceil(2048));
        }
        for length in [60, 1514, 9014] {
            let mut sent = frame(length);
            sent.swap(5, 11);
            let packet = [&[0; 12], sent.as_slice()].concat();
            let address = driver.allocate_with(&packet);
            driver.queues[1].offer(&[
                Buffer::Readable(address, 12),
                Buffer::Readable(address + 12, length as u32),
            ]);
            driver.queues[1].wait_used();
            assert!(receive(&host) == sent);
        }
    });
}

#[test]
fn a_driver_without_offloads_is_given_what_it_can_take() {
    with_tap(1500, |tap| {
        let control = tap.try_clone().unwrap();
        let mut net = Net::new(vec![tap], MAC, 1500).unwrap();
        for (features, expected) in [(u64::MAX, true), (0, false), (u64::MAX, true)] {
            let driver = FakeDriver::accepting(&net, 8 << 20, net.features() & (features | 1 << 32));
            driver.activate(&mut net);
            assert_eq!(tap_takes_unsegmented(), expected, "features {features:#x}");
            net.reset();
        }
        drop(control);
    });
}

/// Whether the kernel would hand packets to tap0 unsegmented (ETHTOOL_GTSO).
fn tap_takes_unsegmented() -> bool {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_GTSO: u32 = 0x1e;
    let socket = packet_socket();
    let mut value = [ETHTOOL_GTSO, 0];
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: SIOCETHTOOL reads the command and writes the value, both of which live through the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    value[1] != 0
}

#[test]
fn a_frame_larger_than_the_guest_expects_is_dropped_and_a_dead_tap_is_quiet() {
    with_tap(9000, |tap| {
        let host = packet_socket();
        let mut net = Net::new(vec![tap], MAC, 1500).unwrap();
        // Mergeable buffers, but no segmentation: no more than a frame of 1500 bytes is expected.
        let mut driver = FakeDriver::accepting(&net, 8 << 20, net.features() & !(1 << 7 | 1 << 8));
        driver.activate(&mut net);
        for _ in 0..20 {
            let address = driver.allocate(2048);
            driver.queues[0].offer(&[Buffer::Writable(address, 2048)]);
        }
        io::Write::write_all(&mut &host, &frame(9014)).unwrap();
        io::Write::write_all(&mut &host, &frame(100)).unwrap();
        assert!(guest_receives(&mut driver) == (1, frame(100)));
        let deleted = Command::new("ip").args(["link", "del", "tap0"]).status().unwrap();
        assert!(deleted.success());
        let address = driver.allocate(100);
        driver.queues[1].offer(&[Buffer::Readable(address, 100)]);
        driver.queues[1].wait_used();
        net.pause();
        assert!(net.resume().is_ok());
        assert_eq!(driver.interrupt.reset_reason(), None);
    });
}

#[test]
fn only_taps_with_headers_are_taken() {
    with_tap(1500, |tap| {
        drop(tap);
        for flags in [
            libc::IFF_TAP,
            libc::IFF_TAP | libc::IFF_NO_PI,
            libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR,
        ] {
            let tap = open_tap(flags);
            assert!(
                matches!(
                    Net::new(vec![tap], MAC, 1500),
                    Err(NetError::Tap(TapError::NotATap))
                ),
                "flags {flags:#x}"
            );
        }
    });
}

#[test]
fn the_host_gives_packets_to_the_pairs_in_use_alone() {
    with_tap(1500, |tap| {
        drop(tap);
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        let taps = vec![open_tap(flags), open_tap(flags)];
        let up = Command::new("ip")
            .args(["link", "set", "tap0", "up"])
            .status()
            .unwrap();
        assert!(up.success());
        let host = packet_socket();
        let mut net = Net::new(taps, MAC, 1500).unwrap();
        let mut driver = FakeDriver::new(&net, 8 << 20);
        driver.activate(&mut net);
        for _ in 0..200 {
            let address = driver.allocate(2048);
            driver.queues[0].offer(&[Buffer::Writable(address, 2048)]);
        }
        // Frames of many flows, none of which goes to the pair that is not used.
        for number in 0..100u8 {
            let mut sent = frame(100);
            sent[11] = number;
            io::Write::write_all(&mut &host, &sent).unwrap();
            assert!(guest_receives(&mut driver) == (1, sent));
        }
        net.reset();
        // The queue that was let go can be taken up again.
        driver = FakeDriver::new(&net, 8 << 20);
        driver.activate(&mut net);
        let command = driver.allocate_with(&[4, 0, 2, 0]);
        let answer = driver.allocate_with(&[0xee]);
        driver.queues[4].offer(&[Buffer::Readable(command, 4), Buffer::Writable(answer, 1)]);
        driver.queues[4].wait_used();
        assert_eq!(driver.read(answer, 1), [0]);
        assert!(net.taps.iter().all(|tap| tap.is_used()));
    });
}
