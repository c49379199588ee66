//! What can be done with a machine once it is built.

use std::{fs::File, process};

use super::{Attachments, Machine, MachineError, build::place_disk, files::open_disk};
use crate::{
    config::{DiskConfig, ExitReport, FileSource},
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

    /// Puts a disk on the bus; the guest finds it when it scans again. The `n`-th of `attachments` is what the disk's
    /// segments call `Fd(n)`.
    ///
    /// # Errors
    ///
    /// [`MachineError`] for a serial in use, a full bus, or files that do not make a disk. Nothing is changed then.
    pub fn add_disk(&mut self, disk: &DiskConfig, attachments: Attachments) -> Result<(), MachineError> {
        disk.check()?;
        if self.disks.contains(&disk.serial) {
            return Err(MachineError::SerialInUse(disk.serial.clone()));
        }
        self.hardware.accesses.bus().next_address()?;
        let mut attachments: Vec<Option<File>> = attachments
            .into_iter()
            .map(|descriptor| Some(descriptor.into()))
            .collect();
        let open = open_disk(disk, |source| {
            let missing = |reason| MachineError::Attachment {
                serial: disk.serial.clone(),
                segment: source.to_string(),
                reason,
            };
            let FileSource::Fd(number) = source else {
                return Err(missing("a running machine opens no paths, send a descriptor"));
            };
            usize::try_from(*number)
                .ok()
                .and_then(|number| attachments.get_mut(number)?.take())
                .ok_or_else(|| missing("there is no such descriptor, or another segment has it"))
        })?;
        place_disk(
            &mut self.hardware.accesses.bus(),
            open,
            &self.hardware.vm,
            &self.ram,
        )?;
        self.disks.push(disk.serial.clone());
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
