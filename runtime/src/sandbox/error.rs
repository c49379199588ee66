//! What can go wrong with a pod.

use super::{agent::AgentError, machine::MachineError, scratch::ScratchError};
use crate::{
    container::ContainerError,
    network::NetworkError,
    refusal::Refusal,
    store::StoreError,
    table::{LookupError, NameTaken},
};

/// Why a pod is not what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The request cannot be honoured.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Its name is in use.
    #[error("pod {0}")]
    NameTaken(#[from] NameTaken),
    /// There is no such pod.
    #[error("pod sandbox {0}")]
    Lookup(#[from] LookupError),
    /// The pod is not ready.
    #[error("pod sandbox {id} is not ready{}; create a new one", because(.why))]
    NotReady {
        /// The pod.
        id: String,
        /// Why it is not.
        why: String,
    },
    /// Its machine.
    #[error("pod sandbox {id}: {source}")]
    Machine {
        /// The pod.
        id: String,
        /// What is wrong.
        source: MachineError,
    },
    /// Its scratch disk.
    #[error("pod sandbox {id}: {source}")]
    Scratch {
        /// The pod.
        id: String,
        /// What is wrong.
        source: ScratchError,
    },
    /// Its agent.
    #[error("pod sandbox {id}: {source}")]
    Agent {
        /// The pod.
        id: String,
        /// What is wrong.
        source: AgentError,
    },
    /// The cluster's network.
    #[error("pod sandbox {id}: {source}")]
    Network {
        /// The pod.
        id: String,
        /// What is wrong.
        source: Box<NetworkError>,
    },
    /// Something of the host's kernel.
    #[error("pod sandbox {id}: cannot {action}: {source}")]
    Host {
        /// The pod.
        id: String,
        /// What was being done, with its object.
        action: String,
        /// What is wrong.
        source: std::io::Error,
    },
    /// The durable state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The client went away while the pod was being made.
    #[error("pod sandbox {id}: the request was cancelled; what had been made is removed")]
    Cancelled {
        /// The pod.
        id: String,
    },
    /// One of its containers does not go.
    #[error("pod sandbox {id}: {source}")]
    Container {
        /// The pod.
        id: String,
        /// What is wrong.
        source: Box<ContainerError>,
    },
    /// A task of the daemon ended before it was done.
    #[error("the operation ended unexpectedly; see the daemon's log")]
    Interrupted,
}

fn because(why: &str) -> String {
    if why.is_empty() {
        String::new()
    } else {
        format!(": {why}")
    }
}
