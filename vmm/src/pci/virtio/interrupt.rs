//! How a virtio device behind PCI tells its driver: the part of the transport that the device's worker uses.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering},
};

use serde::{Deserialize, Serialize};

use super::status::{DRIVER_OK, NEEDS_RESET};
use crate::{
    pci::{Msix, PciHost, SavedMsix},
    virtio::device::Interrupt,
};

/// A queue or the configuration without a vector (virtio 1.2, 4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;

/// Bits of the ISR status register.
const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// Complaints of one device that are written to standard error: a guest must not be able to fill a log.
const COMPLAINTS_MAX: u32 = 16;

/// Interrupts of one function, shared between the transport and the device's worker.
#[derive(Debug)]
pub(super) struct VirtioInterrupt {
    name: String,
    host: Arc<dyn PciHost>,
    msix: Mutex<Msix>,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    isr: AtomicU8,
    status: AtomicU8,
    generation: AtomicU8,
    complaints: AtomicU32,
}

/// State of [`VirtioInterrupt`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedInterrupt {
    msix: SavedMsix,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    isr: u8,
    status: u8,
    generation: u8,
}

impl VirtioInterrupt {
    /// Interrupts of a device of `queues` queues, with a vector for each and one for the configuration.
    pub(super) fn new(name: String, host: Arc<dyn PciHost>, queues: u16) -> Self {
        Self {
            name,
            host,
            msix: Mutex::new(Msix::new(queues + 1)),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            status: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            complaints: AtomicU32::new(0),
        }
    }

    /// As after a reset of the device; the table of vectors belongs to PCI and stays.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.isr.store(0, Ordering::SeqCst);
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
    }

    pub(super) fn status(&self) -> u8 {
        self.status.load(Ordering::SeqCst)
    }

    /// Sets status bits; they are only ever taken back by a reset.
    pub(super) fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::SeqCst);
    }

    /// Reads the ISR status, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::SeqCst)
    }

    /// Maps the configuration to a vector; one that is not there reads back as none, which tells the driver.
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::SeqCst);
    }

    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors
            .get(usize::from(queue))
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.existing(vector), Ordering::SeqCst);
        }
    }

    /// Works on the table and sends what it releases.
    pub(super) fn with_msix(&self, work: impl FnOnce(&mut Msix) -> Vec<crate::pci::Message>) {
        let released = work(&mut self.msix());
        for message in released {
            self.host.signal(message.address, message.data);
        }
    }

    /// Says on standard error what the guest or the device did wrong.
    pub(super) fn complain(&self, what: &str) {
        if self.complaints.fetch_add(1, Ordering::Relaxed) < COMPLAINTS_MAX {
            eprintln!("bulkhead-vmm: {}: {what}", self.name);
        }
    }

    pub(super) fn save(&self) -> SavedInterrupt {
        SavedInterrupt {
            msix: self.msix().save(),
            config_vector: self.config_vector(),
            queue_vectors: self
                .queue_vectors
                .iter()
                .map(|vector| vector.load(Ordering::SeqCst))
                .collect(),
            isr: self.isr.load(Ordering::SeqCst),
            status: self.status(),
            generation: self.generation(),
        }
    }

    pub(super) fn restore(&self, saved: &SavedInterrupt, msix_control: u16) -> Result<(), &'static str> {
        if saved.queue_vectors.len() != self.queue_vectors.len() {
            return Err("it has another number of queues");
        }
        self.msix().restore(&saved.msix, msix_control)?;
        self.set_config_vector(saved.config_vector);
        for (queue, vector) in (0..).zip(&saved.queue_vectors) {
            self.set_queue_vector(queue, *vector);
        }
        self.isr.store(saved.isr, Ordering::SeqCst);
        self.status.store(saved.status, Ordering::SeqCst);
        self.generation.store(saved.generation, Ordering::SeqCst);
        Ok(())
    }

    fn existing(&self, vector: u16) -> u16 {
        if self.msix().has(vector) {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn raise(&self, vector: u16, isr: u8) {
        let message = {
            let mut msix = self.msix();
            if !msix.is_enabled() {
                self.isr.fetch_or(isr, Ordering::SeqCst);
            }
            msix.raise(vector)
        };
        if let Some(message) = message {
            self.host.signal(message.address, message.data);
        }
    }

    fn msix(&self) -> MutexGuard<'_, Msix> {
        self.msix.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interrupt for VirtioInterrupt {
    fn queue_used(&self, queue: u16) {
        self.raise(self.queue_vector(queue), ISR_QUEUE);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(self.config_vector(), ISR_CONFIG);
    }

    fn needs_reset(&self, reason: &str) {
        self.complain(&format!("the device needs a reset: {reason}"));
        self.add_status(NEEDS_RESET);
        if self.status() & DRIVER_OK != 0 {
            self.raise(self.config_vector(), ISR_CONFIG);
        }
    }
}
