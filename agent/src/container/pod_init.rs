//! Process 1 of a process namespace that the pod's containers share: it inherits the orphans of all of them and reaps.
//!
//! It is a child of the agent with nothing in its hands but its sleep; the kernel reaps for it, as for every process that
//! ignores SIGCHLD (wait(2)). Its namespace's processes cannot kill it, since Linux keeps their signals from a process 1
//! that has no handler for them.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    event::pause,
    process::{DumpableBehavior, set_dumpable_behavior, setsid},
    thread::set_name,
};

use crate::{
    init::reaper::Reaper,
    sys::{
        clone::{self, Child, NewNamespaces},
        fds, signals,
    },
};

/// The init process, killed at its end with all of its namespace.
#[derive(Debug)]
pub struct PodInit {
    child: Child,
}

impl PodInit {
    /// Starts it.
    pub fn start(reaper: &Reaper) -> io::Result<Self> {
        let new = NewNamespaces {
            pid: true,
            mount: false,
        };
        let child = clone::spawn(new, None, sleep_for_ever)?;
        drop(reaper.track(child.pid));
        Ok(Self { child })
    }

    /// Names the process, and so its namespace.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }
}

impl Drop for PodInit {
    fn drop(&mut self) {
        // It can only have ended already.
        let _ended = signals::send(self.child.pidfd.as_fd(), libc::SIGKILL.cast_unsigned());
    }
}

fn sleep_for_ever() -> i32 {
    let prepare = || -> io::Result<()> {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        fds::close_others(&[])?;
        setsid()?;
        set_name(c"pod-init")?;
        signals::let_kernel_reap();
        Ok(())
    };
    if prepare().is_err() {
        return 1;
    }
    loop {
        pause();
    }
}
