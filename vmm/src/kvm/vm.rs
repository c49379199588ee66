//! One virtual machine of KVM.
//!
//! Interrupts: the local APICs are KVM's (split irqchip); there is no PIC, PIT or I/O APIC at all. Devices have only
//! MSI-X, delivered with `KVM_SIGNAL_MSI`: one call per interrupt, as an irqfd would cost one write, but without a
//! routing table that must be replaced as a whole (and waited for) each time the guest writes one of its vectors.

use std::{io, sync::Arc};

use kvm_bindings::{CpuId, KVM_CAP_SPLIT_IRQCHIP, kvm_clock_data, kvm_enable_cap, kvm_msi};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::{Host, KvmError, Vcpu, cpuid, refused, slots};
use crate::{
    memory::{
        ConfigPages, GuestRam,
        layout::{KVM_IDENTITY_MAP, KVM_TSS},
    },
    pci::PciHost,
};

/// `KVM_CAP_PMU_CAPABILITY`, since Linux 5.18, and its argument that leaves the guest without performance counters.
const CAP_PMU: u32 = 212;
const PMU_DISABLE: u64 = 1;

/// A machine: its memory is registered and its interrupt controllers are there; it has no vCPU yet.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    supported: CpuId,
    /// These two are kept because KVM holds host addresses of them; dropped after `fd`.
    _ram: GuestRam,
    _config_pages: Arc<ConfigPages>,
}

impl Vm {
    /// Creates a machine around `ram`. Its guest reads PCI configuration space from `config_pages`.
    ///
    /// # Errors
    ///
    /// [`KvmError::Refused`].
    pub fn create(host: &Host, ram: &GuestRam, config_pages: &Arc<ConfigPages>) -> Result<Self, KvmError> {
        let fd = host
            .kvm()
            .create_vm()
            .map_err(refused("create a virtual machine"))?;
        // Only processors without "unrestricted guest" use them, but they must be set before the first vCPU.
        fd.set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(refused("place the identity map"))?;
        fd.set_tss_address(KVM_TSS)
            .map_err(refused("place the task state segment"))?;
        enable(&fd, KVM_CAP_SPLIT_IRQCHIP, 0).map_err(refused("split the interrupt controller"))?;
        disable_performance_counters(&fd);
        slots::register(&fd, ram)?;
        slots::register_config_pages(&fd, config_pages)?;
        Ok(Self {
            fd,
            supported: host.supported_cpuid()?,
            _ram: GuestRam::clone(ram),
            _config_pages: Arc::clone(config_pages),
        })
    }

    /// Creates vCPU `index` of `count`.
    ///
    /// # Errors
    ///
    /// [`KvmError::Refused`].
    pub fn create_vcpu(&self, index: u8, count: u8) -> Result<Vcpu, KvmError> {
        let fd = self
            .fd
            .create_vcpu(u64::from(index))
            .map_err(refused(format!("create vCPU {index}")))?;
        let cpuid = cpuid::for_vcpu(&self.supported, index, count)?;
        Vcpu::new(index, fd, &cpuid)
    }

    /// Reads the guest's clock (nanoseconds of the machine's life, the base of the paravirtual clock).
    ///
    /// # Errors
    ///
    /// [`KvmError::Refused`].
    pub fn save_clock(&self) -> Result<ClockState, KvmError> {
        let clock = self.fd.get_clock().map_err(refused("read the guest's clock"))?;
        Ok(ClockState {
            nanoseconds: clock.clock,
        })
    }

    /// Sets the guest's clock, so that it goes on where it stood: the time between is not added, the agent steps the
    /// wall clock.
    ///
    /// # Errors
    ///
    /// [`KvmError::Refused`].
    pub fn restore_clock(&self, state: ClockState) -> Result<(), KvmError> {
        let clock = kvm_clock_data {
            clock: state.nanoseconds,
            ..kvm_clock_data::default()
        };
        self.fd
            .set_clock(&clock)
            .map_err(refused("set the guest's clock"))
    }
}

/// The machine's paravirtual clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockState {
    /// Nanoseconds since the machine began.
    pub nanoseconds: u64,
}

impl PciHost for Vm {
    fn signal(&self, address: u64, data: u32) {
        let [low, high] = [address & u64::from(u32::MAX), address >> 32]
            .map(|half| u32::try_from(half).expect("half of 64 bits fits 32"));
        let message = kvm_msi {
            address_lo: low,
            address_hi: high,
            data,
            ..kvm_msi::default()
        };
        // Address and data are the guest's: what KVM refuses in them reaches no processor, as on hardware.
        let _ = self.fd.signal_msi(message);
    }

    fn attach_doorbell(&self, doorbell: &EventFd, address: u64) -> io::Result<()> {
        Ok(self
            .fd
            .register_ioevent(doorbell, &IoEventAddress::Mmio(address), NoDatamatch)?)
    }

    fn detach_doorbell(&self, doorbell: &EventFd, address: u64) -> io::Result<()> {
        Ok(self
            .fd
            .unregister_ioevent(doorbell, &IoEventAddress::Mmio(address), NoDatamatch)?)
    }
}

fn enable(fd: &VmFd, capability: u32, argument: u64) -> Result<(), kvm_ioctls::Error> {
    fd.enable_cap(&kvm_enable_cap {
        cap: capability,
        args: [argument, 0, 0, 0],
        ..kvm_enable_cap::default()
    })
}

/// Where KVM can, it gives the guest no performance counters: they are a side channel, and state to be saved. Older
/// kernels follow the CPUID leaf, which says there are none.
fn disable_performance_counters(fd: &VmFd) {
    if fd.check_extension_raw(CAP_PMU.into()) > 0 {
        let _ = enable(fd, CAP_PMU, PMU_DISABLE);
    }
}
