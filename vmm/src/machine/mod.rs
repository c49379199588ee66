//! One machine, from its configuration to its end.

mod access;
mod build;
mod ending;
mod files;
mod hot_plug;
mod inherited;
mod lifecycle;
mod run;
mod signals;
mod start_time;

use std::{
    io,
    os::fd::{OwnedFd, RawFd},
    sync::Arc,
};

pub use build::build;
pub use ending::Endings;
pub use files::Sources;
pub use run::run;
pub use signals::{EndSignals, block as block_end_signals};
pub use start_time::ProcessStart;

use crate::{
    boot::BootError,
    config::{ConfigError, VmConfig},
    control::protocol::MachinePhase,
    kvm::{Host, KvmError, VcpuThreads, Vm},
    memory::{GuestRam, MemoryError},
    pci::BusFull,
    virtio::{
        block::BlockError, console::RingFileError, device::DeviceError, net::NetError, vsock::VsockError,
    },
};
use access::Accesses;

/// Why a machine cannot be built or go on.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration asks for what cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file or socket cannot be opened.
    #[error("the {what} {name} cannot be opened: {source}")]
    File {
        /// Its role, such as "kernel".
        what: &'static str,
        /// Its path or descriptor.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A descriptor that was to be inherited.
    #[error("file descriptor {number} of the configuration cannot be used: {reason}")]
    Inherited {
        /// Its number.
        number: RawFd,
        /// Why.
        reason: &'static str,
    },
    /// A disk is none.
    #[error(transparent)]
    Disk(#[from] BlockError),
    /// A descriptor for a request is missing.
    #[error("{what} is to come with the request: {reason}")]
    Attachment {
        /// What needs it.
        what: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A second disk of the same serial.
    #[error("a disk of serial {0} is on the bus already")]
    SerialInUse(String),
    /// A second network interface of the same hardware address.
    #[error("a network interface with the hardware address {0} is on the bus already")]
    MacInUse(String),
    /// No place on the bus.
    #[error(transparent)]
    BusFull(#[from] BusFull),
    /// The console's file cannot be one.
    #[error(transparent)]
    Console(#[from] RingFileError),
    /// The virtual socket device cannot be.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A network interface cannot be.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// KVM failed.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No kernel that boots.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The machine is not in the phase that a request needs.
    #[error("the machine is {now}, {needed}")]
    Phase {
        /// How it is.
        now: &'static str,
        /// What it takes.
        needed: &'static str,
    },
    /// A saved state is of another machine.
    #[error("the saved state cannot be used: {0}")]
    BadState(String),
    /// The kernel refused what a process can always have.
    #[error("the operating system refused {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A machine that has been built. It runs from [`Machine::resume`] on.
#[derive(Debug)]
pub struct Machine {
    config: VmConfig,
    hardware: Hardware,
    endings: Arc<Endings>,
    ram: GuestRam,
    phase: MachinePhase,
    /// Serials of the disks on the bus, in order.
    disks: Vec<String>,
    /// Hardware addresses of the network interfaces on the bus, in order.
    nets: Vec<[u8; 6]>,
    started: ProcessStart,
}

/// All of a machine but the contents of its memory.
#[derive(Debug)]
struct Hardware {
    vcpus: VcpuThreads,
    accesses: Arc<Accesses>,
    vm: Arc<Vm>,
    host: Host,
    /// The control socket, until it is served.
    control: Option<OwnedFd>,
}

/// Names a refusal of the operating system.
fn system(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::System { what, source }
}

/// Descriptors that came with a request.
pub type Attachments = Vec<OwnedFd>;
