//! A process of a container from its start to the end of its output, and its exit for as long as the host wants it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::{sleep, timeout},
};

use super::cgroup::{Cgroup, CgroupError};
use crate::{
    error_text::with_causes,
    init::{clock, log, reaper::End},
    io::{
        registry::{ProcessName, Registry},
        streams::ProcessStreams,
        terminal::Terminal,
    },
    sys::{clone::Child, signals},
};

/// How long the processes of a killed control group may take to be gone before the kill is reported regardless. Only one
/// that sleeps uninterruptibly in the kernel takes long.
const KILLED: Duration = Duration::from_secs(10);

/// How a process ended, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus {
    /// Its exit code or signal.
    pub end: End,
    /// The kernel killed something in its control group for want of memory.
    pub oom_killed: bool,
    /// Its time was up.
    pub timed_out: bool,
    /// Realtime in nanoseconds since the epoch.
    pub exited_at_ns: u64,
}

/// How far a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It runs, or waits to be started.
    Running,
    /// It has ended; its output may not have.
    Exited(ExitStatus),
    /// It has ended, and the host has acknowledged all of its output.
    Finished(ExitStatus),
}

impl Progress {
    /// Its exit, once it has ended.
    pub fn status(self) -> Option<ExitStatus> {
        match self {
            Self::Running => None,
            Self::Exited(status) | Self::Finished(status) => Some(status),
        }
    }
}

/// What belongs to a process while it is supervised.
#[derive(Debug)]
pub struct Supervision {
    /// When it ends.
    pub end: oneshot::Receiver<End>,
    /// The group that ends with it.
    pub cgroup: Arc<Cgroup>,
    /// Whether the end of the process is the end of everything in the group.
    pub ends_group: bool,
    /// When everything in the group is killed.
    pub timeout: Option<Duration>,
    /// Where want of memory is counted.
    pub memory: Arc<Cgroup>,
    /// How often it had been counted before the process was made.
    pub oom_kills_before: u64,
    /// Told to the streams when the process has ended.
    pub exited: watch::Sender<bool>,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    name: ProcessName,
    pid: u32,
    pidfd: OwnedFd,
    terminal: Option<Terminal>,
    started_at_ns: OnceLock<u64>,
    progress: watch::Receiver<Progress>,
    cgroup: Arc<Cgroup>,
    /// The registry alone holds them, so that they end when it lets go.
    streams: Weak<ProcessStreams>,
    registry: Registry,
}

impl Process {
    /// Makes the process known to the host's streams, and watches over it.
    pub fn supervise(
        name: ProcessName,
        child: Child,
        streams: ProcessStreams,
        terminal: Option<Terminal>,
        registry: &Registry,
        supervision: Supervision,
    ) -> Self {
        let (sender, progress) = watch::channel(Progress::Running);
        let cgroup = supervision.cgroup.clone();
        tokio::spawn(watch_over(supervision, streams.ended(), sender));
        let streams = Arc::new(streams);
        let weak = Arc::downgrade(&streams);
        registry.add_process(&name, streams);
        Self {
            name,
            pid: child.pid.as_raw_nonzero().get().cast_unsigned(),
            pidfd: child.pidfd,
            terminal,
            started_at_ns: OnceLock::new(),
            progress,
            cgroup,
            streams: weak,
            registry: registry.clone(),
        }
    }

    /// Its id as the guest's outermost process namespace numbers it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Names it even when its id has gone to another.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Notes that its program runs from now on. Gives the realtime in nanoseconds.
    pub fn mark_started(&self) -> u64 {
        *self.started_at_ns.get_or_init(clock::realtime_ns)
    }

    /// When its program was started; 0 before.
    pub fn started_at_ns(&self) -> u64 {
        self.started_at_ns.get().copied().unwrap_or(0)
    }

    /// Sends it a signal. One that has ended is not an error.
    pub fn signal(&self, number: u32) -> io::Result<()> {
        signals::send(self.pidfd.as_fd(), number)
    }

    /// Kills it and all that belongs to its control group.
    pub fn kill_group(&self) -> Result<(), CgroupError> {
        self.cgroup.kill()
    }

    /// Lets go of its streams, and with them of what the host has not acknowledged.
    pub fn close_streams(&self) {
        self.registry.remove_process(&self.name, &self.streams);
    }

    /// Its terminal.
    pub fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_ref()
    }

    /// Waits until it has ended, whatever becomes of its output.
    pub fn exited(&self) -> impl Future<Output = Option<ExitStatus>> + Send + use<> {
        let mut progress = self.progress.clone();
        async move {
            let reached = progress
                .wait_for(|progress| progress.status().is_some())
                .await
                .ok()?;
            reached.status()
        }
    }

    /// Waits until it and its output have ended. `None` where the container was removed before.
    pub fn finished(&self) -> impl Future<Output = Option<ExitStatus>> + Send + use<> {
        let mut progress = self.progress.clone();
        async move {
            let reached = progress
                .wait_for(|progress| matches!(progress, Progress::Finished(_)))
                .await
                .ok()?;
            reached.status()
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.close_streams();
    }
}

async fn watch_over(
    supervision: Supervision,
    output_ended: impl Future<Output = ()>,
    progress: watch::Sender<Progress>,
) {
    let Supervision {
        mut end,
        cgroup,
        ends_group,
        timeout: time,
        memory,
        oom_kills_before,
        exited,
    } = supervision;
    let time_is_up = async {
        match time {
            Some(time) => sleep(time).await,
            None => std::future::pending().await,
        }
    };
    let mut timed_out = false;
    let ended = tokio::select! {
        biased;
        ended = &mut end => ended,
        () = time_is_up => {
            timed_out = true;
            kill(&cgroup);
            end.await
        }
    };
    let Ok(ended) = ended else {
        log::error!("the end of a process was lost");
        return;
    };
    let exited_at_ns = clock::realtime_ns();
    if ends_group {
        kill(&cgroup);
    }
    if timed_out || ends_group {
        match timeout(KILLED, cgroup.emptied()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::error!("cannot wait for a control group to become empty: {error}"),
            Err(_) => log::error!("processes survive SIGKILL for {} s", KILLED.as_secs()),
        }
    }
    let status = ExitStatus {
        end: ended,
        // The kernel counts before it kills (mm/oom_kill.c), so what ended the process is in the count by now.
        oom_killed: memory.oom_kills() > oom_kills_before,
        timed_out,
        exited_at_ns,
    };
    progress.send_replace(Progress::Exited(status));
    exited.send_replace(true);
    output_ended.await;
    progress.send_replace(Progress::Finished(status));
}

fn kill(cgroup: &Cgroup) {
    if let Err(error) = cgroup.kill() {
        log::error!("{}", with_causes(&error));
    }
}
