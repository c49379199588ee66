//! The kernel's virtual machine: host check, virtual machine, vCPUs and the threads that run them.

use std::io;

mod cpuid;
mod gate;
mod host;
mod run_page;
mod slots;
mod vcpu;
mod vcpu_state;
mod vcpu_thread;
mod vm;
mod xsave;

pub use host::Host;
pub use vcpu::{GuestAccess, Stop, Vcpu};
pub use vcpu_state::VcpuState;
pub use vcpu_thread::{OnStop, VcpuThreads};
pub use vm::{ClockState, Vm};

/// What KVM can refuse.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device is not there.
    #[error(
        "there is no /dev/kvm: this host has no hardware virtualisation (vmx or svm in /proc/cpuinfo), \
         or its kernel module kvm_intel or kvm_amd is not loaded"
    )]
    NoDevice,
    /// The device is there and closed to us.
    #[error("/dev/kvm may not be opened by this user: {0}; run as root or join the group that owns it")]
    Denied(#[source] io::Error),
    /// The device is there and does not open.
    #[error("/dev/kvm cannot be opened: {0}; `dmesg` may say what kvm_intel or kvm_amd misses")]
    Open(#[source] io::Error),
    /// Not the KVM of the last fifteen years.
    #[error("/dev/kvm has API version {0} where 12 is needed; the host's kernel is too old")]
    ApiVersion(i32),
    /// What this VMM needs and the host's kernel has not.
    #[error("KVM of this host lacks {0}; Linux 5.10 or newer on x86-64 has it all")]
    Lacks(String),
    /// More vCPUs than the host's kernel runs.
    #[error("KVM of this host runs at most {most} vCPUs in a machine, {asked} are asked for")]
    TooManyVcpus {
        /// What the configuration asks for.
        asked: u8,
        /// What KVM allows.
        most: usize,
    },
    /// A call failed.
    #[error("KVM refused to {what}: {source}")]
    Refused {
        /// What was asked of it, such as "create vCPU 1".
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A thread could not be started or signalled.
    #[error("the thread of vCPU {index} could not be {what}: {source}")]
    Thread {
        /// Which vCPU.
        index: usize,
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A saved state is not for this vCPU or host.
    #[error("the saved state of vCPU {index} cannot be used: {reason}")]
    BadState {
        /// Which vCPU.
        index: u8,
        /// Why.
        reason: String,
    },
}

/// Names a refused call.
fn refused<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> KvmError {
    move |error| KvmError::Refused {
        what: what.into(),
        source: error.into(),
    }
}
