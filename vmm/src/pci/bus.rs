//! Bus 0: which function an access is for.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{PciFunction, SavedFunction, host_bridge::HostBridge};
use crate::{
    memory::{
        ConfigPages,
        layout::{BAR_WINDOW_START, ECAM_SIZE, ECAM_START},
    },
    virtio::device::DeviceError,
};

/// Devices on a bus, the host bridge included.
const DEVICES: usize = 32;

/// Functions that can be placed.
pub const FUNCTIONS_MAX: usize = DEVICES - 1;

/// Size of the part of a function's configuration space that is not zero, and of a register.
const CONFIG_SPACE_SIZE: usize = 256;
const REGISTER: usize = 4;

/// Room for the memory of one function in the window of the host bridge. No BAR is larger.
const BAR_SPACING: u64 = 0x1_0000;

/// The bus has no free place.
#[derive(Debug, thiserror::Error)]
#[error("the PCI bus is full: it has {FUNCTIONS_MAX} devices")]
pub struct BusFull;

/// The bus.
pub struct PciBus {
    /// By device number; the first is the host bridge.
    functions: Vec<Box<dyn PciFunction>>,
    /// Where the guest reads configuration space, if it does not come here for that.
    pages: Option<Arc<ConfigPages>>,
}

/// The state of all functions, by device number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedBus {
    functions: Vec<SavedFunction>,
}

impl PciBus {
    /// A bus with nothing but the host bridge.
    pub fn new() -> Self {
        Self {
            functions: vec![Box::new(HostBridge::new())],
            pages: None,
        }
    }

    /// A bus with nothing but the host bridge, whose configuration space the guest reads from `pages`.
    ///
    /// What a register says then is what it said after the last write to its function. That is no difference, but for a driver
    /// that reads a virtio device through its window in configuration space (virtio 1.2, 4.1.4.9): it gets the value of the
    /// time when it last wrote there, as it does to choose what to read.
    pub fn shown_on(pages: Arc<ConfigPages>) -> Self {
        let mut bus = Self {
            pages: Some(pages),
            ..Self::new()
        };
        bus.show(0);
        bus
    }

    /// Where the memory of the next function is to be.
    ///
    /// # Errors
    ///
    /// [`BusFull`] when there is no place for one.
    pub fn next_address(&self) -> Result<u64, BusFull> {
        if self.functions.len() < DEVICES {
            Ok(BAR_WINDOW_START + BAR_SPACING * self.functions.len() as u64)
        } else {
            Err(BusFull)
        }
    }

    /// Places a function as the next device. On a running guest it appears when the guest scans the bus again.
    ///
    /// # Errors
    ///
    /// [`BusFull`].
    pub fn place(&mut self, function: Box<dyn PciFunction>) -> Result<(), BusFull> {
        self.next_address()?;
        self.functions.push(function);
        self.show(self.functions.len() - 1);
        Ok(())
    }

    /// The guest reads at `address`.
    pub fn read(&mut self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        match self.target(address) {
            Some(Target::Config(_, function, offset)) if is_config_access(offset, data.len()) => {
                function.read_config(offset, data);
            }
            Some(Target::Memory(function, offset)) => function.read_memory(offset, data),
            _ => {}
        }
    }

    /// The guest writes to `address`.
    pub fn write(&mut self, address: u64, data: &[u8]) {
        match self.target(address) {
            Some(Target::Config(device, function, offset)) if is_config_access(offset, data.len()) => {
                function.write_config(offset, data);
                self.show(device);
            }
            Some(Target::Memory(function, offset)) => function.write_memory(offset, data),
            _ => {}
        }
    }

    /// Stops all functions.
    pub fn pause(&mut self) {
        for function in &mut self.functions {
            function.pause();
        }
    }

    /// Lets all functions go on.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] of the first that cannot.
    pub fn resume(&mut self) -> Result<(), DeviceError> {
        self.functions
            .iter_mut()
            .try_for_each(|function| function.resume())
    }

    /// Saves all functions, which must be paused.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] of the first that cannot be saved.
    pub fn save(&self) -> Result<SavedBus, DeviceError> {
        let functions: Result<_, _> = self.functions.iter().map(|function| function.save()).collect();
        Ok(SavedBus {
            functions: functions?,
        })
    }

    /// Gives all functions, which must be fresh, a saved state.
    ///
    /// # Errors
    ///
    /// [`DeviceError::BadState`] when it is of another bus.
    pub fn restore(&mut self, saved: &SavedBus) -> Result<(), DeviceError> {
        if saved.functions.len() != self.functions.len() {
            return Err(DeviceError::BadState {
                device: "PCI bus".to_owned(),
                reason: format!(
                    "it has {} devices, this machine {}",
                    saved.functions.len(),
                    self.functions.len()
                ),
            });
        }
        self.functions
            .iter_mut()
            .zip(&saved.functions)
            .try_for_each(|(function, saved)| function.restore(saved))?;
        (0..self.functions.len()).for_each(|device| self.show(device));
        Ok(())
    }

    /// Brings what the guest reads of a device's configuration space up to date.
    fn show(&mut self, device: usize) {
        let (Some(pages), Some(function)) = (&self.pages, self.functions.get_mut(device)) else {
            return;
        };
        let mut space = [0; CONFIG_SPACE_SIZE];
        for (offset, register) in (0..).step_by(REGISTER).zip(space.chunks_exact_mut(REGISTER)) {
            function.read_config(offset, register);
        }
        pages.show(device as u64, &space);
    }

    /// Finds what answers at `address`.
    fn target(&mut self, address: u64) -> Option<Target<'_>> {
        if let Some(offset) = address
            .checked_sub(ECAM_START)
            .filter(|offset| *offset < ECAM_SIZE)
        {
            let place = ConfigAddress::of(offset)?;
            let function = self.functions.get_mut(place.device)?;
            return Some(Target::Config(place.device, function.as_mut(), place.offset));
        }
        self.functions.iter_mut().find_map(|function| {
            let memory = function.config().memory()?;
            memory
                .contains(&address)
                .then(|| Target::Memory(function.as_mut(), address - memory.start))
        })
    }
}

/// A function and where in it an access goes; its number, for configuration space.
enum Target<'a> {
    Config(usize, &'a mut dyn PciFunction, u16),
    Memory(&'a mut dyn PciFunction, u64),
}

/// An address within ECAM (PCI Express 5.0, 7.2.2): device, function, register.
struct ConfigAddress {
    device: usize,
    offset: u16,
}

impl ConfigAddress {
    /// `None` for functions other than 0, which no device has.
    fn of(offset: u64) -> Option<Self> {
        let function = offset >> 12 & 0x7;
        (function == 0).then_some(())?;
        Some(Self {
            device: usize::try_from(offset >> 15 & 0x1f).ok()?,
            offset: u16::try_from(offset & 0xfff).ok()?,
        })
    }
}

/// Whether an access to configuration space has a width and alignment that hardware would have to answer.
fn is_config_access(offset: u16, length: usize) -> bool {
    matches!(length, 1 | 2 | 4) && usize::from(offset).is_multiple_of(length)
}

impl Default for PciBus {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PciBus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PciBus")
            .field("functions", &self.functions.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, VolatileMemory};

    use super::*;
    use crate::pci::PvPanic;

    fn place(bus: &mut PciBus) -> Result<(), BusFull> {
        let address = bus.next_address()?;
        bus.place(Box::new(PvPanic::new(address, Arc::new(|| {}))))
    }

    fn bus() -> PciBus {
        let mut bus = PciBus::new();
        place(&mut bus).unwrap();
        bus
    }

    fn read(bus: &mut PciBus, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        bus.read(address, &mut data);
        data
    }

    #[test]
    fn devices_answer_in_configuration_space_and_empty_places_read_as_ones() {
        let mut bus = bus();
        assert_eq!(read(&mut bus, ECAM_START, 4), [0x36, 0x1b, 0x08, 0]);
        assert_eq!(read(&mut bus, ECAM_START + (1 << 15), 4), [0x36, 0x1b, 0x11, 0]);
        for nothing in [2 << 15, (1 << 15) + (1 << 12), 31 << 15] {
            assert_eq!(read(&mut bus, ECAM_START + nothing, 4), [0xff; 4]);
        }
        assert_eq!(
            read(&mut bus, ECAM_START, 8),
            [0xff; 8],
            "an access that is too wide"
        );
        assert_eq!(
            read(&mut bus, ECAM_START + 1, 2),
            [0xff; 2],
            "an access that is not aligned"
        );
    }

    #[test]
    fn pages_show_what_the_bus_would_answer() {
        let pages = Arc::new(ConfigPages::new().unwrap());
        let shown = |offset: u64| {
            let offset = usize::try_from(offset).unwrap();
            let place = pages.mapping().get_slice(offset, 4).unwrap();
            place.read_obj::<[u8; 4]>(0).unwrap().to_vec()
        };
        let mut bus = PciBus::shown_on(Arc::clone(&pages));
        assert_eq!(shown(1 << 15), [0xff; 4]);
        place(&mut bus).unwrap();
        let registers = |device: u64| (0..1024).map(move |register| (device << 15) + 4 * register);
        let assert_same = |bus: &mut PciBus| {
            for offset in registers(0).chain(registers(1)) {
                assert_eq!(shown(offset), read(bus, ECAM_START + offset, 4), "{offset:#x}");
            }
        };
        assert_same(&mut bus);
        bus.write(ECAM_START + (1 << 15) + 0x10, &[0xff; 4]);
        assert_eq!(
            shown((1 << 15) + 0x10),
            read(&mut bus, ECAM_START + (1 << 15) + 0x10, 4)
        );
        assert_same(&mut bus);
        let saved = bus.save().unwrap();
        bus.write(ECAM_START + (1 << 15) + 0x10, &[0; 4]);
        bus.restore(&saved).unwrap();
        assert_same(&mut bus);
    }

    #[test]
    fn memory_answers_where_the_guest_moved_it() {
        let mut bus = bus();
        let config = ECAM_START + (1 << 15);
        let home = BAR_WINDOW_START + BAR_SPACING;
        assert_eq!(
            read(&mut bus, home, 1),
            [0xff],
            "memory answers before it is switched on"
        );
        bus.write(config + 4, &[2]);
        assert_eq!(read(&mut bus, home, 1), [1]);
        bus.write(config + 0x10, &0x1234_5000u32.to_le_bytes());
        bus.write(config + 0x14, &0x41u32.to_le_bytes());
        assert_eq!(read(&mut bus, home, 1), [0xff]);
        assert_eq!(read(&mut bus, 0x41_1234_5000, 1), [1]);
    }

    #[test]
    fn a_full_bus_takes_no_more() {
        let mut bus = PciBus::new();
        for _ in 0..FUNCTIONS_MAX {
            place(&mut bus).unwrap();
        }
        assert!(place(&mut bus).is_err());
    }

    #[test]
    fn a_bus_takes_over_the_state_of_its_like_only() {
        let mut moved = bus();
        moved.write(ECAM_START + (1 << 15) + 0x10, &0x1234_5000u32.to_le_bytes());
        let saved = moved.save().unwrap();
        let mut fresh = bus();
        fresh.restore(&saved).unwrap();
        assert_eq!(fresh.save().unwrap(), saved);
        assert!(PciBus::new().restore(&saved).is_err());
    }
}
