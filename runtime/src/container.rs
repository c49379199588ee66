//! Containers: what CRI says of them, and how the daemon drives the agent that runs them.

pub mod attach;
mod attachers;
mod capabilities;
pub mod create;
pub mod disk;
mod error;
pub mod exec;
pub mod exec_stream;
pub mod exit;
mod image_volume;
mod process;
pub mod recover;
pub mod remove;
mod resources;
pub mod signal;
pub mod start;
mod stdin;
pub mod stop;
mod streams;
pub mod update;
mod validate;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use bulkhead_proto::{
    agent::{ResolvedUser, limits},
    cri::{ContainerConfig, LinuxContainerResources},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    daemon::Daemon,
    events::{Change, Subject},
    logs::{LogFault, condition::LogCondition, writer::LogReopener},
    stats::History,
    store::{ContainerPhase, ContainerRecord, ImageRecord, UserRecord},
    turn::Turns,
};

use attachers::Attachers;
use stdin::ContainerStdin;

pub use error::ContainerError;

/// A container. What does not change in its life is in its fields.
#[derive(Debug)]
pub struct Container {
    /// Its id, also in the agent's protocol.
    pub id: String,
    /// The pod it is in.
    pub pod_id: String,
    /// The request's configuration, as it came.
    pub config: ContainerConfig,
    /// Where its log is.
    pub log_path: Option<PathBuf>,
    /// The image it is made of.
    pub image: ImageRecord,
    /// Linux's number of the signal that asks it to stop.
    pub stop_signal: u32,
    /// Who its first process is.
    pub user: Option<UserRecord>,
    /// Nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// For whoever starts, changes or removes it.
    turns: Turns,
    state: watch::Sender<ContainerState>,
    /// When it will be killed, while it is being stopped.
    kill_at: watch::Sender<Option<Instant>>,
    log: Mutex<Option<OpenLog>>,
    resources: Mutex<Option<LinuxContainerResources>>,
    /// What it used before.
    pub(crate) history: History,
    /// The clients that see what it prints from now on.
    attachers: Arc<Attachers>,
    /// The way to its first process's standard input.
    stdin: ContainerStdin,
}

/// What changes in a container's life.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerState {
    /// Where in its life it is.
    pub phase: ContainerPhase,
    /// Nanoseconds since the epoch; 0 before.
    pub started_at_ns: i64,
    /// Nanoseconds since the epoch; 0 before.
    pub finished_at_ns: i64,
    /// Exit code, once exited.
    pub exit_code: i32,
    /// Why it exited, in one word.
    pub reason: String,
    /// Why it exited, in a sentence.
    pub message: String,
    /// Its first process in the guest; 0 unless running.
    pub guest_pid: u32,
}

/// The log of a running container.
#[derive(Clone, Debug)]
struct OpenLog {
    reopener: LogReopener,
    /// Makes it give up on a disk that takes nothing.
    give_up: CancellationToken,
    condition: LogCondition,
}

impl Container {
    /// A container as it was remembered.
    pub fn from_record(record: ContainerRecord) -> Self {
        let state = ContainerState {
            phase: record.phase(),
            started_at_ns: record.started_at_ns,
            finished_at_ns: record.finished_at_ns,
            exit_code: record.exit_code,
            reason: record.reason,
            message: record.message,
            guest_pid: 0,
        };
        Self {
            id: record.id,
            pod_id: record.pod_id,
            config: record.config.unwrap_or_default(),
            log_path: Some(record.log_path)
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            image: record.image.unwrap_or_default(),
            stop_signal: record.stop_signal,
            user: record.user,
            created_at_ns: record.created_at_ns,
            turns: Turns::default(),
            state: watch::Sender::new(state),
            kill_at: watch::Sender::new(None),
            log: Mutex::default(),
            resources: Mutex::new(record.resources),
            history: History::default(),
            attachers: Arc::default(),
            stdin: ContainerStdin::default(),
        }
    }

    /// What is remembered of it in this state.
    fn record(&self, state: &ContainerState) -> ContainerRecord {
        ContainerRecord {
            id: self.id.clone(),
            pod_id: self.pod_id.clone(),
            config: Some(self.config.clone()),
            log_path: self
                .log_path
                .as_ref()
                .map(|path| path.to_string_lossy().into_owned())
                .unwrap_or_default(),
            image: Some(self.image.clone()),
            stop_signal: self.stop_signal,
            user: self.user.clone(),
            resources: self.resources(),
            phase: state.phase.into(),
            created_at_ns: self.created_at_ns,
            started_at_ns: state.started_at_ns,
            finished_at_ns: state.finished_at_ns,
            exit_code: state.exit_code,
            reason: state.reason.clone(),
            message: state.message.clone(),
        }
    }

    /// The name that no other container of its pod may have.
    pub fn name(&self) -> String {
        container_name(&self.config, &self.pod_id)
    }

    /// Its state now.
    pub fn state(&self) -> ContainerState {
        self.state.borrow().clone()
    }

    /// Limits in force.
    pub fn resources(&self) -> Option<LinuxContainerResources> {
        self.resources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Where in its life it is now.
    pub fn phase(&self) -> ContainerPhase {
        self.state.borrow().phase
    }

    /// Opens its log anew under its name.
    ///
    /// # Errors
    ///
    /// [`ContainerError::State`] unless it is running, [`ContainerError::Log`] where the file cannot be made.
    pub async fn reopen_log(&self) -> Result<(), ContainerError> {
        let log = self
            .open_log()
            .filter(|_| self.phase() == ContainerPhase::Running);
        let Some(log) = log else {
            return Err(self.wrong_state("given a new log", ""));
        };
        let reopened = log.reopener.reopen().await;
        reopened.map_err(|source| ContainerError::Log {
            id: self.id.clone(),
            source,
        })
    }

    /// Why its log cannot be written, while that is so: the container waits then.
    pub fn log_fault(&self) -> Option<LogFault> {
        self.open_log()?.condition.fault()
    }

    /// Writes down that it runs, then shows it, unless its pod has ended meanwhile and it with it.
    async fn show_running(self: &Arc<Self>, daemon: &Daemon, state: ContainerState) {
        if let Err(error) = daemon.store.put_container(self.record(&state)).await {
            // It runs. A daemon that comes back asks the agent, so only this one's memory must know.
            tracing::error!(container = %self.id, %error, "the container's state is not on the disk");
        }
        self.show(daemon, state, Change::Started, |current| {
            current.phase == ContainerPhase::Created
        });
    }

    /// Shows that it is exited, unless that is known already.
    fn show_exited(self: &Arc<Self>, daemon: &Daemon, state: ContainerState) {
        self.show(daemon, state, Change::Stopped, |current| {
            current.phase != ContainerPhase::Exited
        });
    }

    /// Shows another state and tells of the change, if the state now `is_before` it.
    fn show(
        self: &Arc<Self>,
        daemon: &Daemon,
        state: ContainerState,
        change: Change,
        is_before: impl FnOnce(&ContainerState) -> bool,
    ) {
        daemon.events.step(daemon, Subject::Container(self), || {
            let changed = self.state.send_if_modified(|current| {
                let changes = is_before(current);
                if changes {
                    *current = state;
                }
                changes
            });
            if changed { vec![change] } else { Vec::new() }
        });
    }

    /// Waits until it is exited.
    async fn exited(&self) {
        let mut state = self.state.subscribe();
        // The sender lives as long as this container does.
        let _ = state
            .wait_for(|state| state.phase == ContainerPhase::Exited)
            .await;
    }

    fn open_log(&self) -> Option<OpenLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends what clients have of its first process, which has ended.
    fn detach_all(&self) {
        self.attachers.close();
        self.stdin.close();
    }

    fn set_log(&self, log: Option<OpenLog>) {
        *self.log.lock().unwrap_or_else(PoisonError::into_inner) = log;
    }

    pub(crate) fn wrong_state(&self, operation: &'static str, remedy: &'static str) -> ContainerError {
        let state = match self.phase() {
            ContainerPhase::Created => "created and not started",
            ContainerPhase::Running => "running",
            ContainerPhase::Exited => "exited",
        };
        ContainerError::State {
            id: self.id.clone(),
            state,
            operation,
            remedy,
        }
    }
}

/// The name that no other container of the pod may have.
fn container_name(config: &ContainerConfig, pod: &str) -> String {
    let metadata = config.metadata.clone().unwrap_or_default();
    format!("{}_{pod}_{}", metadata.name, metadata.attempt)
}

/// What is remembered of a user that the agent found. More groups than the protocol allows are not believed.
fn user_record(mut user: ResolvedUser) -> UserRecord {
    user.groups.truncate(limits::LIST_ENTRIES);
    UserRecord {
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
    }
}

/// Makes the agent's error that of a container.
fn agent_error(container: &Arc<Container>) -> impl Fn(crate::sandbox::agent::AgentError) -> ContainerError {
    let id = container.id.clone();
    move |source| ContainerError::Agent {
        id: id.clone(),
        source,
    }
}
