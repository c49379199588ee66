//! The ends of processes. The agent is the parent of every process that it starts and, as process 1, inherits those
//! whose parents died; one place collects them all, so that no exit is taken by the wrong hand.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    io::Errno,
    process::{Pid, WaitOptions, wait},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, oneshot},
};

use super::log;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It gave this exit code.
    Exited(u8),
    /// This signal ended it.
    Signaled(u8),
}

/// Collects ended processes and hands the ends of the tracked ones to those who wait for them.
#[derive(Clone, Debug)]
pub struct Reaper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<HashMap<Pid, oneshot::Sender<End>>>,
    childless: Notify,
}

impl Reaper {
    /// Starts to listen for ended processes. Before the first is started, so that none is missed.
    pub fn start() -> io::Result<Self> {
        let signals = signal(SignalKind::child())?;
        let reaper = Self {
            shared: Arc::new(Shared {
                waiting: Mutex::default(),
                childless: Notify::new(),
            }),
        };
        tokio::spawn(reaper.clone().run(signals));
        Ok(reaper)
    }

    /// Gives the end of child `pid` when it comes. Called right after the child was made, before anything is awaited:
    /// the agent's one thread cannot collect it in between.
    pub fn track(&self, pid: Pid) -> oneshot::Receiver<End> {
        let (sender, receiver) = oneshot::channel();
        self.shared
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pid, sender);
        receiver
    }

    /// Waits until the agent has no child left.
    pub async fn no_children(&self) {
        let childless = self.shared.childless.notified();
        if self.collect() {
            return;
        }
        childless.await;
    }

    async fn run(self, mut signals: Signal) {
        while signals.recv().await.is_some() {
            if self.collect() {
                self.shared.childless.notify_waiters();
            }
        }
    }

    /// Takes every process that has ended, since one signal may stand for many. True where no child is left.
    fn collect(&self) -> bool {
        loop {
            let (pid, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Ok(None) => return false,
                Err(Errno::INTR) => continue,
                Err(Errno::CHILD) => return true,
                Err(error) => {
                    log::error!("cannot collect ended processes: {error}");
                    return false;
                }
            };
            let waiting = self
                .shared
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&pid);
            let end = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => End::Exited(u8::try_from(code).unwrap_or(u8::MAX)),
                (None, signal) => {
                    End::Signaled(signal.and_then(|number| u8::try_from(number).ok()).unwrap_or(0))
                }
            };
            if let Some(waiting) = waiting {
                let _nobody_waits_any_more = waiting.send(end);
            }
        }
    }
}
