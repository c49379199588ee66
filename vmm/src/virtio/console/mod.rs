//! Console with one port (virtio 1.2, section 5.3): takes the guest's kernel log into a bounded file.
//!
//! It is a one-way street. The guest's input queue exists, because its driver wants one, and stays empty. The file is
//! described in [`ring_file`]; the core writes what comes before the driver to the same [`ConsoleLog`].
//!
//! `pause` writes out what is in the transmit queue before it returns: called when the guest has panicked, nothing that
//! the guest has said is lost.

mod config;
mod queue;
pub mod ring_file;
mod state;

pub use ring_file::{ConsoleLog, RingFileError};

use super::{
    device::{Activation, DeviceError, DeviceKind, SavedDevice, VirtioDevice},
    requests::RequestQueue,
    ring::{self, RING_FEATURES},
    stage::Stage,
};
use queue::Output;

const NAME: &str = "console";

/// Input, output.
const QUEUE_SIZES: [u16; 2] = [64, 64];

/// The device.
#[derive(Debug)]
pub struct Console {
    log: ConsoleLog,
    stage: Stage<RequestQueue<Output>>,
    /// Features that the driver accepted.
    accepted: u64,
}

impl Console {
    /// A console that writes to `log`.
    pub fn new(log: ConsoleLog) -> Self {
        Self {
            log,
            stage: Stage::Inactive,
            accepted: 0,
        }
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
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
        if let Some(output) = self.stage.pause() {
            output.drain();
        }
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.stage.resume(NAME, "virtio-console")
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

impl Console {
    /// Gets ready to run on the driver's queues.
    fn take(&mut self, activation: Activation) {
        self.accepted = activation.features;
        let interrupt = activation.interrupt.clone();
        match ring::take_all(activation) {
            Ok([input, output]) => {
                self.stage = Stage::Paused(RequestQueue::new(output, Output::new(self.log.clone(), input)));
            }
            Err(error) => interrupt.needs_reset(&error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "the files and texts are small")]

    use std::{fs::File, os::unix::fs::FileExt};

    use super::*;
    use crate::virtio::fake_driver::{Buffer, FakeDriver};

    const INPUT: usize = 0;
    const OUTPUT: usize = 1;

    fn console() -> (File, Console) {
        let file = tempfile::tempfile().unwrap();
        let log = ConsoleLog::new(file.try_clone().unwrap(), 8192).unwrap();
        (file, Console::new(log))
    }

    fn content(file: &File) -> String {
        let mut content = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        String::from_utf8(content).unwrap()
    }

    fn print(driver: &mut FakeDriver, text: &str) {
        let address = driver.allocate_with(text.as_bytes());
        driver.queues[OUTPUT].offer(&[Buffer::Readable(address, text.len() as u32)]);
    }

    #[test]
    fn what_the_guest_prints_is_in_the_file_and_its_input_stays_empty() {
        let (file, mut console) = console();
        let mut driver = FakeDriver::new(&console, 1 << 20);
        driver.activate(&mut console);
        let buffer = driver.allocate(64);
        driver.queues[INPUT].offer(&[Buffer::Writable(buffer, 64)]);
        for line in ["hello\n", "from\n", "the guest\n"] {
            print(&mut driver, line);
            driver.queues[OUTPUT].wait_used();
        }
        assert_eq!(content(&file), "hello\nfrom\nthe guest\n");
        assert_eq!(driver.queues[INPUT].take_used(), None);
    }

    #[test]
    fn a_pause_writes_out_what_the_guest_has_said() {
        let (file, mut console) = console();
        let mut driver = FakeDriver::new(&console, 1 << 20);
        driver.activate(&mut console);
        console.pause();
        for line in 0..60 {
            print(&mut driver, &format!("line {line}\n"));
        }
        console.pause();
        assert!(content(&file).ends_with("line 58\nline 59\n"));
        console.resume().unwrap();
        for _ in 0..60 {
            driver.queues[OUTPUT].wait_used();
        }
    }

    #[test]
    fn a_chain_longer_than_the_file_leaves_its_end() {
        let (file, mut console) = console();
        let mut driver = FakeDriver::new(&console, 1 << 20);
        driver.activate(&mut console);
        let text = "x".repeat(100_000) + "the end";
        print(&mut driver, &text);
        driver.queues[OUTPUT].wait_used();
        assert!(content(&file).ends_with("xthe end"));
        assert!(file.metadata().unwrap().len() <= 8192);
    }

    #[test]
    fn a_saved_console_goes_on_in_another_process() {
        let (file, mut first) = console();
        let mut driver = FakeDriver::new(&first, 1 << 20);
        driver.activate(&mut first);
        print(&mut driver, "first\n");
        driver.queues[OUTPUT].wait_used();
        first.pause();
        let saved = first.save().unwrap();

        let log = ConsoleLog::new(file.try_clone().unwrap(), 8192).unwrap();
        let mut second = Console::new(log);
        second.restore(&saved, Some(driver.activation())).unwrap();
        assert_eq!(second.save().unwrap(), saved);
        second.resume().unwrap();
        print(&mut driver, "second\n");
        driver.queues[OUTPUT].wait_used();
        assert_eq!(content(&file), "first\nsecond\n");
    }
}
