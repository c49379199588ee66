//! How the writing of a log goes, for whoever asks while it is written.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

/// From when on a write that has not returned is a fault: a disk that is only busy takes less.
const SLOW: Duration = Duration::from_secs(10);

/// A log that cannot be written. Its container waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFault {
    /// Since when.
    pub since: SystemTime,
    /// Why, in a sentence.
    pub reason: String,
}

/// The condition of one log: shared by its writer and those who ask.
#[derive(Clone, Debug, Default)]
pub struct LogCondition(Arc<Mutex<Condition>>);

#[derive(Clone, Debug, Default)]
enum Condition {
    /// Nothing waits to be written.
    #[default]
    Idle,
    /// The disk has been given something and has not answered.
    Writing { since: SystemTime },
    /// The disk takes nothing; it is tried again and again.
    Failing(LogFault),
}

impl LogCondition {
    /// Something is given to the disk.
    pub(super) fn begin(&self, now: SystemTime) {
        let mut condition = self.lock();
        if matches!(*condition, Condition::Idle) {
            *condition = Condition::Writing { since: now };
        }
    }

    /// The disk has taken it, or it was given up. Says whether it failed before.
    pub(super) fn end(&self) -> bool {
        let before = std::mem::take(&mut *self.lock());
        matches!(before, Condition::Failing(_))
    }

    /// The disk has refused it. Says whether that is new.
    pub(super) fn fail(&self, error: &io::Error, now: SystemTime) -> bool {
        let reason = error.to_string();
        let mut condition = self.lock();
        let (since, is_new) = match &*condition {
            Condition::Idle => (now, true),
            Condition::Writing { since } => (*since, true),
            Condition::Failing(fault) => (fault.since, false),
        };
        *condition = Condition::Failing(LogFault { since, reason });
        is_new
    }

    /// Whether nobody waits for the disk.
    pub(super) fn is_idle(&self) -> bool {
        matches!(*self.lock(), Condition::Idle)
    }

    /// What is wrong, if something is.
    pub fn fault(&self) -> Option<LogFault> {
        self.fault_at(SystemTime::now())
    }

    fn fault_at(&self, now: SystemTime) -> Option<LogFault> {
        match &*self.lock() {
            Condition::Idle => None,
            Condition::Writing { since } => {
                let takes = now.duration_since(*since).unwrap_or_default();
                (takes >= SLOW).then(|| LogFault {
                    since: *since,
                    reason: "the disk does not answer: a write has not returned".to_owned(),
                })
            }
            Condition::Failing(fault) => Some(fault.clone()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Condition> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_refuses_or_does_not_answer_is_a_fault_since_it_was_first_asked() {
        let condition = LogCondition::default();
        let begun = SystemTime::UNIX_EPOCH;
        let after = |seconds| begun + Duration::from_secs(seconds);
        condition.begin(begun);
        assert!(!condition.is_idle());
        assert_eq!(condition.fault_at(after(9)), None, "it may only be busy");
        let fault = condition.fault_at(after(10)).unwrap();
        assert_eq!(fault.since, begun);
        assert!(fault.reason.contains("does not answer"), "{fault:?}");

        assert!(condition.fail(&io::ErrorKind::StorageFull.into(), after(11)));
        condition.begin(after(12));
        assert!(!condition.fail(&io::ErrorKind::ReadOnlyFilesystem.into(), after(12)));
        let fault = condition.fault_at(after(12)).unwrap();
        assert_eq!(fault.since, begun);
        assert!(fault.reason.contains("read-only"), "{fault:?}");

        assert!(condition.end(), "it failed before");
        assert!(condition.is_idle() && condition.fault_at(after(13)).is_none());
        condition.begin(after(14));
        assert!(!condition.end());
    }
}
