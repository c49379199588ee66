//! The end of a machine: seen at once, and told apart.

use std::{
    fmt, fs,
    os::unix::process::ExitStatusExt,
    process::{Child, ExitStatus},
    sync::Arc,
};

use bulkhead_vmm::config::{ExitReason, ExitReport};
use tokio::sync::watch;

use crate::sandbox::{agent::clean, console, paths::PodPaths, process::Process};

/// Lines of the guest's kernel log that are kept of an end.
const CONSOLE_LINES: usize = 5;

/// How a machine ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineEnd {
    /// What the VMM said of it; nothing where it had no time to.
    pub report: Option<ExitReport>,
    /// How its process ended; unknown where another daemon had started it.
    pub status: Option<ExitStatus>,
    /// The VMM's last words.
    pub vmm_log: Vec<String>,
    /// The last lines of the guest's kernel log.
    pub console: Vec<String>,
}

impl MachineEnd {
    /// That of a machine which ended while no daemon watched it, as far as its files tell. Blocking, shortly.
    pub(in crate::sandbox) fn left_behind(paths: &PodPaths) -> Self {
        read(None, paths)
    }

    /// Exit code of the containers that ended with it: that of a process that was killed where the machine was, as by
    /// the host's OOM killer, else 255.
    pub fn exit_code(&self) -> i32 {
        match (&self.report, self.status.and_then(|status| status.signal())) {
            (_, Some(signal)) => 128 + signal,
            (None, None) if self.status.is_none() => 128 + 9,
            (
                Some(ExitReport {
                    reason: ExitReason::Quit,
                    ..
                }),
                None,
            ) => 128 + 9,
            _ => 255,
        }
    }

    /// In one word.
    pub fn reason(&self) -> &'static str {
        match self.report.as_ref().map(|report| report.reason) {
            Some(ExitReason::Panic) => "GuestPanic",
            Some(ExitReason::TripleFault) => "GuestTripleFault",
            Some(ExitReason::PowerOff) => "GuestPowerOff",
            Some(ExitReason::Reset) => "GuestReset",
            Some(ExitReason::Quit) => "MachineStopped",
            Some(ExitReason::VmmError) => "MachineFailed",
            None => "MachineKilled",
        }
    }
}

impl fmt::Display for MachineEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.report, self.status) {
            (Some(report), _) => write!(f, "{}", clean(&report.message, 512))?,
            (None, Some(status)) => {
                write!(f, "its process ended without a report ({status})")?;
                if status.signal() == Some(9) {
                    write!(f, ": it was killed, perhaps by the host's OOM killer")?;
                }
            }
            (None, None) => write!(f, "its process was killed")?,
        }
        if self.report.is_none() && !self.vmm_log.is_empty() {
            write!(f, "; it said: {}", self.vmm_log.join(" | "))?;
        }
        f.write_str(&shown(&self.console))
    }
}

/// The last lines of a guest's kernel log, as the end of a message.
pub(super) fn shown(console: &[String]) -> String {
    if console.is_empty() {
        return String::new();
    }
    format!("; the guest's last lines: {}", console.join(" | "))
}

/// Waits for the end of the process, then tells how it was.
pub(super) async fn watch(
    process: Arc<Process>,
    child: Option<Child>,
    paths: PodPaths,
    sender: watch::Sender<Option<Arc<MachineEnd>>>,
) {
    process.ended().await;
    let pid = process.identity().pid;
    let end = tokio::task::spawn_blocking(move || match child {
        // The process has ended, so this does not wait.
        Some(mut child) => read(child.wait().ok(), &paths),
        None => read(None, &paths),
    });
    let end = end.await.unwrap_or_default();
    tracing::debug!(pid, %end, "a machine has ended");
    sender.send_replace(Some(Arc::new(end)));
}

/// The end of a process that has only just been started; kills it if it runs. `None` if it cannot be waited for.
pub(super) fn of_child(mut child: Child, paths: &PodPaths) -> Option<MachineEnd> {
    let _ = child.kill();
    let status = child.wait().ok()?;
    Some(read(Some(status), paths))
}

fn read(status: Option<ExitStatus>, paths: &PodPaths) -> MachineEnd {
    let report = fs::read(paths.exit_report())
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    MachineEnd {
        report,
        status,
        vmm_log: console::last_lines(&paths.vmm_log(), 3),
        console: console::last_lines(&paths.console(), CONSOLE_LINES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(reason: ExitReason) -> MachineEnd {
        MachineEnd {
            report: Some(ExitReport {
                reason,
                message: "The guest's kernel panicked.".to_owned(),
            }),
            status: Some(ExitStatus::from_raw(i32::from(reason.exit_code()) << 8)),
            ..MachineEnd::default()
        }
    }

    #[test]
    fn ends_are_told_apart() {
        assert_eq!(reported(ExitReason::Panic).reason(), "GuestPanic");
        assert_eq!(reported(ExitReason::Panic).exit_code(), 255);
        assert_eq!(reported(ExitReason::TripleFault).reason(), "GuestTripleFault");
        let killed = MachineEnd {
            status: Some(ExitStatus::from_raw(9)),
            ..MachineEnd::default()
        };
        assert_eq!((killed.reason(), killed.exit_code()), ("MachineKilled", 137));
        assert!(killed.to_string().contains("OOM killer"), "{killed}");
        let unknown = MachineEnd::default();
        assert_eq!((unknown.reason(), unknown.exit_code()), ("MachineKilled", 137));
        let failed = MachineEnd {
            status: Some(ExitStatus::from_raw(1 << 8)),
            vmm_log: vec!["no /dev/kvm".to_owned()],
            ..MachineEnd::default()
        };
        assert_eq!(failed.exit_code(), 255);
        assert!(failed.to_string().contains("no /dev/kvm"), "{failed}");
    }

    #[test]
    fn the_guests_last_lines_are_part_of_the_story() {
        let end = MachineEnd {
            console: vec!["Kernel panic".to_owned()],
            ..reported(ExitReason::Panic)
        };
        assert_eq!(
            end.to_string(),
            "The guest's kernel panicked.; the guest's last lines: Kernel panic"
        );
    }
}
