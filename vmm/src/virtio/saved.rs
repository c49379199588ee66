//! Saved states: how a device's own data and its queues become a [`SavedDevice`] and come back.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use virtio_queue::{Queue, QueueState};

use super::{
    device::{Activation, ActiveQueue, DeviceError, DeviceKind, SavedDevice},
    ring::Ring,
};

/// What every device has of its driver while it is active.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedDriver {
    /// Features that the driver accepted.
    features: u64,
    /// Its queues, in order.
    queues: Vec<SavedQueue>,
}

/// A split ring. Where it is in guest memory and how far it has been walked; the rest is in guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedQueue {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
}

impl SavedDriver {
    /// Saves the rings of a device that stands still.
    pub fn of<'r>(features: u64, rings: impl IntoIterator<Item = &'r Ring>) -> Self {
        let queues = rings.into_iter().map(|ring| {
            let state = ring.queue().state();
            SavedQueue {
                size: state.size,
                descriptors: state.desc_table,
                available: state.avail_ring,
                used: state.used_ring,
                next_available: state.next_avail,
                next_used: state.next_used,
            }
        });
        Self {
            features,
            queues: queues.collect(),
        }
    }

    /// Puts the saved queues and features into an activation, which keeps its memory, doorbells and interrupt.
    ///
    /// # Errors
    ///
    /// What does not fit the device, which offers `features` and has queues of at most `max_sizes`.
    fn put_into(
        &self,
        activation: Activation,
        features: u64,
        max_sizes: &[u16],
    ) -> Result<Activation, String> {
        if self.features & !features != 0 {
            return Err(format!(
                "it has features {:#x} that this device does not offer",
                self.features & !features
            ));
        }
        if self.queues.len() != max_sizes.len() || activation.queues.len() != max_sizes.len() {
            return Err(format!("it has {} queues", self.queues.len()));
        }
        let mut queues = Vec::with_capacity(max_sizes.len());
        for ((saved, max_size), active) in self.queues.iter().zip(max_sizes).zip(activation.queues) {
            let active = active.ok_or("one of its queues has no doorbell")?;
            let state = QueueState {
                max_size: *max_size,
                next_avail: saved.next_available,
                next_used: saved.next_used,
                // The ring takes it from the features.
                event_idx_enabled: false,
                size: saved.size,
                ready: true,
                desc_table: saved.descriptors,
                avail_ring: saved.available,
                used_ring: saved.used,
            };
            let queue = Queue::try_from(state).map_err(|error| format!("queue {}: {error}", active.index))?;
            queues.push(Some(ActiveQueue { queue, ..active }));
        }
        Ok(Activation {
            features: self.features,
            queues,
            ..activation
        })
    }
}

/// What a device tells of itself when its state is saved or taken over.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'d> {
    /// The device in messages.
    pub name: &'d str,
    /// Its type.
    pub kind: DeviceKind,
    /// Version of its state.
    pub version: u32,
    /// Features that it offers.
    pub features: u64,
    /// Largest sizes of its queues.
    pub max_sizes: &'d [u16],
}

impl Identity<'_> {
    /// Wraps a device's state.
    ///
    /// # Errors
    ///
    /// [`DeviceError::BadState`] when it is no JSON.
    pub fn save(&self, state: &impl Serialize) -> Result<SavedDevice, DeviceError> {
        Ok(SavedDevice {
            kind: self.kind,
            version: self.version,
            state: serde_json::to_value(state).map_err(|error| self.bad(error.to_string()))?,
        })
    }

    /// Unwraps a state that this device has saved.
    ///
    /// # Errors
    ///
    /// [`DeviceError::BadState`] for a state of another device or version, or of another form.
    pub fn read<S: DeserializeOwned>(&self, saved: &SavedDevice) -> Result<S, DeviceError> {
        if saved.kind != self.kind {
            return Err(self.bad(format!("it is that of a {:?} device", saved.kind)));
        }
        if saved.version != self.version {
            return Err(self.bad(format!(
                "it has version {}, this machine knows version {}",
                saved.version, self.version
            )));
        }
        S::deserialize(&saved.state).map_err(|error| self.bad(error.to_string()))
    }

    /// The activation with which a saved device goes on; `None` when its driver was not ready.
    ///
    /// # Errors
    ///
    /// [`DeviceError::BadState`] when driver and device do not fit.
    pub fn reactivation(
        &self,
        driver: Option<&SavedDriver>,
        activation: Option<Activation>,
    ) -> Result<Option<Activation>, DeviceError> {
        let Some(driver) = driver else {
            return Ok(None);
        };
        let activation = activation
            .ok_or_else(|| self.bad("its driver was ready, but the transport's was not".to_owned()))?;
        driver
            .put_into(activation, self.features, self.max_sizes)
            .map(Some)
            .map_err(|reason| self.bad(reason))
    }

    /// The error for a state that cannot be used.
    pub fn bad(&self, reason: String) -> DeviceError {
        DeviceError::BadState {
            device: self.name.to_owned(),
            reason,
        }
    }
}
