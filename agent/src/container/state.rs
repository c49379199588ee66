//! A container as it stands: what it holds and what it is doing.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bulkhead_proto::agent::limits::CONTAINERS;

use super::{
    cgroup::Cgroup,
    error::ContainerError,
    launch::report::Reports,
    process::{Process, Progress},
    spec::ProcessSpec,
    user::ResolvedUser,
};
use crate::{
    stats::writable_layer::LayerUsage,
    storage::{overlay::Overlay, scratch::WritableLayer},
};

/// A container.
#[derive(Debug)]
pub struct Container {
    pub(super) id: String,
    /// Its first process as it was asked for, from which execs inherit.
    pub(super) spec: ProcessSpec,
    pub(super) user: ResolvedUser,
    pub(super) cgroup: Arc<Cgroup>,
    pub(super) first: Process,
    /// Until it is started.
    pub(super) starter: Mutex<Option<Starter>>,
    /// Those whose exits are not acknowledged.
    pub(super) execs: Mutex<BTreeMap<String, Exec>>,
    pub(super) devpts: OwnedFd,
    /// Until it is removed.
    pub(super) root: Mutex<Option<Overlay>>,
    pub(super) writable: WritableLayer,
    pub(super) usage: LayerUsage,
    /// Held while it is started or removed.
    pub(super) changing: tokio::sync::Mutex<()>,
}

/// What starts a prepared first process.
#[derive(Debug)]
pub(super) struct Starter {
    pub(super) gate: OwnedFd,
    pub(super) reports: Reports,
}

/// A process beside the first.
#[derive(Debug)]
pub(super) enum Exec {
    /// Its name is taken, and it is being started.
    Starting,
    Started(Arc<Process>),
}

/// What a container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not started.
    Created,
    /// Started.
    Running,
    /// Its first process has ended.
    Stopped,
}

impl Container {
    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it is doing.
    pub fn phase(&self) -> Phase {
        match self.first.progress() {
            Progress::Running if locked(&self.starter).is_some() => Phase::Created,
            Progress::Running => Phase::Running,
            Progress::Exited(_) | Progress::Finished(_) => Phase::Stopped,
        }
    }

    /// Its first process.
    pub fn first(&self) -> &Process {
        &self.first
    }

    /// Its control group.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// What was measured of its writable layer.
    pub fn usage(&self) -> &LayerUsage {
        &self.usage
    }

    /// Its writable layer.
    pub fn writable(&self) -> &WritableLayer {
        &self.writable
    }

    /// Refuses what can be done only in `phase`.
    pub(super) fn must_be(&self, phase: Phase, wanted: &'static str) -> Result<(), ContainerError> {
        if self.phase() == phase {
            Ok(())
        } else {
            Err(self.wrong_state(wanted))
        }
    }

    pub(super) fn wrong_state(&self, wanted: &'static str) -> ContainerError {
        ContainerError::WrongState {
            container: self.id.clone(),
            state: match self.phase() {
                Phase::Created => "not started",
                Phase::Running => "running",
                Phase::Stopped => "stopped",
            },
            wanted,
        }
    }

    /// The exec of that name.
    pub fn exec(&self, exec: &str) -> Result<Arc<Process>, ContainerError> {
        match locked(&self.execs).get(exec) {
            Some(Exec::Started(process)) => Ok(process.clone()),
            _ => Err(ContainerError::NoExec {
                container: self.id.clone(),
                exec: exec.to_owned(),
            }),
        }
    }

    /// Takes the name of an exec.
    pub(super) fn reserve_exec(self: &Arc<Self>, exec: &str) -> Result<ExecReservation, ContainerError> {
        let mut execs = locked(&self.execs);
        if execs.contains_key(exec) {
            return Err(ContainerError::ExecExists {
                container: self.id.clone(),
                exec: exec.to_owned(),
            });
        }
        if execs.len() >= CONTAINERS {
            return Err(ContainerError::TooMany {
                what: "processes of a container whose exits are not acknowledged",
                most: CONTAINERS,
            });
        }
        execs.insert(exec.to_owned(), Exec::Starting);
        Ok(ExecReservation {
            container: self.clone(),
            exec: exec.to_owned(),
        })
    }
}

/// A name that is taken for an exec to come; free again if it does not come.
#[derive(Debug)]
pub(super) struct ExecReservation {
    container: Arc<Container>,
    exec: String,
}

impl ExecReservation {
    /// The name becomes that of `process`.
    pub(super) fn fill(self, process: Arc<Process>) {
        locked(&self.container.execs).insert(self.exec.clone(), Exec::Started(process));
    }
}

impl Drop for ExecReservation {
    fn drop(&mut self) {
        let mut execs = locked(&self.container.execs);
        if matches!(execs.get(&self.exec), Some(Exec::Starting)) {
            execs.remove(&self.exec);
        }
    }
}

/// Locks what only the agent's one thread uses.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
