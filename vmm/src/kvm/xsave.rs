//! Setting the extended state of a vCPU.
#![expect(
    unsafe_code,
    reason = "KVM may read more than the structure when large states are permitted"
)]

use kvm_bindings::kvm_xsave;

use super::Vcpu;

impl Vcpu {
    /// Sets the extended (FPU, SSE, AVX) state.
    pub(super) fn set_xsave(&self, state: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
        // SAFETY: KVM reads more than 4096 bytes only for features that a process must ask for (arch_prctl,
        // ARCH_REQ_XCOMP_GUEST_PERM); this VMM never asks.
        unsafe { self.fd.set_xsave(state) }
    }
}
