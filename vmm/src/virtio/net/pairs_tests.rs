//! A device with several pairs of queues, between a driver and wires that are sockets of packets.

#![allow(clippy::cast_possible_truncation, reason = "tests name small numbers")]

use rustix::net::{RecvFlags, SendFlags, recv, send};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MQ;

use super::{tests::socket_wire, *};
use crate::virtio::fake_driver::{Buffer, FakeDriver};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PAIRS: usize = 2;
const CONTROL: usize = 2 * PAIRS;
const OK: u8 = 0;
const ERROR: u8 = 1;

/// A device of two pairs and the other ends of its wires.
fn two_pairs() -> (Net, Vec<OwnedFd>) {
    let (taps, wires) = (0..PAIRS).map(|_| socket_wire()).unzip();
    (Net::on(taps, MAC, 1500).unwrap(), wires)
}

/// Sends a command and gives the device's answer.
fn command(driver: &mut FakeDriver, command: &[u8]) -> u8 {
    let address = driver.allocate_with(command);
    let answer = driver.allocate_with(&[0xee]);
    driver.queues[CONTROL].offer(&[
        Buffer::Readable(address, command.len() as u32),
        Buffer::Writable(answer, 1),
    ]);
    assert_eq!(driver.queues[CONTROL].wait_used().1, 1);
    driver.read(answer, 1)[0]
}

fn used(net: &Net) -> Vec<bool> {
    net.taps.iter().map(|tap| tap.is_used()).collect()
}

/// Sends a packet each way on each of the first `pairs`.
fn exchange(driver: &mut FakeDriver, wires: &[OwnedFd], pairs: usize) {
    for (pair, wire) in wires.iter().enumerate().take(pairs) {
        let packet = [&[0; 12], [pair as u8 + 1; 60].as_slice()].concat();
        let address = driver.allocate_with(&packet);
        driver.queues[2 * pair + 1].offer(&[Buffer::Readable(address, 72)]);
        driver.queues[2 * pair + 1].wait_used();
        let mut got = [0; 100];
        assert_eq!(
            recv(wire, got.as_mut_slice(), RecvFlags::empty()).unwrap(),
            (72, 72)
        );
        assert_eq!(got[..72], packet);

        let room = driver.allocate(1536);
        driver.queues[2 * pair].offer(&[Buffer::Writable(room, 1536)]);
        send(wire, &packet, SendFlags::empty()).unwrap();
        assert_eq!(driver.queues[2 * pair].wait_used().1, 72);
        assert_eq!(driver.read(room + 12, 60), [pair as u8 + 1; 60]);
    }
}

#[test]
fn a_driver_uses_one_pair_until_it_asks_for_more() {
    let (mut net, wires) = two_pairs();
    let mut pairs = [0; 2];
    net.read_config(8, &mut pairs);
    assert_eq!(u16::from_le_bytes(pairs), PAIRS as u16);
    let mut driver = FakeDriver::new(&net, 8 << 20);
    driver.activate(&mut net);
    assert_eq!(used(&net), [true, false]);
    assert_eq!(command(&mut driver, &[4, 0, 2, 0]), OK);
    assert_eq!(used(&net), [true, true]);
    exchange(&mut driver, &wires, 2);
    assert_eq!(command(&mut driver, &[4, 0, 1, 0]), OK);
    assert_eq!(used(&net), [true, false]);
    exchange(&mut driver, &wires, 1);
}

#[test]
fn what_is_no_command_is_answered_with_an_error_and_changes_nothing() {
    let (mut net, _wires) = two_pairs();
    let mut driver = FakeDriver::new(&net, 8 << 20);
    driver.activate(&mut net);
    for bad in [
        [4, 0, 0, 0].as_slice(),
        &[4, 0, 3, 0],
        &[4, 0, 0, 0x80],
        &[4, 1, 2, 0],
        &[0, 0, 2, 0],
        &[4, 0, 2],
        &[4],
    ] {
        assert_eq!(command(&mut driver, bad), ERROR, "{bad:?}");
    }
    assert_eq!(used(&net), [true, false]);
    assert_eq!(driver.interrupt.reset_reason(), None);
}

#[test]
fn a_driver_that_knows_of_one_pair_has_that() {
    let (mut net, wires) = two_pairs();
    let features = net.features() & !(1 << VIRTIO_NET_F_MQ);
    let mut driver = FakeDriver::accepting(&net, 8 << 20, features);
    let mut activation = driver.activation();
    activation.queues[2] = None;
    net.activate(activation).unwrap();
    exchange(&mut driver, &wires, 1);
    assert_eq!(used(&net), [true, false]);
    net.pause();
    let saved = net.save().unwrap();

    let (mut net, wires) = two_pairs();
    net.restore(&saved, Some(driver.activation())).unwrap();
    assert_eq!(net.save().unwrap(), saved);
    net.resume().unwrap();
    exchange(&mut driver, &wires, 1);
}

#[test]
fn saved_pairs_go_on_in_another_process() {
    let (mut net, wires) = two_pairs();
    let mut driver = FakeDriver::new(&net, 8 << 20);
    driver.activate(&mut net);
    assert_eq!(command(&mut driver, &[4, 0, 2, 0]), OK);
    exchange(&mut driver, &wires, 2);
    net.pause();
    let saved = net.save().unwrap();

    let (mut net, wires) = two_pairs();
    net.restore(&saved, Some(driver.activation())).unwrap();
    assert_eq!(net.save().unwrap(), saved);
    assert_eq!(used(&net), [true, true]);
    net.resume().unwrap();
    exchange(&mut driver, &wires, 2);
    assert_eq!(command(&mut driver, &[4, 0, 1, 0]), OK);

    let mut one = Net::on(vec![socket_wire().0], MAC, 1500).unwrap();
    assert!(one.restore(&saved, Some(driver.activation())).is_err());
}

#[test]
fn an_interface_has_a_wire_and_not_too_many() {
    for count in [0, MOST_PAIRS + 1] {
        let taps = (0..count).map(|_| socket_wire().0).collect();
        assert!(matches!(Net::on(taps, MAC, 1500), Err(NetError::Taps(found)) if found == count));
    }
}
