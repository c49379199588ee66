//! Messages of the control socket.
//!
//! The socket is `AF_UNIX`/`SOCK_SEQPACKET`. A packet from the client is one JSON [`Request`], with file descriptors
//! attached (`SCM_RIGHTS`) where the request names some; the machine answers each with one JSON [`Response`], in order.
//! A packet holds at most [`PACKET_BYTES`] bytes and [`PACKET_FDS`] descriptors. Several clients may be connected.

use serde::{Deserialize, Serialize};

use crate::config::{DiskConfig, NetConfig};

/// Largest packet in bytes.
pub const PACKET_BYTES: usize = 128 * 1024;

/// Most file descriptors with one packet: what Linux allows (SCM_MAX_FD is 253).
pub const PACKET_FDS: usize = 250;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Puts a disk on the bus. Each segment's `Fd(n)` is the n-th descriptor of the packet; paths are refused. The guest
    /// finds it when it rescans the bus.
    AddDisk(DiskConfig),
    /// Puts a network interface on the bus. Each of its taps is the number of a descriptor of the packet, from 0. The guest finds
    /// it when it rescans the bus.
    AddNet(NetConfig),
    /// Stops vCPUs and devices; returns when they stand still.
    Pause,
    /// Lets them go on.
    Resume,
    /// Asks how the machine is.
    State,
    /// Ends the machine; the answer comes first.
    Quit,
}

/// The machine's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Response {
    /// Done.
    Done,
    /// To [`Request::State`].
    State(MachineState),
    /// Refused or failed; nothing was changed.
    Error(ControlFailure),
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlFailure {
    /// One sentence: the object, what is wrong and what to do.
    pub message: String,
}

/// How a machine is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// Name from its configuration.
    pub name: String,
    /// Whether it runs.
    pub phase: MachinePhase,
    /// Process id of the VMM.
    pub pid: u32,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Serials of the disks on the bus.
    pub disks: Vec<String>,
    /// Hardware addresses of the network interfaces on the bus.
    pub nets: Vec<String>,
    /// From the start of the process to the first entry into the guest, in microseconds; 0 until then.
    pub setup_us: u64,
}

/// Whether a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachinePhase {
    /// vCPUs and devices run.
    Running,
    /// They stand still, by request.
    Paused,
}
