//! Devices that are put on the bus of a machine that runs. Its guest finds them when it scans the bus again.

use std::os::fd::{OwnedFd, RawFd};

use super::{
    Attachments, Machine, MachineError,
    build::{place_disk, place_net},
    files::open_disk,
};
use crate::config::{DiskConfig, FileSource, NetConfig};

impl Machine {
    /// Puts a disk on the bus. The `n`-th of `attachments` is what the disk's segments call `Fd(n)`.
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
        let mut attached = Attached::new(attachments);
        let open = open_disk(disk, |source| {
            let what = || format!("segment {source} of disk {}", disk.serial);
            match source {
                FileSource::Fd(number) => Ok(attached.take(*number, what)?.into()),
                FileSource::Path(_) => Err(MachineError::Attachment {
                    what: what(),
                    reason: "a running machine opens no paths, send a descriptor",
                }),
            }
        })?;
        let mut bus = self.hardware.accesses.bus();
        place_disk(&mut bus, open, &self.hardware.vm, &self.ram)?;
        drop(bus);
        self.disks.push(disk.serial.clone());
        Ok(())
    }

    /// Puts a network interface on the bus. The `n`-th of `attachments` is what it calls tap `n`.
    ///
    /// # Errors
    ///
    /// [`MachineError`] for a hardware address in use, a full bus, or descriptors that are no taps. Nothing is changed then.
    pub fn add_net(&mut self, net: &NetConfig, attachments: Attachments) -> Result<(), MachineError> {
        net.check()?;
        let mac = net.hardware_address()?;
        if self.nets.contains(&mac) {
            return Err(MachineError::MacInUse(net.mac.clone()));
        }
        self.hardware.accesses.bus().next_address()?;
        let mut attached = Attached::new(attachments);
        let what = |number: RawFd| format!("tap {number} of the network interface {}", net.mac);
        let taps = net.taps.iter().map(|tap| attached.take(*tap, || what(*tap)));
        let taps = taps.collect::<Result<_, _>>()?;
        let mut bus = self.hardware.accesses.bus();
        place_net(&mut bus, self.nets.len(), net, taps, &self.hardware.vm, &self.ram)?;
        drop(bus);
        self.nets.push(mac);
        Ok(())
    }
}

/// Descriptors that came with a request, each to be taken once.
struct Attached(Vec<Option<OwnedFd>>);

impl Attached {
    fn new(attachments: Attachments) -> Self {
        Self(attachments.into_iter().map(Some).collect())
    }

    /// The descriptor called `number`, for `what`.
    fn take(&mut self, number: RawFd, what: impl FnOnce() -> String) -> Result<OwnedFd, MachineError> {
        usize::try_from(number)
            .ok()
            .and_then(|number| self.0.get_mut(number)?.take())
            .ok_or_else(|| MachineError::Attachment {
                what: what(),
                reason: "there is no such descriptor, or it is asked for twice",
            })
    }
}
