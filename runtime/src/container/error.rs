//! What can go wrong with a container.

use bulkhead_vmm::control::client::ControlError;

use super::image_volume::FAILED;
use crate::{
    image::ImageError,
    logs::LogError,
    refusal::Refusal,
    sandbox::{PodError, agent::AgentError, stream::StreamError},
    store::StoreError,
    table::{LookupError, NameTaken},
};

/// Why a container is not what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The request cannot be honoured.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Its name is in use.
    #[error("container {0}")]
    NameTaken(#[from] NameTaken),
    /// There is no such container.
    #[error("container {0}")]
    Lookup(#[from] LookupError),
    /// Its pod.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// Its image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its image could not be shown to the guest.
    #[error("container {id}: its image {image} cannot be attached: {source}")]
    Attach {
        /// The container.
        id: String,
        /// The image.
        image: String,
        /// What is wrong.
        source: ControlError,
    },
    /// An image that it mounts is not here.
    #[error("{FAILED}: image {image:?} for {destination} is not here; pull it first")]
    NoVolumeImage {
        /// Where it was to be mounted.
        destination: String,
        /// The image, as asked for.
        image: String,
    },
    /// A part of an image that it mounts does not exist.
    #[error("{FAILED}: container {id}: {reason}; correct image_sub_path")]
    NoVolumePath {
        /// The container.
        id: String,
        /// Which part of which mount.
        reason: String,
    },
    /// The state it is in does not allow it.
    #[error("container {id} is {state} and cannot be {operation}{remedy}")]
    State {
        /// The container.
        id: String,
        /// Its state, in words.
        state: &'static str,
        /// What was asked for, as a participle.
        operation: &'static str,
        /// "; " and what to do, or nothing.
        remedy: &'static str,
    },
    /// Its agent.
    #[error("container {id}: {source}")]
    Agent {
        /// The container.
        id: String,
        /// What is wrong.
        source: AgentError,
    },
    /// Its log.
    #[error("container {id}: {source}")]
    Log {
        /// The container.
        id: String,
        /// What is wrong.
        source: LogError,
    },
    /// A stream to one of its processes.
    #[error("container {id}: {source}")]
    Stream {
        /// The container.
        id: String,
        /// What is wrong.
        source: StreamError,
    },
    /// The command did not end in time.
    #[error("container {id}: the command was killed because it did not end within {seconds} s")]
    Timeout {
        /// The container.
        id: String,
        /// The request's timeout.
        seconds: i64,
    },
    /// Too many clients are attached to it.
    #[error("container {id}: {most} clients are attached to it already; end one of them")]
    Crowded {
        /// The container.
        id: String,
        /// How many there may be.
        most: usize,
    },
    /// A client that is attached to it did not keep up.
    #[error(
        "container {id}: the client was cut off because it has not taken the container's output for {seconds} s"
    )]
    FellBehind {
        /// The container.
        id: String,
        /// How long was waited for it.
        seconds: u64,
    },
    /// It was killed and does not end.
    #[error("container {id} does not end though it was killed; StopPodSandbox ends the whole pod")]
    Unkillable {
        /// The container.
        id: String,
    },
    /// The durable state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A task of the daemon ended before it was done.
    #[error("the operation ended unexpectedly; see the daemon's log")]
    Interrupted,
}
