//! The state of a whole machine as plain data, apart from the contents of its memory.

use serde::{Deserialize, Serialize};

use crate::{
    kvm::{ClockState, VcpuState},
    machine::MachineError,
    pci::SavedBus,
};

/// Version of [`MachineSnapshot`]; its parts have their own.
pub const SNAPSHOT_VERSION: u32 = 1;

/// What a machine was when it was saved.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSnapshot {
    /// [`SNAPSHOT_VERSION`] of the writer.
    pub version: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Serials of the disks on the bus, in order.
    pub disks: Vec<String>,
    /// The guest's clock.
    pub clock: ClockState,
    /// Every vCPU, by index.
    pub vcpus: Vec<VcpuState>,
    /// The PCI bus with all devices.
    pub bus: SavedBus,
}

impl MachineSnapshot {
    /// Checks that a machine of this make can take it over.
    pub(crate) fn check(&self, memory_mib: u32, vcpus: usize, disks: &[String]) -> Result<(), MachineError> {
        let bad = |reason: String| Err(MachineError::BadState(reason));
        if self.version != SNAPSHOT_VERSION {
            return bad(format!(
                "its version is {}, this binary knows {SNAPSHOT_VERSION}",
                self.version
            ));
        }
        if self.memory_mib != memory_mib {
            return bad(format!(
                "it has {} MiB of memory, this machine {memory_mib}",
                self.memory_mib
            ));
        }
        if self.vcpus.len() != vcpus {
            return bad(format!("it has {} vCPUs, this machine {vcpus}", self.vcpus.len()));
        }
        if self.disks != disks {
            return bad(format!(
                "its disks are [{}], this machine's [{}]",
                self.disks.join(", "),
                disks.join(", ")
            ));
        }
        Ok(())
    }
}
