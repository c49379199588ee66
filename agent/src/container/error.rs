//! What can be wrong with a container or with what is asked of it.

use std::io;

use super::{cgroup::CgroupError, launch::report::ChildFailure, user::UserError};
use crate::{
    storage::{
        filesystem::FilesystemError, layers::LayerError, overlay::OverlayError, scratch::ScratchError,
    },
    sys::signals::LARGEST,
};

/// Something asked of a container cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// No such container.
    #[error("there is no container {0}")]
    NotFound(String),
    /// No such exec.
    #[error("container {container} has no process {exec}")]
    NoExec {
        /// The container.
        container: String,
        /// The exec.
        exec: String,
    },
    /// The name is taken.
    #[error("container {0} exists already")]
    Exists(String),
    /// The name is taken.
    #[error(
        "container {container} has a process {exec} already; acknowledge its exit before the name is used again"
    )]
    ExecExists {
        /// The container.
        container: String,
        /// The exec.
        exec: String,
    },
    /// It is not there yet.
    #[error("container {0} is still being created")]
    BeingCreated(String),
    /// Not in this state.
    #[error("container {container} is {state}: it cannot be {wanted}")]
    WrongState {
        /// The container.
        container: String,
        /// What it is.
        state: &'static str,
        /// What was asked.
        wanted: &'static str,
    },
    /// A bound of the protocol.
    #[error("{most} {what} are the most there can be")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        most: usize,
    },
    /// A layer of its root.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// Its writable layer.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// Its root.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// What it wants to see of another image.
    #[error("the image for {destination} has no usable {path:?}")]
    NotInImage {
        /// Where it was to be mounted.
        destination: String,
        /// The path in the image.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its control group.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A memory limit that its processes are over already.
    #[error(
        "container {container} uses {used} bytes of memory that cannot be taken back, which is more than the new limit of {limit}"
    )]
    OverLimit {
        /// The container.
        container: String,
        /// Bytes.
        used: u64,
        /// Bytes.
        limit: u64,
    },
    /// Its user.
    #[error(transparent)]
    User(#[from] UserError),
    /// Its terminals.
    #[error("cannot make the container's terminals")]
    Devpts(#[source] FilesystemError),
    /// Its first process, or an exec.
    #[error(transparent)]
    Child(#[from] ChildFailure),
    /// It has not ended.
    #[error("process {exec} of container {container} still runs; its exit cannot be acknowledged")]
    StillRuns {
        /// The container.
        container: String,
        /// The exec.
        exec: String,
    },
    /// It died on the way.
    #[error("the process ended before its program was executed")]
    DiedEarly,
    /// It was asked for by a number that is none.
    #[error("{0} is no signal; the numbers are 1 to {LARGEST}")]
    BadSignal(u32),
    /// A container's processes end at once only by SIGKILL.
    #[error("signal {0} for all processes; only SIGKILL (9) can be sent to all")]
    NotKill(u32),
    /// It has none.
    #[error("process {exec:?} of container {container} has no terminal")]
    NoTerminal {
        /// The container.
        container: String,
        /// The exec.
        exec: String,
    },
    /// A step of its own.
    #[error("cannot {what}")]
    Step {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

pub(super) fn step(what: &'static str) -> impl FnOnce(io::Error) -> ContainerError {
    move |source| ContainerError::Step { what, source }
}
