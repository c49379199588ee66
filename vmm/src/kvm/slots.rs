//! What the guest has for memory, as KVM sees it: the one place where host addresses are given away.
#![expect(unsafe_code, reason = "KVM takes host addresses of guest memory")]

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::{KvmError, refused};
use crate::memory::{ConfigPages, GuestRam, layout::ECAM_START};

/// Slot of the pages of PCI configuration space. RAM has fewer regions.
const CONFIG_PAGES_SLOT: u32 = 8;

/// Gives every region of `ram` to the machine. The machine must keep `ram` as long as its KVM descriptor.
pub(super) fn register(vm: &VmFd, ram: &GuestRam) -> Result<(), KvmError> {
    for (slot, region) in (0..).zip(ram.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr().addr() as u64,
        };
        // SAFETY: The range is a whole mapping owned by `ram`, which lives as long as the machine (the caller keeps it
        // beside the descriptor), and is only accessed through volatile operations, so the guest may change it at
        // any time.
        unsafe { vm.set_user_memory_region(slot) }.map_err(refused("take the guest's memory"))?;
    }
    Ok(())
}

/// Gives the machine `pages`, which it can read and not write: a write interrupts the guest as if there were nothing. The machine
/// must keep `pages` as long as its KVM descriptor.
pub(super) fn register_config_pages(vm: &VmFd, pages: &ConfigPages) -> Result<(), KvmError> {
    let mapping = pages.mapping();
    let slot = kvm_userspace_memory_region {
        slot: CONFIG_PAGES_SLOT,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: ECAM_START,
        memory_size: mapping.size() as u64,
        userspace_addr: mapping.as_ptr().addr() as u64,
    };
    // SAFETY: The range is a whole mapping owned by `pages`, which lives as long as the machine (the caller keeps it beside the
    // descriptor), is only accessed through volatile operations, and is not written by the guest.
    unsafe { vm.set_user_memory_region(slot) }.map_err(refused("take read-only memory"))
}
