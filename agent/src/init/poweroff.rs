//! The two ends of the machine: in order, and loudly.

use std::{panic, time::Duration};

use rustix::{
    fs::sync,
    system::{RebootCommand, reboot},
};
use tokio::time::timeout;

use super::{
    log::{self, Level},
    reaper::Reaper,
};
use crate::sys::{clone, signals};

/// How long processes have to be gone after SIGKILL before the disks are synced regardless.
const KILL_GRACE: Duration = Duration::from_secs(1);

/// Kills what still runs, syncs the disks and switches the machine off. Comes back only where the kernel refuses.
pub async fn power_off(reaper: &Reaper) {
    if let Err(error) = signals::kill_everyone_else() {
        log::error!("cannot kill the remaining processes: {error}");
    }
    let _all_gone = timeout(KILL_GRACE, reaper.no_children()).await;
    sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        log::error!("cannot power the machine off: {error}");
    }
}

/// Makes a panic of the agent the machine's panic: the kernel cannot live without its process 1, and the host sees the
/// guest's kernel say so, behind the agent's own line.
pub fn panic_loudly() {
    panic::set_hook(Box::new(|panic| {
        log::write(Level::Critical, format_args!("{panic}"));
        if !clone::in_child() {
            clone::exit_now(clone::PANICKED);
        }
    }));
}
