//! The host's KVM: opened once, and checked for all that is used later.

use std::{io, ops::RangeInclusive};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use super::{KvmError, refused};

/// The API version since Linux 2.6.22; it will not change again.
const API_VERSION: i32 = 12;

/// Synthetic registers of Hyper-V (TLFS, appendix C).
const HYPER_V: RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;

/// Every capability that is used without asking again, with the name it has in the kernel's documentation.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::EnableCapVm, "KVM_CAP_ENABLE_CAP_VM"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IoeventfdNoLength, "KVM_CAP_IOEVENTFD_NO_LENGTH"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
];

/// An open `/dev/kvm` that has what this VMM needs.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
}

impl Host {
    /// Opens `/dev/kvm` and checks it.
    ///
    /// # Errors
    ///
    /// [`KvmError`] saying what is missing.
    pub fn open() -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(|error| {
            let error: io::Error = error.into();
            match error.kind() {
                io::ErrorKind::NotFound => KvmError::NoDevice,
                io::ErrorKind::PermissionDenied => KvmError::Denied(error),
                _ => KvmError::Open(error),
            }
        })?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(KvmError::ApiVersion(version));
        }
        let missing: Vec<&str> = NEEDED
            .iter()
            .filter(|(capability, _)| !kvm.check_extension(*capability))
            .map(|(_, name)| *name)
            .collect();
        if !missing.is_empty() {
            return Err(KvmError::Lacks(missing.join(", ")));
        }
        Ok(Self { kvm })
    }

    /// Checks that a machine of `count` vCPUs can be run.
    ///
    /// # Errors
    ///
    /// [`KvmError::TooManyVcpus`].
    pub fn check_vcpus(&self, count: u8) -> Result<(), KvmError> {
        let most = self.kvm.get_max_vcpus();
        if usize::from(count) > most {
            return Err(KvmError::TooManyVcpus { asked: count, most });
        }
        Ok(())
    }

    pub(super) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// What the processor and KVM can give to a guest.
    pub(super) fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("say what the processor can do"))
    }

    /// The registers that make up a vCPU beyond those with calls of their own. KVM lists those of Hyper-V's interface for
    /// every guest; ours are not offered it.
    pub(super) fn msr_indices(&self) -> Result<Vec<u32>, KvmError> {
        Ok(self
            .kvm
            .get_msr_index_list()
            .map_err(refused("list model-specific registers"))?
            .as_slice()
            .iter()
            .copied()
            .filter(|index| !HYPER_V.contains(index))
            .collect())
    }
}
