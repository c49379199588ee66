//! Whether a device runs, which is the same for all of them.

use super::{
    device::DeviceError,
    worker::{Handler, Worker},
};

/// Where a device is between `activate` and `reset`.
#[derive(Debug, Default)]
pub enum Stage<H: Handler> {
    /// No driver is ready, or the worker was lost.
    #[default]
    Inactive,
    /// The worker runs.
    Running(Worker<H>),
    /// The worker was stopped and can go on.
    Paused(H),
}

impl<H: Handler> Stage<H> {
    /// Starts a worker. `thread` names its thread, `device` the device in an error.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Worker`].
    pub fn start(&mut self, device: &str, thread: &str, handler: H) -> Result<(), DeviceError> {
        *self = Self::Inactive;
        let worker = Worker::start(thread, handler).map_err(|source| DeviceError::Worker {
            device: device.to_owned(),
            source,
        })?;
        *self = Self::Running(worker);
        Ok(())
    }

    /// Stops a running worker. The handler is there afterwards unless the device is inactive.
    pub fn pause(&mut self) -> Option<&mut H> {
        *self = match std::mem::take(self) {
            Self::Running(worker) => Self::Paused(worker.stop()),
            other => other,
        };
        match self {
            Self::Paused(handler) => Some(handler),
            Self::Inactive | Self::Running(_) => None,
        }
    }

    /// Lets a paused worker go on.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Worker`]; the device is inactive then.
    pub fn resume(&mut self, device: &str, thread: &str) -> Result<(), DeviceError> {
        match std::mem::take(self) {
            Self::Paused(handler) => self.start(device, thread, handler),
            other => {
                *self = other;
                Ok(())
            }
        }
    }

    /// The handler of a device that stands still, to be saved; `None` while it is inactive.
    ///
    /// # Errors
    ///
    /// [`DeviceError::WrongPhase`] while it runs.
    pub fn standing(&self, device: &str) -> Result<Option<&H>, DeviceError> {
        match self {
            Self::Inactive => Ok(None),
            Self::Paused(handler) => Ok(Some(handler)),
            Self::Running(_) => Err(DeviceError::WrongPhase {
                device: device.to_owned(),
                what: "be saved while it runs",
            }),
        }
    }
}
