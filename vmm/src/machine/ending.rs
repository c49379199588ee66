//! How a machine ends: whoever sees it first says so, the main thread hears of it.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::config::{ExitReason, ExitReport};

/// Where the end of a machine is reported, from any thread.
#[derive(Debug)]
pub struct Endings {
    first: Mutex<Option<ExitReport>>,
    panicked: AtomicBool,
    event: EventFd,
}

impl Endings {
    /// Nothing has ended.
    ///
    /// # Errors
    ///
    /// What the kernel says to a new eventfd.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            first: Mutex::new(None),
            panicked: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// The machine has ended. Only the first report counts. After a panic, the guest's way out of it (a reset, a triple
    /// fault, powering off) is part of the panic.
    pub fn end(&self, reason: ExitReason, message: impl Into<String>) {
        let part_of_panic = matches!(
            reason,
            ExitReason::PowerOff | ExitReason::Reset | ExitReason::TripleFault
        );
        let report = if part_of_panic && self.has_panicked() {
            ExitReport {
                reason: ExitReason::Panic,
                message: PANIC_MESSAGE.to_owned(),
            }
        } else {
            ExitReport {
                reason,
                message: message.into(),
            }
        };
        self.first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(report);
        self.wake();
    }

    /// The guest's kernel has said that it panicked. It goes on until it resets, so that its last words reach the console.
    pub fn panic(&self) {
        self.panicked.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether the guest's kernel has panicked.
    pub fn has_panicked(&self) -> bool {
        self.panicked.load(Ordering::SeqCst)
    }

    /// Readable when something was reported. Reading it takes the event back.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// How the machine has ended, if it has.
    pub fn report(&self) -> Option<ExitReport> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn wake(&self) {
        // Only an eventfd at its limit refuses, and then the event is there already.
        let _ = self.event.write(1);
    }
}

/// What is told of a panic.
pub(super) const PANIC_MESSAGE: &str = "the guest's kernel panicked; its console has the reason";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_report_counts() {
        let endings = Endings::new().unwrap();
        assert_eq!(endings.report(), None);
        endings.end(ExitReason::PowerOff, "off");
        endings.end(ExitReason::VmmError, "late");
        assert_eq!(endings.report().unwrap().reason, ExitReason::PowerOff);
        assert!(endings.event().read().is_ok());
    }

    #[test]
    fn a_reset_after_a_panic_is_the_panic_and_a_request_to_quit_is_not() {
        for (reason, told) in [
            (ExitReason::Reset, ExitReason::Panic),
            (ExitReason::TripleFault, ExitReason::Panic),
            (ExitReason::Quit, ExitReason::Quit),
            (ExitReason::VmmError, ExitReason::VmmError),
        ] {
            let endings = Endings::new().unwrap();
            endings.panic();
            endings.end(reason, "what came after");
            assert_eq!(endings.report().unwrap().reason, told);
        }
    }
}
