//! A virtio device as a PCI function (virtio 1.2, section 4.1; modern interface only).
//!
//! Doorbells reach the device's worker through KVM (ioeventfd) without a way through here; interrupts go from the worker
//! through [`interrupt`] to KVM. What remains for the transport is the set-up, on the thread of the vCPU that does it.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::{
    capabilities::{NOTIFY, NOTIFY_MULTIPLIER, Offsets, Structure, Window},
    common_config::{Action, CommonConfig},
    interrupt::{SavedInterrupt, VirtioInterrupt},
};
use super::{ConfigSpace, Identity, PciFunction, PciHost, SavedFunction};
use crate::{
    memory::GuestRam,
    virtio::device::{
        Activation, ActiveQueue, DeviceError, DeviceKind, Interrupt, SavedDevice, VirtioDevice,
    },
};

mod capabilities;
mod common_config;
mod interrupt;
mod status;

/// Vendor of virtio devices.
const VENDOR: u16 = 0x1af4;
/// Device id of the first device type.
const DEVICE_BASE: u16 = 0x1040;
/// Version of [`SavedTransport`].
const SAVED_VERSION: u32 = 1;

/// The function.
pub struct VirtioFunction {
    name: String,
    config: ConfigSpace,
    offsets: Offsets,
    common: CommonConfig,
    device: Box<dyn VirtioDevice>,
    active: bool,
    doorbells: Doorbells,
    interrupt: Arc<VirtioInterrupt>,
    ram: GuestRam,
}

/// The state of the transport and its device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedTransport {
    version: u32,
    common: CommonConfig,
    interrupt: SavedInterrupt,
    active: bool,
    device: SavedDevice,
}

impl VirtioFunction {
    /// Makes `device` a function with its memory at `address`. `name` is for messages.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Worker`] when the process has no descriptor left for a doorbell.
    ///
    /// # Panics
    ///
    /// For a device of more than 65,535 queues.
    pub fn new(
        name: String,
        device: Box<dyn VirtioDevice>,
        address: u64,
        host: Arc<dyn PciHost>,
        ram: GuestRam,
    ) -> Result<Self, DeviceError> {
        let kind = device.kind();
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + kind as u16,
            revision: 1,
            class: class(kind),
            subsystem_vendor: VENDOR,
            subsystem: DEVICE_BASE + kind as u16,
        });
        config.add_memory(capabilities::MEMORY_SIZE, address);
        let queues = u16::try_from(device.queue_max_sizes().len()).expect("a device has few queues");
        let offsets = capabilities::add(&mut config, queues + 1);
        let doorbells = Doorbells::new(Arc::clone(&host), queues).map_err(|source| DeviceError::Worker {
            device: name.clone(),
            source,
        })?;
        Ok(Self {
            common: CommonConfig::new(device.features(), device.queue_max_sizes()),
            interrupt: Arc::new(VirtioInterrupt::new(name.clone(), host, queues)),
            name,
            config,
            offsets,
            device,
            active: false,
            doorbells,
            ram,
        })
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Reset => self.reset(),
            Action::Activate => {
                if let Err(reason) = self.activate() {
                    self.interrupt.needs_reset(&reason);
                }
            }
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.active = false;
        // After the device, whose worker may have complained until it stood still.
        self.common.reset();
        self.interrupt.reset();
    }

    fn activate(&mut self) -> Result<(), String> {
        let activation = self.activation()?;
        self.device
            .activate(activation)
            .map_err(|error| error.to_string())?;
        self.active = true;
        Ok(())
    }

    fn activation(&self) -> Result<Activation, String> {
        let queues = self.common.build_queues(&self.ram)?;
        let queues: Result<Vec<_>, String> = (0..)
            .zip(queues)
            .map(|(index, queue)| {
                queue
                    .map(|queue| {
                        let doorbell = self.doorbells.handle(index)?;
                        Ok(ActiveQueue {
                            index,
                            queue,
                            doorbell,
                        })
                    })
                    .transpose()
            })
            .collect();
        Ok(Activation {
            memory: GuestRam::clone(&self.ram),
            features: self.common.accepted(),
            queues: queues?,
            interrupt: Arc::clone(&self.interrupt) as Arc<dyn Interrupt>,
        })
    }

    /// What follows from a change of configuration space.
    fn follow_config(&mut self) {
        let control = self.msix_control();
        self.interrupt.with_msix(|msix| msix.set_control(control));
        let memory = self.config.memory();
        self.doorbells
            .follow(memory.map(|memory| memory.start.saturating_add(NOTIFY)));
    }

    fn msix_control(&self) -> u16 {
        u16::from_le_bytes(self.config.bytes(self.offsets.msix + 2))
    }

    /// Whether an access to configuration space touches the data of the window into the BAR.
    fn hits_window(&self, offset: u16, length: usize) -> bool {
        let data = self.offsets.window + Window::DATA;
        offset == data && length <= 4
    }
}

impl PciFunction for VirtioFunction {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        if self.hits_window(offset, data.len())
            && let Some(window) = Window::of(&self.config, self.offsets.window)
        {
            let mut value = [0xff; 4];
            if let Some(part) = value.get_mut(..window.length) {
                self.read_memory(window.offset, part);
            }
            self.config.write(offset, &value);
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.config.write(offset, data);
        if self.hits_window(offset, data.len())
            && let Some(window) = Window::of(&self.config, self.offsets.window)
        {
            let value: [u8; 4] = self.config.bytes(offset);
            self.write_memory(window.offset, value.get(..window.length).unwrap_or_default());
        }
        self.follow_config();
    }

    fn read_memory(&mut self, offset: u64, data: &mut [u8]) {
        match capabilities::structure(offset, data.len()) {
            Some((Structure::Common, offset)) => self.common.read(offset, data, &self.interrupt),
            Some((Structure::Isr, _)) => data.fill(self.interrupt.take_isr()),
            Some((Structure::Device, offset)) => self.device.read_config(offset, data),
            Some((Structure::MsixTable, offset)) => self.interrupt.with_msix(|msix| {
                msix.read_table(offset, data);
                Vec::new()
            }),
            Some((Structure::MsixPending, offset)) => self.interrupt.with_msix(|msix| {
                msix.read_pending(offset, data);
                Vec::new()
            }),
            Some((Structure::Notify, _)) | None => {}
        }
    }

    fn write_memory(&mut self, offset: u64, data: &[u8]) {
        match capabilities::structure(offset, data.len()) {
            Some((Structure::Common, offset)) => {
                if let Some(action) = self.common.write(offset, data, &self.interrupt) {
                    self.perform(action);
                }
            }
            Some((Structure::Device, offset)) => self.device.write_config(offset, data),
            Some((Structure::Notify, offset)) => self.doorbells.ring(offset),
            Some((Structure::MsixTable, offset)) => {
                self.interrupt.with_msix(|msix| msix.write_table(offset, data));
            }
            Some((Structure::Isr | Structure::MsixPending, _)) | None => {}
        }
    }

    fn pause(&mut self) {
        self.device.pause();
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.device.resume()
    }

    fn save(&self) -> Result<SavedFunction, DeviceError> {
        let transport = SavedTransport {
            version: SAVED_VERSION,
            common: self.common.clone(),
            interrupt: self.interrupt.save(),
            active: self.active,
            device: self.device.save()?,
        };
        Ok(SavedFunction::new(&self.config, Some(transport)))
    }

    fn restore(&mut self, saved: &SavedFunction) -> Result<(), DeviceError> {
        let name = self.name.clone();
        let bad = |reason: &str| DeviceError::BadState {
            device: name.clone(),
            reason: reason.to_owned(),
        };
        let transport = saved
            .virtio
            .as_ref()
            .ok_or_else(|| bad("it is of no virtio device"))?;
        if transport.version != SAVED_VERSION {
            return Err(bad("the version of its transport is not known"));
        }
        if !self.common.is_like(&transport.common) {
            return Err(bad("its features or queues are others"));
        }
        saved.restore_config(&self.name, &mut self.config)?;
        self.interrupt
            .restore(&transport.interrupt, self.msix_control())
            .map_err(bad)?;
        self.common = transport.common.clone();
        let activation = transport
            .active
            .then(|| self.activation())
            .transpose()
            .map_err(|reason| bad(&reason))?;
        self.device.restore(&transport.device, activation)?;
        self.active = transport.active;
        self.follow_config();
        Ok(())
    }
}

impl fmt::Debug for VirtioFunction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VirtioFunction")
            .field("name", &self.name)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

/// The doorbells of a device's queues.
struct Doorbells {
    host: Arc<dyn PciHost>,
    bells: Vec<Doorbell>,
}

struct Doorbell {
    event: EventFd,
    /// Where KVM watches for it.
    attached: Option<u64>,
}

impl Doorbells {
    fn new(host: Arc<dyn PciHost>, queues: u16) -> std::io::Result<Self> {
        let bells: std::io::Result<_> = (0..queues)
            .map(|_| {
                Ok(Doorbell {
                    event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
                    attached: None,
                })
            })
            .collect();
        Ok(Self { host, bells: bells? })
    }

    /// A descriptor for the device.
    fn handle(&self, queue: u16) -> Result<EventFd, String> {
        self.bells
            .get(usize::from(queue))
            .ok_or_else(|| format!("queue {queue} has no doorbell"))?
            .event
            .try_clone()
            .map_err(|error| format!("no descriptor is left for a doorbell: {error}"))
    }

    /// Moves the doorbells with the function's memory, to `base` or to nowhere. Where KVM cannot watch (a guest may put
    /// two functions at one address), the write comes to [`Doorbells::ring`] instead.
    fn follow(&mut self, base: Option<u64>) {
        for (bell, distance) in self
            .bells
            .iter_mut()
            .zip((0u64..).step_by(NOTIFY_MULTIPLIER as usize))
        {
            let wanted = base.and_then(|base| base.checked_add(distance));
            if wanted == bell.attached {
                continue;
            }
            if let Some(address) = bell.attached.take() {
                let _ = self.host.detach_doorbell(&bell.event, address);
            }
            bell.attached = wanted.filter(|address| self.host.attach_doorbell(&bell.event, *address).is_ok());
        }
    }

    /// The guest wrote to the doorbells, and KVM did not take it.
    fn ring(&self, offset: u64) {
        let multiplier = u64::from(NOTIFY_MULTIPLIER);
        let queue = offset
            .is_multiple_of(multiplier)
            .then(|| usize::try_from(offset / multiplier).ok())
            .flatten();
        if let Some(bell) = queue.and_then(|queue| self.bells.get(queue)) {
            // Refused only when it has been rung beyond counting and not been heard yet.
            let _ = bell.event.write(1);
        }
    }
}

/// Class code; drivers go by the device id, the class is for people who list the bus.
fn class(kind: DeviceKind) -> u32 {
    match kind {
        DeviceKind::Net => 0x02_00_00,
        DeviceKind::Block => 0x01_80_00,
        DeviceKind::Console => 0x07_80_00,
        DeviceKind::Rng | DeviceKind::Vsock => 0xff_00_00,
    }
}

#[cfg(test)]
mod tests;
