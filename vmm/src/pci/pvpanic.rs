//! pvpanic (QEMU docs/specs/pvpanic): one byte by which the guest's kernel tells that it has panicked.

use std::{fmt, sync::Arc};

use super::{ConfigSpace, Identity, PciFunction, SavedFunction};
use crate::virtio::device::DeviceError;

const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0011,
    revision: 1,
    class: 0x08_80_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// A page, so that it shares none with another function.
const MEMORY_SIZE: u64 = 0x1000;

/// The only register: reading gives the events that are understood, writing reports some.
const EVENTS: u64 = 0;
/// The guest has panicked. Whether it loads a crash kernel (bit 1) is its own matter and not asked for.
const PANICKED: u8 = 1 << 0;

/// Called when the guest says that it has panicked.
pub type OnPanic = Arc<dyn Fn() + Send + Sync>;

/// The function.
pub struct PvPanic {
    config: ConfigSpace,
    on_panic: OnPanic,
}

impl PvPanic {
    /// A function with its memory at `address`.
    pub fn new(address: u64, on_panic: OnPanic) -> Self {
        let mut config = ConfigSpace::new(IDENTITY);
        config.add_memory(MEMORY_SIZE, address);
        Self { config, on_panic }
    }
}

impl PciFunction for PvPanic {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.config.write(offset, data);
    }

    fn read_memory(&mut self, offset: u64, data: &mut [u8]) {
        if let (EVENTS, [events]) = (offset, data) {
            *events = PANICKED;
        }
    }

    fn write_memory(&mut self, offset: u64, data: &[u8]) {
        if let (EVENTS, [events]) = (offset, data)
            && events & PANICKED != 0
        {
            (self.on_panic)();
        }
    }

    fn save(&self) -> Result<SavedFunction, DeviceError> {
        Ok(SavedFunction::new(&self.config, None))
    }

    fn restore(&mut self, saved: &SavedFunction) -> Result<(), DeviceError> {
        saved.restore_config("pvpanic", &mut self.config)
    }
}

impl fmt::Debug for PvPanic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PvPanic").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn only_a_byte_with_the_panic_bit_at_the_register_is_a_panic() {
        let panics = Arc::new(AtomicU32::new(0));
        let mut function = PvPanic::new(0, {
            let panics = Arc::clone(&panics);
            Arc::new(move || {
                panics.fetch_add(1, Ordering::Relaxed);
            })
        });
        function.write_memory(0, &[2]);
        function.write_memory(1, &[1]);
        function.write_memory(0, &[1, 0]);
        assert_eq!(panics.load(Ordering::Relaxed), 0);
        function.write_memory(0, &[3]);
        assert_eq!(panics.load(Ordering::Relaxed), 1);
        let mut events = [0xff];
        function.read_memory(0, &mut events);
        assert_eq!(events, [PANICKED]);
    }
}
