//! The driver's side of a device, for tests: memory, split rings and an interrupt that can be waited for.
//!
//! It keeps the rules as a real driver does, those of event indexes included, so that an event which a device forgets
//! hangs the test; and it lets a test write anything anywhere.

#![allow(clippy::cast_possible_truncation, reason = "tests name small numbers")]
#![allow(dead_code, reason = "not every device's tests need all of a driver")]

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    device::{Activation, ActiveQueue, Interrupt, VirtioDevice},
    ring::RING_FEATURES,
};
use crate::memory::GuestRam;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A driver that has set up all queues of a device.
#[derive(Debug)]
pub struct FakeDriver {
    pub memory: GuestRam,
    pub queues: Vec<FakeQueue>,
    pub interrupt: Arc<FakeInterrupt>,
    pub features: u64,
    next_free: u64,
}

impl FakeDriver {
    /// A guest with `memory` bytes whose driver accepts all features offered.
    pub fn new(device: &dyn VirtioDevice, memory: usize) -> Self {
        Self::accepting(device, memory, device.features())
    }

    /// A guest whose driver accepts only some features.
    pub fn accepting(device: &dyn VirtioDevice, memory: usize, features: u64) -> Self {
        let memory: GuestRam = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), memory)]).unwrap());
        let interrupt = Arc::new(FakeInterrupt::default());
        let mut driver = Self {
            memory: Arc::clone(&memory),
            queues: Vec::new(),
            interrupt: Arc::clone(&interrupt),
            features,
            next_free: 0x1000,
        };
        for (index, size) in (0..).zip(device.queue_max_sizes()) {
            let base = driver.allocate(FakeQueue::bytes(*size));
            driver.queues.push(FakeQueue {
                index,
                size: *size,
                base,
                doorbell: EventFd::new(EFD_NONBLOCK).unwrap(),
                by_index: features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
                free: (0..*size).rev().collect(),
                chains: HashMap::new(),
                next_available: 0,
                next_used: 0,
                memory: Arc::clone(&memory),
                interrupt: Arc::clone(&interrupt),
            });
        }
        driver
    }

    /// Sets DRIVER_OK.
    pub fn activate(&self, device: &mut dyn VirtioDevice) {
        device.activate(self.activation()).unwrap();
    }

    pub fn activation(&self) -> Activation {
        Activation {
            memory: Arc::clone(&self.memory),
            features: self.features,
            queues: self.queues.iter().map(|queue| Some(queue.active())).collect(),
            interrupt: Arc::clone(&self.interrupt) as Arc<dyn Interrupt>,
        }
    }

    /// Memory that nothing else uses.
    pub fn allocate(&mut self, bytes: usize) -> u64 {
        let address = self.next_free;
        self.next_free += (bytes as u64).next_multiple_of(64);
        address
    }

    pub fn write(&self, address: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(address)).unwrap();
    }

    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    pub fn allocate_with(&mut self, data: &[u8]) -> u64 {
        let address = self.allocate(data.len());
        self.write(address, data);
        address
    }
}

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Buffer {
    Readable(u64, u32),
    Writable(u64, u32),
}

/// One queue, from the driver's side.
#[derive(Debug)]
pub struct FakeQueue {
    pub index: u16,
    pub size: u16,
    base: u64,
    pub doorbell: EventFd,
    by_index: bool,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    next_available: u16,
    next_used: u16,
    memory: GuestRam,
    interrupt: Arc<FakeInterrupt>,
}

impl FakeQueue {
    fn bytes(size: u16) -> usize {
        usize::from(size) * (16 + 2 + 8) + 64
    }

    pub fn descriptors(&self) -> u64 {
        self.base
    }

    pub fn available(&self) -> u64 {
        self.base + u64::from(self.size) * 16
    }

    pub fn used_ring(&self) -> u64 {
        (self.available() + 6 + u64::from(self.size) * 2).next_multiple_of(4)
    }

    fn active(&self) -> ActiveQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors()))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(self.available()))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(self.used_ring()))
            .unwrap();
        queue.set_ready(true);
        ActiveQueue {
            index: self.index,
            queue,
            doorbell: self.doorbell.try_clone().unwrap(),
        }
    }

    pub fn write_descriptor(&self, index: u16, address: u64, length: u32, flags: u32, next: u16) {
        self.write_descriptor_at(
            self.descriptors() + u64::from(index) * 16,
            address,
            length,
            flags,
            next,
        );
    }

    pub fn write_descriptor_at(&self, at: u64, address: u64, length: u32, flags: u32, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend(address.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend((flags as u16).to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// How many descriptors are free.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Makes a chain available and rings if the device wants it; gives the chain's head.
    pub fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let indexes: Vec<u16> = buffers.iter().map(|_| self.free.pop().unwrap()).collect();
        for (position, buffer) in buffers.iter().enumerate() {
            let (next, mut flags) = match indexes.get(position + 1) {
                Some(next) => (*next, VRING_DESC_F_NEXT),
                None => (0, 0),
            };
            let (address, length) = match *buffer {
                Buffer::Readable(address, length) => (address, length),
                Buffer::Writable(address, length) => {
                    flags |= VRING_DESC_F_WRITE;
                    (address, length)
                }
            };
            self.write_descriptor(indexes[position], address, length, flags, next);
        }
        let head = indexes[0];
        self.chains.insert(head, indexes);
        self.offer_head(head);
        head
    }

    /// Makes a chain available whose buffers are described in an indirect table at `table`.
    pub fn offer_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        for (position, buffer) in (0..).zip(buffers) {
            let more = usize::from(position) + 1 < buffers.len();
            let mut flags = if more { VRING_DESC_F_NEXT } else { 0 };
            let (address, length) = match *buffer {
                Buffer::Readable(address, length) => (address, length),
                Buffer::Writable(address, length) => {
                    flags |= VRING_DESC_F_WRITE;
                    (address, length)
                }
            };
            self.write_descriptor_at(
                table + u64::from(position) * 16,
                address,
                length,
                flags,
                position + 1,
            );
        }
        let head = self.free.pop().unwrap();
        self.write_descriptor(head, table, buffers.len() as u32 * 16, VRING_DESC_F_INDIRECT, 0);
        self.chains.insert(head, vec![head]);
        self.offer_head(head);
        head
    }

    /// Makes available whatever is at `head`, and rings if the device wants it.
    pub fn offer_head(&mut self, head: u16) {
        let slot = self.available() + 4 + u64::from(self.next_available % self.size) * 2;
        self.store(slot, head);
        let old = self.next_available;
        self.next_available = old.wrapping_add(1);
        self.store(self.available() + 2, self.next_available);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let wanted = if self.by_index {
            let event = self.load(self.used_ring() + 4 + u64::from(self.size) * 8);
            self.next_available.wrapping_sub(event).wrapping_sub(1) < self.next_available.wrapping_sub(old)
        } else {
            u32::from(self.load(self.used_ring())) & VRING_USED_F_NO_NOTIFY == 0
        };
        if wanted {
            self.doorbell.write(1).unwrap();
        }
    }

    /// The next chain that the device has returned, with the number of bytes it says it has written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.load(self.used_ring() + 2) == self.next_used {
            if !self.by_index {
                return None;
            }
            // As a driver does: asks to be told of the next, then looks again.
            self.store(self.available() + 4 + u64::from(self.size) * 2, self.next_used);
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            if self.load(self.used_ring() + 2) == self.next_used {
                return None;
            }
        }
        let slot = self.used_ring() + 4 + u64::from(self.next_used % self.size) * 8;
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let length: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        let head = u16::try_from(head).unwrap();
        if let Some(indexes) = self.chains.remove(&head) {
            self.free.extend(indexes);
        }
        Some((head, length))
    }

    /// Waits for the next chain that the device returns. Only an interrupt makes it look.
    pub fn wait_used(&mut self) -> (u16, u32) {
        loop {
            let seen = self.interrupt.count(self.index);
            if let Some(used) = self.take_used() {
                return used;
            }
            self.interrupt
                .wait(|told| told.used.get(&self.index).copied().unwrap_or(0) != seen);
        }
    }

    pub fn store(&self, address: u64, value: u16) {
        self.memory
            .store(
                value.to_le(),
                GuestAddress(address),
                std::sync::atomic::Ordering::Release,
            )
            .unwrap();
    }

    pub fn load(&self, address: u64) -> u16 {
        u16::from_le(
            self.memory
                .load(GuestAddress(address), std::sync::atomic::Ordering::Acquire)
                .unwrap(),
        )
    }
}

/// Keeps what a device has told.
#[derive(Debug, Default)]
pub struct FakeInterrupt {
    told: Mutex<Told>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub struct Told {
    pub used: HashMap<u16, u64>,
    pub config: u64,
    pub reset: Option<String>,
}

impl FakeInterrupt {
    /// How often the driver was told of a queue.
    pub fn count(&self, queue: u16) -> u64 {
        self.told.lock().unwrap().used.get(&queue).copied().unwrap_or(0)
    }

    pub fn wait(&self, until: impl Fn(&Told) -> bool) {
        let told = self.told.lock().unwrap();
        let (told, late) = self
            .changed
            .wait_timeout_while(told, PATIENCE, |told| !until(told))
            .unwrap();
        assert!(!late.timed_out(), "the device is silent: {told:?}");
    }

    /// How often the driver was told of anything.
    pub fn total(&self) -> u64 {
        let told = self.told.lock().unwrap();
        told.used.values().sum::<u64>() + told.config + u64::from(told.reset.is_some())
    }

    /// Waits until the driver was told of something since `total` was this.
    pub fn wait_beyond(&self, total: u64) {
        self.wait(|told| {
            told.used.values().sum::<u64>() + told.config + u64::from(told.reset.is_some()) != total
        });
    }

    /// Waits until the device has asked for a reset, and gives its reason.
    pub fn wait_reset(&self) -> String {
        self.wait(|told| told.reset.is_some());
        self.told.lock().unwrap().reset.clone().unwrap()
    }

    pub fn reset_reason(&self) -> Option<String> {
        self.told.lock().unwrap().reset.clone()
    }

    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock().unwrap());
        self.changed.notify_all();
    }
}

impl Interrupt for FakeInterrupt {
    fn queue_used(&self, queue: u16) {
        self.tell(|told| *told.used.entry(queue).or_default() += 1);
    }

    fn config_changed(&self) {
        self.tell(|told| told.config += 1);
    }

    fn needs_reset(&self, reason: &str) {
        self.tell(|told| told.reset = Some(reason.to_owned()));
    }
}

/// Deterministic noise for tests with hostile bytes (xorshift64*).
#[derive(Debug)]
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.number() >> 11) % bound
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.number() >> 32) as u8).collect()
    }
}

/// Ring features without event indexes.
pub const PLAIN: u64 = RING_FEATURES & !(1 << VIRTIO_RING_F_EVENT_IDX);
