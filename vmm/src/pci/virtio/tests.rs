//! The transport with a device and a host made for the purpose.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::json;

use super::*;
use crate::memory;

const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 5;
const HOME: u64 = 0x40_0001_0000;

/// Remembers what KVM would have been told.
#[derive(Debug, Default)]
struct FakeHost {
    messages: Mutex<Vec<(u64, u32)>>,
    doorbells: Mutex<Vec<u64>>,
}

impl FakeHost {
    fn doorbells(&self) -> Vec<u64> {
        self.doorbells
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn take_messages(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.messages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PciHost for FakeHost {
    fn signal(&self, address: u64, data: u32) {
        self.messages.lock().unwrap().push((address, data));
    }

    fn attach_doorbell(&self, _: &EventFd, address: u64) -> io::Result<()> {
        let mut doorbells = self.doorbells.lock().unwrap();
        if doorbells.contains(&address) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        doorbells.push(address);
        Ok(())
    }

    fn detach_doorbell(&self, _: &EventFd, address: u64) -> io::Result<()> {
        self.doorbells.lock().unwrap().retain(|known| *known != address);
        Ok(())
    }
}

/// A device that keeps what it was activated with.
#[derive(Debug, Default)]
struct FakeDevice {
    activation: Arc<Mutex<Option<Activation>>>,
    refuses: Arc<AtomicBool>,
}

impl VirtioDevice for FakeDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[256, 64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset % 251).unwrap());
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(DeviceError::WrongPhase {
                device: "fake".to_owned(),
                what: "start",
            });
        }
        *self.activation.lock().unwrap() = Some(activation);
        Ok(())
    }

    fn pause(&mut self) {}

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {
        *self.activation.lock().unwrap() = None;
    }

    fn save(&self) -> Result<SavedDevice, DeviceError> {
        Ok(SavedDevice {
            kind: DeviceKind::Block,
            version: 1,
            state: json!(null),
        })
    }

    fn restore(&mut self, _: &SavedDevice, activation: Option<Activation>) -> Result<(), DeviceError> {
        *self.activation.lock().unwrap() = activation;
        Ok(())
    }
}

/// A function as a driver sees it.
struct Bench {
    function: VirtioFunction,
    host: Arc<FakeHost>,
    activation: Arc<Mutex<Option<Activation>>>,
    refuses: Arc<AtomicBool>,
}

impl Bench {
    fn new() -> Self {
        let host = Arc::new(FakeHost::default());
        let device = FakeDevice::default();
        let (activation, refuses) = (Arc::clone(&device.activation), Arc::clone(&device.refuses));
        let function = VirtioFunction::new(
            "fake".to_owned(),
            Box::new(device),
            HOME,
            Arc::clone(&host) as Arc<dyn PciHost>,
            memory::allocate(32).unwrap(),
        )
        .unwrap();
        Self {
            function,
            host,
            activation,
            refuses,
        }
    }

    fn write(&mut self, offset: u64, width: usize, value: u64) {
        self.function.write_memory(offset, &value.to_le_bytes()[..width]);
    }

    fn read(&mut self, offset: u64, width: usize) -> u64 {
        let mut data = [0; 8];
        data[..width].fill(0xff);
        self.function.read_memory(offset, &mut data[..width]);
        u64::from_le_bytes(data)
    }

    fn status(&mut self) -> u64 {
        self.read(0x14, 1)
    }

    /// Takes a driver's steps up to FEATURES_OK, accepting `features`.
    fn agree(&mut self, features: u64) {
        self.write(0x14, 1, 1);
        self.write(0x14, 1, 3);
        for select in 0..2 {
            self.write(0x08, 4, select);
            self.write(0x0c, 4, features >> (32 * select) & 0xffff_ffff);
        }
        self.write(0x14, 1, 11);
    }

    fn set_up_queue(&mut self, queue: u64, size: u64) {
        self.write(0x16, 2, queue);
        self.write(0x18, 2, size);
        self.write(0x1a, 2, queue + 1);
        for (register, address) in [(0x20, 0x10_0000), (0x28, 0x11_0000), (0x30, 0x12_0000)] {
            self.write(register, 4, address + queue * 0x4000);
            self.write(register + 4, 4, 0);
        }
        self.write(0x1c, 2, 1);
    }

    /// All that a good driver does.
    fn start(&mut self) {
        self.function.write_config(0x04, &[6, 0]);
        self.agree(FEATURES);
        self.set_up_queue(0, 128);
        self.set_up_queue(1, 64);
        self.write(0x14, 1, 15);
    }

    fn enable_msix(&mut self) {
        let control = self.function.offsets.msix + 2;
        self.function.write_config(control, &0x8000u16.to_le_bytes());
        for vector in 0..3u64 {
            self.write(0x4000 + vector * 16, 8, 0xfee0_0000);
            self.write(0x4008 + vector * 16, 4, 0x30 + vector);
            self.write(0x400c + vector * 16, 4, 0);
        }
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::clone(&self.activation.lock().unwrap().as_ref().unwrap().interrupt)
    }
}

#[test]
fn a_good_driver_gets_its_queues_to_the_device() {
    let mut bench = Bench::new();
    bench.start();
    assert_eq!(bench.status(), 15);
    let activation = bench.activation.lock().unwrap();
    let activation = activation.as_ref().expect("the device was not activated");
    assert_eq!(activation.features, FEATURES);
    let sizes: Vec<u16> = activation
        .queues
        .iter()
        .map(|queue| queue.as_ref().unwrap().queue.state().size)
        .collect();
    assert_eq!(sizes, [128, 64]);
}

#[test]
fn features_that_were_not_offered_or_without_version_1_are_not_agreed_on() {
    for features in [FEATURES | 1 << 3, 1 << 29] {
        let mut bench = Bench::new();
        bench.agree(features);
        assert_eq!(bench.status(), 3, "{features:#x}");
        bench.write(0x14, 1, 15);
        assert!(bench.activation.lock().unwrap().is_none());
    }
}

#[test]
fn queues_can_be_set_up_only_between_features_and_start() {
    let mut bench = Bench::new();
    bench.set_up_queue(0, 128);
    assert_eq!(
        (bench.read(0x18, 2), bench.read(0x1c, 2), bench.read(0x20, 4)),
        (256, 0, 0),
        "a queue was set up before the features were agreed on"
    );
    bench.start();
    bench.write(0x16, 2, 0);
    bench.write(0x18, 2, 64);
    bench.write(0x20, 4, 0x6000);
    assert_eq!(
        (bench.read(0x18, 2), bench.read(0x20, 4)),
        (128, 0x10_0000),
        "a queue in use was changed"
    );
    bench.write(0x0c, 4, 0);
    assert_eq!(
        bench.activation.lock().unwrap().as_ref().unwrap().features,
        FEATURES
    );
}

#[test]
fn sizes_that_are_none_are_ignored() {
    let mut bench = Bench::new();
    bench.agree(FEATURES);
    for size in [0, 3, 512, 0xffff] {
        bench.write(0x18, 2, size);
        assert_eq!(bench.read(0x18, 2), 256);
    }
    bench.write(0x16, 2, 7);
    assert_eq!(bench.read(0x18, 2), 0, "a queue that is not there has a size");
}

#[test]
fn a_queue_outside_memory_or_misaligned_needs_a_reset() {
    for address in [0x7fff_f000, 0x10_0001] {
        let mut bench = Bench::new();
        bench.agree(FEATURES);
        bench.set_up_queue(0, 128);
        bench.write(0x20, 4, address);
        bench.write(0x14, 1, 15);
        assert_eq!(bench.status(), 15 | 64, "{address:#x}");
        assert!(bench.activation.lock().unwrap().is_none());
        bench.write(0x14, 1, 0);
        assert_eq!(bench.status(), 0);
        bench.start();
        assert_eq!(bench.status(), 15, "the device does not start after its reset");
    }
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let mut bench = Bench::new();
    bench.refuses.store(true, Ordering::Relaxed);
    bench.start();
    assert_eq!(bench.status(), 15 | 64);
    bench.write(0x14, 1, 0);
    bench.refuses.store(false, Ordering::Relaxed);
    bench.start();
    assert_eq!(bench.status(), 15);
}

#[test]
fn interrupts_go_to_the_vectors_of_the_driver() {
    let mut bench = Bench::new();
    bench.enable_msix();
    bench.write(0x10, 2, 0);
    bench.start();
    let interrupt = bench.interrupt();
    interrupt.queue_used(1);
    interrupt.config_changed();
    assert_eq!(
        bench.host.take_messages(),
        [(0xfee0_0000, 0x32), (0xfee0_0000, 0x30)]
    );
    assert_eq!(
        bench.read(0x15, 1),
        1,
        "the generation of the configuration did not change"
    );
    bench.write(0x400c, 4, 1);
    interrupt.needs_reset("the ring is broken");
    assert_eq!(bench.host.take_messages(), []);
    assert_eq!(bench.status(), 15 | 64);
    bench.write(0x400c, 4, 0);
    assert_eq!(bench.host.take_messages(), [(0xfee0_0000, 0x30)]);
    bench.write(0x10, 2, 9);
    assert_eq!(
        bench.read(0x10, 2),
        0xffff,
        "a vector that is not there was taken"
    );
}

#[test]
fn without_msix_the_isr_tells_and_reading_clears_it() {
    let mut bench = Bench::new();
    bench.start();
    let interrupt = bench.interrupt();
    interrupt.queue_used(0);
    interrupt.config_changed();
    assert_eq!((bench.read(0x1000, 1), bench.read(0x1000, 1)), (3, 0));
    assert_eq!(bench.host.take_messages(), []);
}

#[test]
fn doorbells_follow_the_memory_of_the_function() {
    let mut bench = Bench::new();
    assert!(bench.host.doorbells().is_empty());
    bench.function.write_config(0x04, &[2, 0]);
    assert_eq!(bench.host.doorbells(), [HOME + 0x3000, HOME + 0x3004]);
    bench.function.write_config(0x10, &0xc000_0000u32.to_le_bytes());
    assert_eq!(bench.host.doorbells(), [0x40_c000_3000, 0x40_c000_3004]);
    bench.function.write_config(0x04, &[0, 0]);
    assert!(bench.host.doorbells().is_empty());
}

#[test]
fn a_doorbell_that_kvm_did_not_take_rings_all_the_same() {
    let mut bench = Bench::new();
    bench.start();
    bench.write(0x3004, 2, 1);
    bench.write(0x3008, 2, 2);
    bench.write(0x3002, 2, 0);
    let activation = bench.activation.lock().unwrap();
    let [first, second] = [0, 1].map(|queue| {
        let queue: &ActiveQueue = activation.as_ref().unwrap().queues[queue].as_ref().unwrap();
        queue.doorbell.read().ok()
    });
    assert_eq!((first, second), (None, Some(1)));
}

#[test]
fn the_window_in_configuration_space_reaches_the_structures() {
    let mut bench = Bench::new();
    let window = bench.function.offsets.window;
    let mut through = |offset: u32, length: u32| {
        bench.function.write_config(window + 8, &offset.to_le_bytes());
        bench.function.write_config(window + 12, &length.to_le_bytes());
        let mut data = [0; 4];
        bench.function.read_config(window + 16, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(through(0x12, 2) & 0xffff, 2, "number of queues");
    assert_eq!(through(0x2007, 1) & 0xff, 7, "configuration of the device");
    bench.function.write_config(window + 8, &0x14u32.to_le_bytes());
    bench.function.write_config(window + 12, &1u32.to_le_bytes());
    bench.function.write_config(window + 16, &[1, 0, 0, 0]);
    assert_eq!(bench.status(), 1);
    bench.function.write_config(window + 8, &0x7fffu32.to_le_bytes());
    bench.function.write_config(window + 12, &4u32.to_le_bytes());
    bench.function.write_config(window + 16, &[0; 4]);
    assert_eq!(bench.status(), 1, "an access beyond the BAR was let through");
}

#[test]
fn a_running_function_is_the_same_after_save_and_restore() {
    let mut bench = Bench::new();
    bench.enable_msix();
    bench.start();
    bench.interrupt().config_changed();
    let saved = bench.function.save().unwrap();
    let text = serde_json::to_string(&saved).unwrap();
    let mut other = Bench::new();
    other
        .function
        .restore(&serde_json::from_str(&text).unwrap())
        .unwrap();
    assert_eq!(other.function.save().unwrap(), saved);
    assert_eq!(other.host.doorbells(), bench.host.doorbells());
    other.interrupt().queue_used(0);
    assert_eq!(other.host.take_messages(), [(0xfee0_0000, 0x31)]);
}

#[test]
fn a_state_of_another_device_is_refused() {
    let mut bench = Bench::new();
    bench.start();
    let good = bench.function.save().unwrap();
    let mut other_config = good.clone();
    other_config.config[2] ^= 1;
    let mut no_transport = good.clone();
    no_transport.virtio = None;
    let mut version = good.clone();
    version.virtio.as_mut().unwrap().version = 9;
    for bad in [other_config, no_transport, version] {
        assert!(Bench::new().function.restore(&bad).is_err());
    }
}

/// Whatever a guest reads and writes wherever, nothing panics, and the device still works for a good driver after.
#[test]
fn any_accesses_at_all_do_no_harm() {
    let mut bench = Bench::new();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..200_000 {
        let (what, offset, value) = (next(), next(), next());
        let width = [1, 2, 4, 8][usize::try_from(what >> 8 & 3).unwrap()];
        let memory = match what >> 16 & 3 {
            0 => offset % 0x38,
            1 => 0x4000 + offset % 0x80,
            2 => offset % 0x8000,
            _ => offset,
        };
        let config = u16::try_from(offset % 0x1000 / width as u64 * width as u64).unwrap();
        match what & 3 {
            0 => bench.write(memory, width, value),
            1 => {
                bench.read(memory, width);
            }
            2 => bench
                .function
                .write_config(config, &value.to_le_bytes()[..width.min(4)]),
            _ => bench.function.read_config(config, &mut [0; 4][..width.min(4)]),
        }
    }
    bench.write(0x14, 1, 0);
    bench.start();
    assert_eq!(bench.status(), 15);
}
