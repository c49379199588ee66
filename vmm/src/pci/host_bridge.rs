//! The host bridge: a function without registers of its own, which tells the guest that the bus is there.

use super::{ConfigSpace, Identity, PciFunction, SavedFunction};
use crate::virtio::device::DeviceError;

/// "QEMU PCIe host bridge" of Red Hat's range for virtual devices (docs/specs/pci-ids of QEMU).
const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// The function at device 0.
pub(super) struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    pub(super) fn new() -> Self {
        Self {
            config: ConfigSpace::new(IDENTITY),
        }
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.config.write(offset, data);
    }

    fn read_memory(&mut self, _: u64, _: &mut [u8]) {}

    fn write_memory(&mut self, _: u64, _: &[u8]) {}

    fn save(&self) -> Result<SavedFunction, DeviceError> {
        Ok(SavedFunction::new(&self.config, None))
    }

    fn restore(&mut self, saved: &SavedFunction) -> Result<(), DeviceError> {
        saved.restore_config("host bridge", &mut self.config)
    }
}
