//! The device between a driver and a wire that is a socket of packets.

#![allow(clippy::cast_possible_truncation, reason = "tests name small numbers")]

use std::os::fd::AsFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
    sockopt::{Timeout, set_socket_send_buffer_size, set_socket_timeout},
};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF};

use super::*;
use crate::virtio::fake_driver::{Buffer, FakeDriver, Noise, PATIENCE};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const NO_SEGMENTATION: u64 = !(1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6);

/// A device whose wire's other end is `wire`.
struct Bench {
    net: Net,
    wire: OwnedFd,
    driver: FakeDriver,
    buffers: Vec<(u16, u64)>,
}

/// A tap's stand-in and its other end.
pub fn socket_wire() -> (Tap, OwnedFd) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::io::ioctl_fionbio(&theirs, false).unwrap();
    set_socket_timeout(&theirs, Timeout::Recv, Some(PATIENCE)).unwrap();
    set_socket_send_buffer_size(&theirs, 4 << 20).unwrap();
    (Tap::of_socket(ours), theirs)
}

impl Bench {
    fn new(features: u64) -> Self {
        let (tap, wire) = socket_wire();
        let mut net = Net::on(vec![tap], MAC, 1500).unwrap();
        let driver = FakeDriver::accepting(&net, 8 << 20, net.features() & features);
        driver.activate(&mut net);
        Self {
            net,
            wire,
            driver,
            buffers: Vec::new(),
        }
    }

    /// Gives the device buffers to receive into.
    fn offer(&mut self, count: usize, bytes: usize) {
        for _ in 0..count {
            let address = self.driver.allocate(bytes);
            self.driver.write(address, &vec![0xee; bytes]);
            let head = self.driver.queues[RECEIVE].offer(&[Buffer::Writable(address, bytes as u32)]);
            self.buffers.push((head, address));
        }
    }

    /// Sends a packet from the host: 12 bytes of header, then these.
    fn host_sends(&self, payload: &[u8]) {
        let packet = [&[0; 12], payload].concat();
        assert_eq!(
            send(&self.wire, &packet, SendFlags::empty()).unwrap(),
            packet.len()
        );
    }

    /// Receives a packet in the guest: how many buffers it took, and its bytes after the header.
    fn guest_receives(&mut self) -> (u16, Vec<u8>) {
        let (head, first) = self.driver.queues[RECEIVE].wait_used();
        let mut bytes = self.take(head, first);
        let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
        for _ in 1..buffers {
            // All that belongs together is there at once.
            let (head, length) = self.driver.queues[RECEIVE]
                .take_used()
                .expect("a packet seen in part");
            let more = self.take(head, length);
            bytes.extend(more);
        }
        (buffers, bytes.split_off(12))
    }

    fn take(&mut self, head: u16, length: u32) -> Vec<u8> {
        let at = self.buffers.iter().position(|buffer| buffer.0 == head).unwrap();
        let (_, address) = self.buffers.swap_remove(at);
        self.driver.read(address, length as usize)
    }

    fn guest_sends(&mut self, packet: &[u8], pieces: &[usize]) {
        let address = self.driver.allocate_with(packet);
        let mut at = 0;
        let buffers: Vec<Buffer> = pieces
            .iter()
            .map(|bytes| {
                at += bytes;
                Buffer::Readable(address + (at - bytes) as u64, *bytes as u32)
            })
            .collect();
        self.driver.queues[TRANSMIT].offer(&buffers);
    }

    fn host_receives(&self) -> Vec<u8> {
        let mut packet = vec![0; 100_000];
        let (_, length) = recv(&self.wire, packet.as_mut_slice(), RecvFlags::empty()).unwrap();
        packet.truncate(length);
        packet
    }
}

fn text(length: usize) -> Vec<u8> {
    Noise::new(length as u64).bytes(length)
}

#[test]
fn packets_of_the_guest_reach_the_wire_whole_and_in_order() {
    let mut bench = Bench::new(u64::MAX);
    for length in [13, 60, 1514, 65_000] {
        let packet = text(length);
        bench.guest_sends(&packet, &[5, length - 5]);
        assert_eq!(bench.driver.queues[TRANSMIT].wait_used().1, 0);
        assert_eq!(bench.host_receives(), packet);
    }
    for number in 0..2000u32 {
        bench.guest_sends(&[&[0; 12], number.to_le_bytes().as_slice()].concat(), &[16]);
        assert_eq!(bench.host_receives()[12..], number.to_le_bytes());
        bench.driver.queues[TRANSMIT].wait_used();
    }
}

#[test]
fn what_is_no_packet_is_dropped_and_the_next_one_is_sent() {
    let mut bench = Bench::new(u64::MAX);
    bench.guest_sends(&[7; 12], &[12]);
    bench.guest_sends(&[7; 5], &[5]);
    bench.guest_sends(&vec![7; 70_000], &[70_000]);
    bench.driver.queues[TRANSMIT].offer(&[Buffer::Writable(0x1000, 64)]);
    for _ in 0..4 {
        assert_eq!(bench.driver.queues[TRANSMIT].wait_used().1, 0);
    }
    bench.guest_sends(&[8; 100], &[100]);
    assert_eq!(bench.host_receives(), [8; 100]);
}

#[test]
fn a_wire_that_is_full_or_cut_loses_packets_and_holds_nothing_up() {
    let mut bench = Bench::new(u64::MAX);
    for _ in 0..5000 {
        bench.guest_sends(&[7; 1500], &[1500]);
        bench.driver.queues[TRANSMIT].wait_used();
    }
    bench.wire = socket_wire().1;
    bench.guest_sends(&[7; 1500], &[1500]);
    bench.driver.queues[TRANSMIT].wait_used();
    assert_eq!(bench.driver.interrupt.reset_reason(), None);
}

#[test]
fn a_packet_takes_as_many_buffers_as_it_needs() {
    let mut bench = Bench::new(u64::MAX);
    bench.offer(200, 1536);
    for (length, buffers) in [
        (1, 1),
        (60, 1),
        (1524, 1),
        (1525, 2),
        (9000, 6),
        (65_535, 43),
        (100, 1),
    ] {
        bench.host_sends(&text(length));
        let (count, bytes) = bench.guest_receives();
        assert_eq!((count, bytes.len()), (buffers, length));
        assert!(bytes == text(length), "{length} bytes are not those sent");
    }
    // 146 are left: none was lost on the way.
    assert_eq!(bench.buffers.len(), 200 - 55);
}

#[test]
fn a_driver_without_mergeable_buffers_gets_each_packet_in_one() {
    let mut bench = Bench::new(!(1 << VIRTIO_NET_F_MRG_RXBUF) & NO_SEGMENTATION);
    bench.offer(10, 1600);
    for length in [60, 1514] {
        bench.host_sends(&text(length));
        assert_eq!(bench.guest_receives(), (1, text(length)));
    }
}

#[test]
fn a_packet_without_room_waits_until_there_is_some() {
    for features in [u64::MAX, !(1 << 29)] {
        let mut bench = Bench::new(features);
        bench.host_sends(&text(5000));
        bench.host_sends(&text(60));
        bench.offer(3, 1536);
        // Three are not enough; the driver is listened to for the fourth.
        bench.offer(1, 1536);
        assert_eq!(bench.guest_receives(), (4, text(5000)), "features {features:#x}");
        bench.offer(1, 1536);
        assert_eq!(bench.guest_receives(), (1, text(60)));
        for number in 0..300 {
            bench.host_sends(&text(3000 + number));
            bench.offer(2 + usize::from(number % 2 == 0), 1536);
            bench.offer(1 - usize::from(number % 2 == 0), 1536);
            let (_, bytes) = bench.guest_receives();
            assert!(bytes == text(3000 + number));
            let left = bench.buffers.len();
            assert!(left <= 301, "{left}");
        }
    }
}

#[test]
fn a_packet_larger_than_all_buffers_is_dropped() {
    let mut bench = Bench::new(u64::MAX);
    bench.offer(256, 64);
    bench.host_sends(&text(60_000));
    bench.host_sends(&text(60));
    assert_eq!(bench.guest_receives(), (2, text(60)));
}

#[test]
fn the_guest_reads_address_link_and_largest_packet() {
    let bench = Bench::new(u64::MAX);
    let mut space = [9; 16];
    bench.net.read_config(0, &mut space);
    assert_eq!(space, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0xdc, 5, 0, 0, 0, 0]);
}

#[test]
fn a_saved_link_goes_on_in_another_process() {
    let mut bench = Bench::new(u64::MAX);
    bench.offer(60, 1536);
    bench.host_sends(&text(60));
    bench.guest_receives();
    bench.net.pause();
    bench.host_sends(&text(70));
    bench.guest_sends(&[7; 70], &[70]);
    bench.net.resume().unwrap();
    assert_eq!(bench.guest_receives(), (1, text(70)));
    assert_eq!(bench.host_receives(), [7; 70]);
    bench.net.pause();
    let saved = bench.net.save().unwrap();
    let (tap, wire) = socket_wire();
    let mut net = Net::on(vec![tap], MAC, 1500).unwrap();
    net.restore(&saved, Some(bench.driver.activation())).unwrap();
    assert_eq!(net.save().unwrap(), saved);
    net.resume().unwrap();
    (bench.net, bench.wire) = (net, wire);
    bench.host_sends(&text(80));
    assert_eq!(bench.guest_receives(), (1, text(80)));
    bench.guest_sends(&[7; 90], &[90]);
    assert_eq!(bench.host_receives(), [7; 90]);
}

#[test]
fn noise_on_both_sides_does_no_harm() {
    let mut bench = Bench::new(u64::MAX);
    let mut noise = Noise::new(5);
    let buffer = bench.driver.allocate(1 << 20);
    for _ in 0..5000 {
        let lengths = [noise.below(70), noise.below(3000), noise.below(100_000)];
        for (queue, length) in [RECEIVE, TRANSMIT, noise.below(2) as usize]
            .into_iter()
            .zip(lengths)
        {
            let queue = &mut bench.driver.queues[queue];
            while queue.take_used().is_some() {}
            if queue.room() > 3 {
                let length = length as u32;
                match noise.below(3) {
                    0 => queue.offer(&[Buffer::Readable(buffer, length)]),
                    1 => queue.offer(&[Buffer::Writable(buffer, length)]),
                    _ => queue.offer(&[Buffer::Readable(buffer, 6), Buffer::Writable(buffer, length)]),
                };
            }
        }
        let length = noise.below(3000) as usize + 1;
        let packet = noise.bytes(length);
        let _ = send(&bench.wire, &packet, SendFlags::DONTWAIT);
        let mut packet = [0; 3000];
        let _ = recv(bench.wire.as_fd(), packet.as_mut_slice(), RecvFlags::DONTWAIT);
    }
    assert_eq!(bench.driver.interrupt.reset_reason(), None);
}

#[test]
fn what_cannot_be_an_interface_is_refused() {
    let on = |mac, mtu| Net::on(vec![socket_wire().0], mac, mtu);
    assert!(matches!(on([0; 6], 1500), Err(NetError::Mac(_))));
    assert!(matches!(on([0x33, 0, 0, 0, 0, 1], 1500), Err(NetError::Mac(_))));
    assert!(matches!(on(MAC, 67), Err(NetError::Mtu(67))));
    let (_, wire) = socket_wire();
    assert!(matches!(
        Net::new(vec![wire], MAC, 1500),
        Err(NetError::Tap(TapError::NotATap))
    ));
}
