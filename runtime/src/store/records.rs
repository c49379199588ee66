//! What is remembered of a pod and of a container.
//!
//! Records are protocol buffers: they hold the CRI messages as they came, and a newer daemon reads an older one's.

use bulkhead_proto::cri::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};

/// A pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodRecord {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The request's configuration.
    #[prost(message, optional, tag = "2")]
    pub config: Option<PodSandboxConfig>,
    /// The request's runtime handler.
    #[prost(string, tag = "3")]
    pub runtime_handler: String,
    /// Nanoseconds since the epoch.
    #[prost(int64, tag = "4")]
    pub created_at_ns: i64,
    /// Where in its life it is.
    #[prost(enumeration = "PodPhase", tag = "5")]
    pub phase: i32,
    /// Its control group on the host, from the root of the hierarchy.
    #[prost(string, tag = "6")]
    pub cgroup: String,
    /// Its machine, once started.
    #[prost(message, optional, tag = "7")]
    pub machine: Option<MachineRecord>,
    /// Why it is not ready; empty while it is, and after an ordinary stop.
    #[prost(string, tag = "8")]
    pub message: String,
    /// Its addresses in the cluster's network, the first of which is the one to be reached at.
    #[prost(string, repeated, tag = "9")]
    pub addresses: Vec<String>,
}

/// A virtual machine.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MachineRecord {
    /// Process of the VMM.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// When that process started, in clock ticks after boot: tells it from a later one with the same id.
    #[prost(uint64, tag = "2")]
    pub start_ticks: u64,
    /// The host's boot that it belongs to.
    #[prost(string, tag = "3")]
    pub boot_id: String,
    /// Virtual CPUs.
    #[prost(uint32, tag = "4")]
    pub vcpus: u32,
    /// Guest memory in MiB.
    #[prost(uint32, tag = "5")]
    pub memory_mib: u32,
    /// Release of the guest's kernel, as its agent said.
    #[prost(string, tag = "6")]
    pub kernel_release: String,
    /// Version of the agent.
    #[prost(string, tag = "7")]
    pub agent_version: String,
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PodPhase {
    /// The intent is written; nothing, something or all of it may exist.
    Creating = 0,
    /// The machine runs and its agent answers.
    Ready = 1,
    /// The machine is gone.
    NotReady = 2,
}

/// A container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerRecord {
    /// Its id, also in the agent's protocol.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Pod it is in.
    #[prost(string, tag = "2")]
    pub pod_id: String,
    /// The request's configuration.
    #[prost(message, optional, tag = "3")]
    pub config: Option<ContainerConfig>,
    /// Absolute path of the log; empty for none.
    #[prost(string, tag = "4")]
    pub log_path: String,
    /// The image, as it was resolved.
    #[prost(message, optional, tag = "5")]
    pub image: Option<ImageRecord>,
    /// Linux's number of the signal that asks it to stop.
    #[prost(uint32, tag = "6")]
    pub stop_signal: u32,
    /// Who its first process is.
    #[prost(message, optional, tag = "7")]
    pub user: Option<UserRecord>,
    /// Limits in force.
    #[prost(message, optional, tag = "8")]
    pub resources: Option<LinuxContainerResources>,
    /// Where in its life it is.
    #[prost(enumeration = "ContainerPhase", tag = "9")]
    pub phase: i32,
    /// Nanoseconds since the epoch.
    #[prost(int64, tag = "10")]
    pub created_at_ns: i64,
    /// Nanoseconds since the epoch; 0 before.
    #[prost(int64, tag = "11")]
    pub started_at_ns: i64,
    /// Nanoseconds since the epoch; 0 before.
    #[prost(int64, tag = "12")]
    pub finished_at_ns: i64,
    /// Exit code, 128 and the signal's number for one that a signal ended.
    #[prost(int32, tag = "13")]
    pub exit_code: i32,
    /// Why it ended, in one word.
    #[prost(string, tag = "14")]
    pub reason: String,
    /// Why it ended, in a sentence.
    #[prost(string, tag = "15")]
    pub message: String,
}

/// The image of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageRecord {
    /// Digest of its configuration, with "sha256:".
    #[prost(string, tag = "1")]
    pub id: String,
    /// The form with a digest, such as `registry/name@sha256:…`.
    #[prost(string, tag = "2")]
    pub digest_reference: String,
    /// Its first tag, or what the user asked for.
    #[prost(string, tag = "3")]
    pub name: String,
}

/// Who a process is in the guest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UserRecord {
    /// User.
    #[prost(uint32, tag = "1")]
    pub uid: u32,
    /// Primary group.
    #[prost(uint32, tag = "2")]
    pub gid: u32,
    /// All groups.
    #[prost(uint32, repeated, tag = "3")]
    pub groups: Vec<u32>,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ContainerPhase {
    /// Prepared in the guest, not started.
    Created = 0,
    /// Its first process was started.
    Running = 1,
    /// Its first process ended, or it can never start.
    Exited = 2,
}
