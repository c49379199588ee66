//! One vCPU: how it starts, and what its exits mean.

use std::io;

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::{KvmError, refused, run_page};

/// What a guest's accesses outside its RAM reach.
pub trait GuestAccess: Send + Sync {
    /// The guest reads port `port` into `data`.
    fn read_port(&self, port: u16, data: &mut [u8]);
    /// The guest writes `data` to port `port`.
    fn write_port(&self, port: u16, data: &[u8]);
    /// The guest reads physical memory at `address` into `data`, at most 8 bytes.
    fn read_memory(&self, address: u64, data: &mut [u8]);
    /// The guest writes `data`, at most 8 bytes, to physical memory at `address`.
    fn write_memory(&self, address: u64, data: &[u8]);
}

/// Why a vCPU came out of the guest for good or for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was kicked; its state is complete.
    Kicked,
    /// A fault while a double fault was delivered: the processor has shut down.
    TripleFault,
    /// KVM cannot run it any further; the reason in one sentence.
    Failed(String),
}

/// One virtual processor.
#[derive(Debug)]
pub struct Vcpu {
    pub(super) index: u8,
    pub(super) fd: VcpuFd,
}

/// Model-specific registers as firmware leaves them. Linux takes string instructions for slow without the first, and
/// memory for uncached without the second (memory type write-back, ranges enabled).
const FIRMWARE_MSRS: &[(u32, u64)] = &[(MSR_IA32_MISC_ENABLE, 1), (MSR_MTRR_DEF_TYPE, 1 << 11 | 6)];
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;

/// Protected mode without paging.
const CR0_PE: u64 = 1;
/// The bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

impl Vcpu {
    pub(super) fn new(index: u8, fd: VcpuFd, cpuid: &CpuId) -> Result<Self, KvmError> {
        fd.set_cpuid2(cpuid)
            .map_err(refused(format!("describe vCPU {index}")))?;
        Ok(Self { index, fd })
    }

    /// Brings the first vCPU into the state that the PVH boot protocol asks for: 32-bit protected mode with flat
    /// segments, no paging, RBX pointing to the start info. The other vCPUs wait for it to start them.
    ///
    /// # Errors
    ///
    /// [`KvmError::Refused`].
    pub(super) fn prepare_boot(&self, entry: u64, start_info: u64) -> Result<(), KvmError> {
        let what = || refused("set the first vCPU's registers");
        let mut system = self.fd.get_sregs().map_err(what())?;
        let flat = kvm_segment {
            limit: u32::MAX,
            present: 1,
            s: 1,
            db: 1,
            g: 1,
            ..kvm_segment::default()
        };
        let code = kvm_segment {
            selector: 0x8,
            type_: 0xb,
            ..flat
        };
        let data = kvm_segment {
            selector: 0x10,
            type_: 0x3,
            ..flat
        };
        system.cs = code;
        (system.ds, system.es, system.ss) = (data, data, data);
        system.tr = kvm_segment {
            selector: 0x18,
            limit: 0x67,
            type_: 0xb,
            present: 1,
            ..kvm_segment::default()
        };
        system.cr0 = CR0_PE;
        system.cr4 = 0;
        system.efer = 0;
        self.fd.set_sregs(&system).map_err(what())?;
        let general = kvm_regs {
            rip: entry,
            rbx: start_info,
            rflags: RFLAGS_RESERVED,
            ..kvm_regs::default()
        };
        self.fd.set_regs(&general).map_err(what())
    }

    /// Sets what firmware would have set on every processor.
    ///
    /// # Errors
    ///
    /// [`KvmError::Refused`].
    pub fn prepare_registers(&self) -> Result<(), KvmError> {
        let entries: Vec<kvm_msr_entry> = FIRMWARE_MSRS
            .iter()
            .map(|(index, data)| kvm_msr_entry {
                index: *index,
                data: *data,
                ..kvm_msr_entry::default()
            })
            .collect();
        self.set_msrs(&entries)
    }

    /// Writes all of `entries`, in order.
    pub(super) fn set_msrs(&self, entries: &[kvm_msr_entry]) -> Result<(), KvmError> {
        let what = |index: Option<u32>| {
            format!(
                "set model-specific register {:#x} of vCPU {}",
                index.unwrap_or_default(),
                self.index
            )
        };
        let msrs = Msrs::from_entries(entries).map_err(|error| KvmError::Refused {
            what: what(None),
            source: io::Error::other(format!("{error:?}")),
        })?;
        let set = self.fd.set_msrs(&msrs).map_err(refused(what(None)))?;
        match entries.get(set) {
            None => Ok(()),
            Some(entry) => Err(KvmError::Refused {
                what: what(Some(entry.index)),
                source: io::ErrorKind::InvalidInput.into(),
            }),
        }
    }

    /// Runs the guest until it is kicked or cannot go on. After a kick no access is left half done: KVM completes the
    /// last one before it sees the kick.
    pub(super) fn run(&mut self, guest: &dyn GuestAccess) -> Stop {
        loop {
            match self.fd.run() {
                Ok(VcpuExit::MmioRead(address, data)) => guest.read_memory(address, data),
                Ok(VcpuExit::MmioWrite(address, data)) => guest.write_memory(address, data),
                Ok(VcpuExit::IoIn(port, data)) => guest.read_port(port, data),
                Ok(VcpuExit::IoOut(port, data)) => guest.write_port(port, data),
                Ok(VcpuExit::Intr) => return Stop::Kicked,
                Ok(VcpuExit::Shutdown) => return Stop::TripleFault,
                Ok(VcpuExit::FailEntry(reason, cpu)) => {
                    return Stop::Failed(format!(
                        "the processor refused to enter the guest (reason {reason:#x}, CPU {cpu})"
                    ));
                }
                Ok(VcpuExit::InternalError) => {
                    return Stop::Failed(format!(
                        "KVM met {}",
                        run_page::internal_error(self.fd.get_kvm_run())
                    ));
                }
                Ok(other) => {
                    return Stop::Failed(format!("KVM gave an exit that was not asked for: {other:?}"));
                }
                Err(error) => {
                    let error: io::Error = error.into();
                    match error.kind() {
                        io::ErrorKind::Interrupted => return Stop::Kicked,
                        // A vCPU that waited to be started by another one was woken for something else.
                        io::ErrorKind::WouldBlock => {}
                        _ => return Stop::Failed(format!("KVM_RUN failed: {error}")),
                    }
                }
            }
        }
    }

    /// Tells the guest that it was stopped, so that its watchdogs do not take the gap for a hang.
    pub(super) fn excuse_pause(&self) {
        // Refused when the guest has no paravirtual clock; then there is nothing to be told.
        let _ = self.fd.kvmclock_ctrl();
    }
}
