//! The common configuration structure (virtio 1.2, 4.1.4.3): the registers by which a driver agrees on features and sets
//! up queues.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::{
    interrupt::VirtioInterrupt,
    status::{self, DRIVER, DRIVER_OK, FEATURES_OK, StatusWrite},
};
use crate::memory::GuestRam;

/// Bytes of the structure.
pub(super) const SIZE: u64 = 0x38;

/// Feature bits that matter to the transport.
const VERSION_1: u64 = 1 << 32;
const RING_EVENT_IDX: u64 = 1 << 29;

/// The registers, with offset and width. An access must hit one of them exactly.
const REGISTERS: &[(u64, usize, Register)] = &[
    (0x00, 4, Register::DeviceFeatureSelect),
    (0x04, 4, Register::DeviceFeature),
    (0x08, 4, Register::DriverFeatureSelect),
    (0x0c, 4, Register::DriverFeature),
    (0x10, 2, Register::ConfigVector),
    (0x12, 2, Register::QueueCount),
    (0x14, 1, Register::Status),
    (0x15, 1, Register::Generation),
    (0x16, 2, Register::QueueSelect),
    (0x18, 2, Register::QueueSize),
    (0x1a, 2, Register::QueueVector),
    (0x1c, 2, Register::QueueEnable),
    (0x1e, 2, Register::QueueNotifyOffset),
    (0x20, 4, Register::QueueAddress(Area::Descriptors, Half::Low)),
    (0x24, 4, Register::QueueAddress(Area::Descriptors, Half::High)),
    (0x28, 4, Register::QueueAddress(Area::Driver, Half::Low)),
    (0x2c, 4, Register::QueueAddress(Area::Driver, Half::High)),
    (0x30, 4, Register::QueueAddress(Area::Device, Half::Low)),
    (0x34, 4, Register::QueueAddress(Area::Device, Half::High)),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    QueueCount,
    Status,
    Generation,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    QueueAddress(Area, Half),
}

/// The three areas of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Area {
    Descriptors,
    Driver,
    Device,
}

/// Half of a 64-bit register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Low,
    High,
}

/// What a write asks the transport to do with the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Bring it back to the start.
    Reset,
    /// Start it: the driver is ready.
    Activate,
}

/// What a driver has set up so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CommonConfig {
    offered: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

/// What a driver has set up of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueSetup {
    max_size: u16,
    size: u16,
    enabled: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
}

impl QueueSetup {
    fn of(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            descriptors: 0,
            driver: 0,
            device: 0,
        }
    }

    fn address(&mut self, area: Area) -> &mut u64 {
        match area {
            Area::Descriptors => &mut self.descriptors,
            Area::Driver => &mut self.driver,
            Area::Device => &mut self.device,
        }
    }

    /// The queue as the device gets it; the reason when the driver's set-up is none.
    fn build(&self, features: u64, ram: &GuestRam) -> Result<Queue, String> {
        let mut queue = Queue::new(self.max_size).map_err(|error| error.to_string())?;
        let built = queue
            .try_set_size(self.size)
            .and_then(|()| queue.try_set_desc_table_address(GuestAddress(self.descriptors)))
            .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(self.driver)))
            .and_then(|()| queue.try_set_used_ring_address(GuestAddress(self.device)));
        built.map_err(|error| error.to_string())?;
        queue.set_event_idx(features & RING_EVENT_IDX != 0);
        queue.set_ready(true);
        if queue.is_valid(ram.as_ref()) {
            Ok(queue)
        } else {
            Err("it does not lie in guest memory".to_owned())
        }
    }
}

impl CommonConfig {
    /// The registers of a device that offers `features` and has queues of at most these sizes.
    pub(super) fn new(features: u64, queue_max_sizes: &[u16]) -> Self {
        Self {
            offered: features,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            queues: queue_max_sizes.iter().copied().map(QueueSetup::of).collect(),
        }
    }

    /// As after a reset.
    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(self.offered, &sizes);
    }

    /// Whether `saved` is of a device like this one.
    pub(super) fn is_like(&self, saved: &Self) -> bool {
        let sizes =
            |config: &Self| -> Vec<u16> { config.queues.iter().map(|queue| queue.max_size).collect() };
        self.offered == saved.offered && sizes(self) == sizes(saved)
    }

    /// The features that the driver accepted.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Every queue as the device gets it, `None` for one that the driver left disabled.
    ///
    /// # Errors
    ///
    /// Why an enabled queue is none.
    pub(super) fn build_queues(&self, ram: &GuestRam) -> Result<Vec<Option<Queue>>, String> {
        (0..)
            .zip(&self.queues)
            .map(|(index, setup): (usize, _)| {
                setup
                    .enabled
                    .then(|| setup.build(self.accepted, ram))
                    .transpose()
                    .map_err(|reason| format!("queue {index} was set up wrongly: {reason}"))
            })
            .collect()
    }

    /// The driver reads at `offset`. What is no register stays as it is in `data`.
    pub(super) fn read(&self, offset: u64, data: &mut [u8], interrupt: &VirtioInterrupt) {
        let Some(register) = register(offset, data.len()) else {
            return;
        };
        let queue = self.queues.get(usize::from(self.queue_select));
        let value = match register {
            Register::DeviceFeatureSelect => self.device_feature_select,
            Register::DeviceFeature => word(self.offered, self.device_feature_select),
            Register::DriverFeatureSelect => self.driver_feature_select,
            Register::DriverFeature => word(self.accepted, self.driver_feature_select),
            Register::ConfigVector => interrupt.config_vector().into(),
            Register::QueueCount => u32::try_from(self.queues.len()).unwrap_or(0),
            Register::Status => interrupt.status().into(),
            Register::Generation => interrupt.generation().into(),
            Register::QueueSelect => self.queue_select.into(),
            // A queue that is not there has size 0.
            Register::QueueSize => queue.map_or(0, |queue| queue.size.into()),
            Register::QueueVector => interrupt.queue_vector(self.queue_select).into(),
            Register::QueueEnable => queue.is_some_and(|queue| queue.enabled).into(),
            Register::QueueNotifyOffset => queue.map_or(0, |_| self.queue_select.into()),
            Register::QueueAddress(area, half) => queue.map_or(0, |queue| {
                let address = *QueueSetup::address(&mut queue.clone(), area);
                word(address, half as u32)
            }),
        };
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    /// The driver writes at `offset`.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], interrupt: &VirtioInterrupt) -> Option<Action> {
        let register = register(offset, data.len())?;
        let mut bytes = [0; 4];
        for (byte, value) in bytes.iter_mut().zip(data) {
            *byte = *value;
        }
        let value = u32::from_le_bytes(bytes);
        let half = u16::try_from(value).unwrap_or(u16::MAX);
        let status = interrupt.status();
        // Queues are the driver's to set up between the agreement on features and the start of the device.
        let queues_open = status & (FEATURES_OK | DRIVER_OK) == FEATURES_OK;
        match register {
            Register::DeviceFeatureSelect => self.device_feature_select = value,
            Register::DriverFeatureSelect => self.driver_feature_select = value,
            Register::DriverFeature if status & (DRIVER | FEATURES_OK) == DRIVER => {
                set_word(&mut self.accepted, self.driver_feature_select, value);
            }
            Register::ConfigVector => interrupt.set_config_vector(half),
            Register::Status => return self.write_status(value, interrupt),
            Register::QueueSelect => self.queue_select = half,
            Register::QueueVector if queues_open => interrupt.set_queue_vector(self.queue_select, half),
            Register::QueueSize | Register::QueueEnable | Register::QueueAddress(..) if queues_open => {
                self.write_queue(register, value);
            }
            _ => {}
        }
        None
    }

    fn write_queue(&mut self, register: Register, value: u32) {
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        match register {
            Register::QueueSize => {
                if let Ok(size) = u16::try_from(value)
                    && size.is_power_of_two()
                    && size <= queue.max_size
                {
                    queue.size = size;
                }
            }
            // Writing 0 is not for drivers.
            Register::QueueEnable => queue.enabled |= value == 1,
            Register::QueueAddress(area, half) => set_word(queue.address(area), half as u32, value),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32, interrupt: &VirtioInterrupt) -> Option<Action> {
        let new = u8::try_from(value).unwrap_or(u8::MAX);
        match status::judge(interrupt.status(), new) {
            StatusWrite::Reset => Some(Action::Reset),
            StatusWrite::Forbidden(what) => {
                interrupt.complain(what);
                None
            }
            StatusWrite::Add(mut bits) => {
                if bits & FEATURES_OK != 0 && !self.features_fit() {
                    // Left out, which the driver sees when it reads the status back.
                    bits &= !(FEATURES_OK | DRIVER_OK);
                }
                interrupt.add_status(bits);
                (bits & DRIVER_OK != 0).then_some(Action::Activate)
            }
        }
    }

    fn features_fit(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & VERSION_1 != 0
    }
}

fn register(offset: u64, length: usize) -> Option<Register> {
    REGISTERS
        .iter()
        .find(|(start, width, _)| (*start, *width) == (offset, length))
        .map(|(_, _, register)| *register)
}

/// The 32 bits of `value` that `select` names; 0 beyond the second.
fn word(value: u64, select: u32) -> u32 {
    let shifted = value.checked_shr(select.saturating_mul(32)).unwrap_or(0);
    u32::try_from(shifted & u64::from(u32::MAX)).expect("masked to 32 bits")
}

/// Replaces those bits.
fn set_word(value: &mut u64, select: u32, new: u32) {
    if let 0 | 1 = select {
        let shift = select * 32;
        *value = *value & !(u64::from(u32::MAX) << shift) | u64::from(new) << shift;
    }
}
