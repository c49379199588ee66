//! When the process began, for the time that the set-up of a machine takes.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The beginning of this process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessStart {
    at: Instant,
    /// Processor time used before `at`: exec, the dynamic loader, the runtime. Waiting in that time is not in it; the kernel
    /// tells when a process began only in hundredths of a second.
    before: Duration,
}

impl ProcessStart {
    /// To be called first of all.
    pub fn now() -> Self {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            at: Instant::now(),
            before: Duration::try_from(used).unwrap_or_default(),
        }
    }

    /// Time from the beginning to `moment`.
    pub fn until(&self, moment: Instant) -> Duration {
        self.before + moment.saturating_duration_since(self.at)
    }
}
