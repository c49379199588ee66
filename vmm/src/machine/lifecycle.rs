//! What can be done with a machine once it is built.

use std::process;

use super::{Machine, MachineError};
use crate::{
    config::{ExitReport, hardware_address_text},
    control::protocol::{MachinePhase, MachineState},
    memory::GuestRam,
    snapshot::{MachineSnapshot, SNAPSHOT_VERSION},
};

impl Machine {
    /// Stops vCPUs, then devices; returns when they stand still. Without effect on a machine that does.
    pub fn pause(&mut self) {
        if self.phase == MachinePhase::Running {
            self.hardware.vcpus.pause();
            self.hardware.accesses.bus().pause();
            self.phase = MachinePhase::Paused;
        }
    }

    /// Lets devices, then vCPUs go on. Without effect on a machine that runs.
    ///
    /// # Errors
    ///
    /// [`MachineError::Device`] when a device's worker cannot be started.
    pub fn resume(&mut self) -> Result<(), MachineError> {
        if self.phase == MachinePhase::Paused {
            self.hardware.accesses.bus().resume()?;
            if self.hardware.vcpus.first_entry().is_some() {
                self.hardware.vcpus.excuse_pause();
            }
            self.hardware.vcpus.resume();
            self.phase = MachinePhase::Running;
        }
        Ok(())
    }

    /// How the machine is.
    pub fn state(&self) -> MachineState {
        let setup = self
            .hardware
            .vcpus
            .first_entry()
            .map_or(0, |moment| self.started.until(moment).as_micros());
        MachineState {
            name: self.config.name.clone(),
            phase: self.phase,
            pid: process::id(),
            vcpus: self.config.vcpus,
            memory_mib: self.config.memory_mib,
            disks: self.disks.clone(),
            nets: self.nets.iter().copied().map(hardware_address_text).collect(),
            setup_us: u64::try_from(setup).unwrap_or(u64::MAX),
        }
    }

    /// How the machine has ended, if it has.
    pub fn ended(&self) -> Option<ExitReport> {
        self.endings.report()
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Saves all but the memory's contents.
    ///
    /// # Errors
    ///
    /// [`MachineError::Phase`] unless the machine is paused, and what KVM or a device says.
    pub fn save(&self) -> Result<MachineSnapshot, MachineError> {
        self.must_be_paused()?;
        // vCPUs first: reading them can still deliver what devices have sent.
        let vcpus = self.hardware.vcpus.save(&self.hardware.host)?;
        Ok(MachineSnapshot {
            version: SNAPSHOT_VERSION,
            memory_mib: self.config.memory_mib,
            disks: self.disks.clone(),
            clock: self.hardware.vm.save_clock()?,
            vcpus,
            bus: self.hardware.accesses.bus().save()?,
        })
    }

    /// Takes over a saved state, in a machine that was built like the saved one, has the same memory contents and has not
    /// run yet.
    ///
    /// # Errors
    ///
    /// [`MachineError::BadState`] for the state of another machine, [`MachineError::Phase`] for a machine that has run.
    pub fn restore(&mut self, snapshot: &MachineSnapshot) -> Result<(), MachineError> {
        self.must_be_paused()?;
        if self.hardware.vcpus.first_entry().is_some() {
            return Err(MachineError::Phase {
                now: "not fresh",
                needed: "a state can be given only to a machine that has not run",
            });
        }
        snapshot.check(self.config.memory_mib, self.hardware.vcpus.count(), &self.disks)?;
        self.hardware.vm.restore_clock(snapshot.clock)?;
        self.hardware.vcpus.restore(&snapshot.vcpus)?;
        // Devices last: what they deliver while they are restored must find the local APICs as they were.
        Ok(self.hardware.accesses.bus().restore(&snapshot.bus)?)
    }

    fn must_be_paused(&self) -> Result<(), MachineError> {
        match self.phase {
            MachinePhase::Paused => Ok(()),
            MachinePhase::Running => Err(MachineError::Phase {
                now: "running",
                needed: "pause it first",
            }),
        }
    }
}
