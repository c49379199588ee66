//! What pods and containers use: asked of the guests, and read of the host.
//!
//! Containers are what their control groups in the guest say; a pod is what its machine costs the host, so that it counts
//! the guest's kernel, its page cache and the VMM as well. A guest may lie: what it says is bounded to what its machine
//! has, and what only grows is never shown smaller than before.

mod bounds;
mod collect;
mod control_group;
mod guest;
mod history;
mod machine;
pub(crate) mod process;

use std::{sync::Arc, time::Duration};

use bulkhead_proto::agent::{self, DiskSpace, InterfaceStats};

use crate::{
    container::{Container, ContainerError},
    sandbox::{Pod, agent::AgentError},
    table::LookupError,
};

pub use collect::{Detail, of_container, of_containers, of_pods};
pub use guest::GuestStats;
pub use history::History;

/// The figures of a control group, of the guest or of the host. Both have the same files, and the agent's message has a
/// field for all that is read of them.
pub type Figures = agent::ContainerStats;

/// The use of a container, or of a pod's machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// When it was measured, in nanoseconds since the epoch: later than of every measurement before it.
    pub at_ns: i64,
    /// What it was.
    pub figures: Figures,
    /// Thousand-millionths of a processor used between two measurements; unknown before there are two.
    pub nano_cores: Option<u64>,
}

/// What a guest has said of a container of its own.
#[derive(Clone, Debug)]
pub struct ContainerUsage {
    /// The container.
    pub container: Arc<Container>,
    /// Its use.
    pub usage: Usage,
}

/// What a guest has said.
#[derive(Clone, Debug, Default)]
pub struct GuestUsage {
    /// When it came, in nanoseconds since the epoch.
    pub at_ns: i64,
    /// Its running containers.
    pub containers: Vec<ContainerUsage>,
    /// Its network interfaces.
    pub interfaces: Vec<InterfaceStats>,
    /// Its scratch disk.
    pub scratch: Option<DiskSpace>,
    /// Processes of its containers.
    pub processes: u64,
}

/// The use of a pod.
#[derive(Clone, Debug)]
pub struct PodUsage {
    /// The pod.
    pub pod: Arc<Pod>,
    /// What its machine costs the host; unknown where it ends meanwhile.
    pub machine: Option<Usage>,
    /// What its guest says; nothing where that does not answer in time.
    pub guest: Option<Arc<GuestUsage>>,
}

/// Why there is nothing to be told of a container.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StatsError {
    /// The guest does not answer, or not yet.
    #[error(
        "the guest of container {id} has not told what it uses within {} s; ask again, or raise `timeouts.stats_seconds`",
        after.as_secs()
    )]
    Silent {
        /// The container.
        id: String,
        /// How long was waited.
        after: Duration,
    },
    /// The guest cannot be asked.
    #[error("the guest of container {id} does not tell what it uses: {source}")]
    Agent {
        /// The container.
        id: String,
        /// Why.
        source: AgentError,
    },
}

/// Why one container's use cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum OfContainerError {
    /// It does not run.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// Its pod is not there.
    #[error(transparent)]
    Pod(#[from] LookupError),
    /// Its guest.
    #[error(transparent)]
    Stats(#[from] StatsError),
}
