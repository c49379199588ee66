//! Rings of drivers that keep the rules, and of others.

#![allow(clippy::cast_possible_truncation, reason = "noise may be cut off")]

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::*;
use crate::virtio::{
    fake_driver::{Buffer, FakeDriver, Noise, PLAIN},
    rng::Rng,
};

fn driver(features: u64) -> (FakeDriver, Ring) {
    let driver = FakeDriver::accepting(&Rng::new(), 1 << 20, features);
    let [ring] = take_all(driver.activation()).unwrap();
    (driver, ring)
}

fn fault(ring: &mut Ring) -> String {
    let memory = ring.memory();
    ring.pop(&memory).unwrap_err().to_string()
}

#[test]
fn chains_come_in_order_and_whole_whether_direct_or_indirect() {
    let (mut driver, mut ring) = driver(RING_FEATURES);
    let memory = ring.memory();
    let (data, table) = (driver.allocate_with(b"readable"), driver.allocate(16 * 4));
    let buffers = [
        Buffer::Readable(data, 4),
        Buffer::Readable(data + 4, 4),
        Buffer::Writable(data, 0),
        Buffer::Writable(data, 3),
    ];
    let heads = [
        driver.queues[0].offer(&buffers),
        driver.queues[0].offer_indirect(table, &buffers),
    ];
    for head in heads {
        let chain = ring.pop(&memory).unwrap().unwrap();
        let mut text = [0; 9];
        assert_eq!(chain.readable.copy_out(0, &mut text), 8);
        assert_eq!(&text[..8], b"readable");
        assert_eq!((chain.head, chain.writable.len()), (head, 3));
        ring.add_used(chain.head, 3).unwrap();
    }
    assert!(ring.pop(&memory).unwrap().is_none());
    ring.tell().unwrap();
    ring.tell().unwrap();
    assert_eq!(
        driver.interrupt.count(0),
        1,
        "the driver is told once of what is used"
    );
    assert_eq!(driver.queues[0].take_used(), Some((heads[0], 3)));
    assert_eq!(driver.queues[0].take_used(), Some((heads[1], 3)));
    assert_eq!(driver.queues[0].take_used(), None);
}

#[test]
fn chains_that_belong_together_are_seen_together_and_told_of_once() {
    for features in [PLAIN, RING_FEATURES] {
        let (mut driver, mut ring) = driver(features);
        let memory = ring.memory();
        for round in 0..100 {
            let heads = [(); 5].map(|()| driver.queues[0].offer(&[Buffer::Writable(0x8000, 10)]));
            let chains = heads.map(|_| ring.pop(&memory).unwrap().unwrap());
            let used: Vec<(u16, usize)> = (1..).zip(&chains).map(|(n, chain)| (chain.head, n)).collect();
            ring.add_used_together(&used).unwrap();
            ring.tell().unwrap();
            assert_eq!(driver.interrupt.count(0), round + 1);
            for (head, n) in heads.into_iter().zip(1..) {
                assert_eq!(driver.queues[0].take_used(), Some((head, n)));
            }
            assert_eq!(driver.queues[0].take_used(), None);
        }
    }
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    let (mut driver, mut ring) = driver(PLAIN);
    let flags = driver.queues[0].available();
    for (flag, told) in [(1, 0), (0, 1), (1, 1)] {
        driver.queues[0].store(flags, flag);
        driver.queues[0].offer(&[Buffer::Readable(0x8000, 1)]);
        let memory = ring.memory();
        let head = ring.pop(&memory).unwrap().unwrap().head;
        ring.add_used(head, 0).unwrap();
        ring.tell().unwrap();
        assert_eq!(driver.interrupt.count(0), told);
        driver.queues[0].take_used();
    }
}

#[test]
fn what_is_put_back_comes_again() {
    let (mut driver, mut ring) = driver(PLAIN);
    let memory = ring.memory();
    let buffer = [Buffer::Readable(0x8000, 1)];
    let heads = [(); 3].map(|()| driver.queues[0].offer(&buffer));
    for head in heads {
        assert_eq!(ring.pop(&memory).unwrap().unwrap().head, head);
    }
    ring.put_back(2);
    assert_eq!(ring.pop(&memory).unwrap().unwrap().head, heads[1]);
}

#[test]
fn a_driver_that_was_told_not_to_ring_is_listened_to_again() {
    for features in [PLAIN, RING_FEATURES] {
        let (mut driver, mut ring) = driver(features);
        let memory = ring.memory();
        let buffer = [Buffer::Readable(0x8000, 1)];
        assert!(!ring.listen().unwrap());
        driver.queues[0].offer(&buffer);
        assert!(driver.queues[0].doorbell.read().is_ok());
        ring.ignore().unwrap();
        driver.queues[0].offer(&buffer);
        assert!(
            driver.queues[0].doorbell.read().is_err(),
            "features {features:#x}"
        );
        assert!(ring.listen().unwrap(), "there are two");
        while ring.pop(&memory).unwrap().is_some() {}
        assert!(!ring.listen().unwrap());
        driver.queues[0].offer(&buffer);
        assert!(driver.queues[0].doorbell.read().is_ok(), "features {features:#x}");
    }
}

#[test]
fn a_chain_must_end() {
    let (mut driver, mut ring) = driver(RING_FEATURES);
    let queue = &mut driver.queues[0];
    queue.write_descriptor(0, 0x8000, 1, VRING_DESC_F_NEXT, 1);
    queue.write_descriptor(1, 0x8000, 1, VRING_DESC_F_NEXT, 0);
    queue.offer_head(0);
    assert_eq!(fault(&mut ring), "queue 0 is broken: chain 0 does not end");

    queue.write_descriptor(2, 0x8000, 1, VRING_DESC_F_NEXT, 64);
    queue.offer_head(2);
    assert!(fault(&mut ring).contains("chain 2 does not end"));

    queue.offer_head(64);
    assert!(fault(&mut ring).contains("chain 64 does not end"));
}

#[test]
fn an_indirect_table_must_be_one_and_no_longer_than_the_ring() {
    let (mut driver, mut ring) = driver(RING_FEATURES);
    let table = driver.allocate(16 * 65);
    let queue = &mut driver.queues[0];
    let buffers = [Buffer::Writable(0x8000, 1); 65];
    queue.offer_indirect(table, &buffers[..64]);
    let memory = ring.memory();
    assert_eq!(ring.pop(&memory).unwrap().unwrap().writable.len(), 64);
    queue.offer_indirect(table, &buffers);
    assert!(fault(&mut ring).contains("does not end"));

    // A table in a table, one of odd length, one outside memory.
    queue.write_descriptor_at(table, table, 16, VRING_DESC_F_INDIRECT, 0);
    for (index, (address, length)) in (10..).zip([(table, 16), (table, 17), (table, 0), (1 << 40, 16)]) {
        queue.write_descriptor(index, address, length, VRING_DESC_F_INDIRECT, 0);
        queue.offer_head(index);
        assert!(fault(&mut ring).contains(&format!("chain {index} does not end")));
    }
}

#[test]
fn buffers_must_be_memory_and_in_order() {
    let (mut driver, mut ring) = driver(RING_FEATURES);
    let queue = &mut driver.queues[0];
    for (address, length) in [
        (1 << 20, 1),
        ((1 << 20) - 1, 2),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX - 1),
        (0, u32::MAX - 1),
    ] {
        queue.offer(&[Buffer::Readable(0x8000, 1), Buffer::Writable(address, length)]);
        assert!(
            fault(&mut ring).contains("which is not memory"),
            "{length} bytes at {address:#x}"
        );
    }
    queue.offer(&[Buffer::Writable(0x8000, 1), Buffer::Readable(0x8000, 1)]);
    assert!(fault(&mut ring).contains("readable buffer after a writable"));
}

#[test]
fn the_ring_itself_must_be_memory_and_hold_no_more_than_its_size() {
    let (driver, mut ring) = driver(RING_FEATURES);
    let queue = &driver.queues[0];
    queue.store(queue.available() + 2, 65);
    assert!(fault(&mut ring).contains("queue 0 is broken"));

    let outside = |change: fn(&mut Queue)| {
        let mut activation = driver.activation();
        change(&mut activation.queues[0].as_mut().unwrap().queue);
        let [ring] = take_all(activation).unwrap();
        ring
    };
    queue.store(queue.available() + 2, 1);
    let mut ring = outside(|queue| queue.set_avail_ring_address(Some(0xfff_fff0), None));
    fault(&mut ring);
    // Its index is the last number in memory, its entries are beyond.
    let mut ring = outside(|queue| queue.set_avail_ring_address(Some((1 << 20) - 4), None));
    driver.write((1 << 20) - 2, &[1, 0]);
    assert!(fault(&mut ring).contains("cannot be read"));
    let mut ring = outside(|queue| queue.set_used_ring_address(Some(0xfff_fff0), None));
    assert!(ring.add_used(0, 1).is_err());
    assert!(ring.listen().is_err());
    let mut ring = outside(|queue| queue.set_desc_table_address(Some(0xfff_fff0), None));
    fault(&mut ring);
}

#[test]
fn a_device_does_not_start_with_a_queue_missing() {
    let (driver, _) = driver(RING_FEATURES);
    let mut activation = driver.activation();
    activation.queues[0] = None;
    assert!(matches!(
        take_all::<1>(activation),
        Err(RingError::Disabled { queue: 0 })
    ));
    assert!(matches!(
        take_all::<2>(driver.activation()),
        Err(RingError::Disabled { queue: 1 })
    ));
}

/// Any bytes in the rings end in chains or in an error, within bounds.
#[test]
fn noise_in_the_rings_never_does_harm() {
    let mut noise = Noise::new(42);
    let mut popped = 0;
    for _ in 0..3000 {
        let (driver, mut ring) = driver(RING_FEATURES);
        let queue = &driver.queues[0];
        for index in 0..64 {
            let address = if noise.below(20) == 0 {
                noise.number()
            } else {
                noise.below(1 << 20)
            };
            let length = if noise.below(20) == 0 {
                noise.number() as u32
            } else {
                noise.below(5000) as u32
            };
            let kinds = [
                0,
                VRING_DESC_F_NEXT,
                VRING_DESC_F_NEXT,
                VRING_DESC_F_WRITE,
                VRING_DESC_F_INDIRECT,
            ];
            let flags = kinds[noise.below(5) as usize];
            queue.write_descriptor(index, address, length, flags, noise.below(70) as u16);
            queue.store(
                queue.available() + 4 + u64::from(index) * 2,
                noise.below(66) as u16,
            );
        }
        queue.store(queue.available() + 2, noise.below(66) as u16);
        let memory = ring.memory();
        while let Ok(Some(chain)) = ring.pop(&memory) {
            popped += 1;
            assert!(chain.readable.pieces().len() + chain.writable.pieces().len() <= 64);
            chain.writable.copy_in(0, &[0; 100]);
            if ring.add_used(chain.head, 1).is_err() {
                break;
            }
        }
    }
    assert!(
        popped > 1000,
        "the noise was too loud to be a test: {popped} chains"
    );
}

#[test]
fn a_doorbell_rings_until_it_is_hushed() {
    let (driver, ring) = driver(RING_FEATURES);
    ring.wake();
    ring.hush();
    assert!(driver.queues[0].doorbell.read().is_err());
    ring.wake();
    assert_eq!(driver.queues[0].doorbell.read().unwrap(), 1);
}
