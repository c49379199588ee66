//! Entropy source (virtio 1.2, section 5.4): the host kernel's random bytes, a bounded number of them per second.

mod config;
mod queue;
mod state;

use super::{
    device::{Activation, DeviceError, DeviceKind, SavedDevice, VirtioDevice},
    requests::RequestQueue,
    ring::{self, RING_FEATURES},
    stage::Stage,
};
use queue::Entropy;

const NAME: &str = "rng";
const QUEUE_SIZES: [u16; 1] = [64];

/// The device.
#[derive(Debug, Default)]
pub struct Rng {
    stage: Stage<RequestQueue<Entropy>>,
    /// Features that the driver accepted.
    accepted: u64,
}

impl Rng {
    /// A device whose driver is not ready yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config::read(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.take(activation);
        self.resume()
    }

    fn pause(&mut self) {
        self.stage.pause();
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.stage.resume(NAME, "virtio-rng")
    }

    fn reset(&mut self) {
        self.stage = Stage::Inactive;
    }

    fn save(&self) -> Result<SavedDevice, DeviceError> {
        state::save(self)
    }

    fn restore(&mut self, saved: &SavedDevice, activation: Option<Activation>) -> Result<(), DeviceError> {
        state::restore(self, saved, activation)
    }
}

impl Rng {
    /// Gets ready to run on the driver's queues.
    fn take(&mut self, activation: Activation) {
        self.accepted = activation.features;
        let interrupt = activation.interrupt.clone();
        match ring::take_all(activation) {
            Ok([ring]) => self.stage = Stage::Paused(RequestQueue::new(ring, Entropy::new())),
            Err(error) => interrupt.needs_reset(&error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake_driver::{Buffer, FakeDriver};

    fn ask(driver: &mut FakeDriver, address: u64, length: u32) -> Vec<u8> {
        driver.queues[0].offer(&[Buffer::Writable(address, length)]);
        let (_, written) = driver.queues[0].wait_used();
        assert!(written <= length);
        driver.read(address, written as usize)
    }

    #[test]
    fn a_guest_gets_different_bytes_each_time_in_buffers_of_any_shape() {
        let mut rng = Rng::new();
        let mut driver = FakeDriver::new(&rng, 1 << 20);
        let buffer = driver.allocate(64);
        driver.activate(&mut rng);
        let first = ask(&mut driver, buffer, 64);
        let second = ask(&mut driver, buffer, 64);
        assert_eq!((first.len(), second.len()), (64, 64));
        assert_ne!(first, second);
        let other = driver.allocate(64);
        driver.queues[0].offer(&[Buffer::Writable(buffer, 10), Buffer::Writable(other, 20)]);
        assert_eq!(driver.queues[0].wait_used().1, 30);
        assert_ne!(driver.read(other, 20), vec![0; 20]);
        driver.queues[0].offer(&[Buffer::Readable(buffer, 10)]);
        assert_eq!(driver.queues[0].wait_used().1, 0, "there is nothing to write to");
    }

    #[test]
    fn a_greedy_guest_is_slowed_down_and_served_on() {
        let mut rng = Rng::new();
        let mut driver = FakeDriver::new(&rng, 1 << 20);
        let buffer = driver.allocate(1 << 16);
        driver.activate(&mut rng);
        let mut got = 0;
        while got < queue::BURST as usize * 3 / 2 {
            let bytes = ask(&mut driver, buffer, 1 << 16).len();
            assert!(bytes > 0 && bytes <= queue::MOST_AT_ONCE, "{bytes} bytes at once");
            got += bytes;
        }
    }

    #[test]
    fn a_broken_ring_ends_the_device_until_it_is_reset() {
        let mut rng = Rng::new();
        let mut driver = FakeDriver::new(&rng, 1 << 20);
        driver.activate(&mut rng);
        driver.queues[0].offer(&[Buffer::Writable(1 << 30, 64)]);
        let reason = driver.interrupt.wait_reset();
        assert!(reason.contains("not memory"), "{reason}");
        rng.reset();
        let mut driver = FakeDriver::new(&rng, 1 << 20);
        let buffer = driver.allocate(64);
        driver.activate(&mut rng);
        assert_eq!(ask(&mut driver, buffer, 64).len(), 64);
    }

    #[test]
    fn a_saved_device_goes_on_in_another_process() {
        let mut rng = Rng::new();
        let mut driver = FakeDriver::new(&rng, 1 << 20);
        let buffer = driver.allocate(64);
        driver.activate(&mut rng);
        ask(&mut driver, buffer, 64);
        assert!(matches!(rng.save(), Err(DeviceError::WrongPhase { .. })));
        rng.pause();
        driver.queues[0].offer(&[Buffer::Writable(buffer, 64)]);
        let saved = rng.save().unwrap();
        drop(rng);

        let saved = serde_json::from_slice(&serde_json::to_vec(&saved).unwrap()).unwrap();
        let mut rng = Rng::new();
        rng.restore(&saved, Some(driver.activation())).unwrap();
        assert_eq!(
            rng.save().unwrap(),
            saved,
            "a restored device is not what was saved"
        );
        assert!(
            driver.queues[0].take_used().is_none(),
            "a restored device ran before it was resumed"
        );
        rng.resume().unwrap();
        assert_eq!(driver.queues[0].wait_used().1, 64);
        assert_eq!(ask(&mut driver, buffer, 64).len(), 64);
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused() {
        let mut rng = Rng::new();
        let driver = FakeDriver::new(&rng, 1 << 20);
        let idle = rng.save().unwrap();
        driver.activate(&mut rng);
        rng.pause();
        let active = rng.save().unwrap();

        let refused = |saved: &SavedDevice, activation| {
            let error = Rng::new().restore(saved, activation).unwrap_err().to_string();
            assert!(error.contains("rng"), "{error}");
            error
        };
        assert!(refused(&active, None).contains("transport"));
        let mut other = active.clone();
        other.version = 9;
        assert!(refused(&other, Some(driver.activation())).contains("version 9"));
        let mut other = active.clone();
        other.kind = DeviceKind::Block;
        assert!(refused(&other, Some(driver.activation())).contains("Block"));
        let mut other = active.clone();
        other.state["driver"]["queues"][0]["size"] = 3.into();
        refused(&other, Some(driver.activation()));
        let mut other = active.clone();
        other.state["driver"]["features"] = u64::MAX.into();
        assert!(refused(&other, Some(driver.activation())).contains("features"));
        let mut other = active.clone();
        other.state["more"] = 1.into();
        refused(&other, Some(driver.activation()));
        Rng::new().restore(&idle, None).unwrap();
    }
}
