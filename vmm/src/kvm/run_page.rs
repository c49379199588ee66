//! The page that a vCPU shares with KVM: what is read and written of it beyond what the bindings offer.
#![expect(
    unsafe_code,
    reason = "the page is shared with the kernel and with the thread that kicks the vCPU"
)]

use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU8, Ordering},
};

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};

/// `kvm_run.immediate_exit` of a vCPU: while it is set, `KVM_RUN` finishes what the last exit left open and returns
/// at once. With the signal that follows, a kick is not lost whether it meets the vCPU before, in or after `KVM_RUN`.
#[derive(Debug)]
pub(super) struct ImmediateExit {
    flag: NonNull<u8>,
}

// SAFETY: The flag is only accessed atomically, and its mapping does not depend on a thread.
unsafe impl Send for ImmediateExit {}
// SAFETY: As above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// The flag in `page`. Whoever holds the result must keep the vCPU of that page.
    pub(super) fn of(page: &mut kvm_run) -> Self {
        Self {
            flag: NonNull::from(&mut page.immediate_exit),
        }
    }

    pub(super) fn set(&self) {
        self.atomic().store(1, Ordering::SeqCst);
    }

    pub(super) fn clear(&self) {
        self.atomic().store(0, Ordering::SeqCst);
    }

    fn atomic(&self) -> &AtomicU8 {
        // SAFETY: The byte lies in a mapping that lives as long as the vCPU, which the holder keeps; it is aligned as
        // every byte is; the kernel reads it as a single byte, and nobody else accesses it but through this type.
        unsafe { AtomicU8::from_ptr(self.flag.as_ptr()) }
    }
}

/// What `KVM_EXIT_INTERNAL_ERROR` in `page` means.
pub(super) fn internal_error(page: &kvm_run) -> String {
    // SAFETY: Every bit pattern is valid for the integers of this member of the union.
    let (kind, count, data) = unsafe {
        let error = &page.__bindgen_anon_1.internal;
        (error.suberror, error.ndata, error.data)
    };
    let kind = match kind {
        KVM_INTERNAL_ERROR_EMULATION => "an instruction that KVM cannot emulate",
        KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event was delivered",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an unexpected exit of the processor",
        _ => "an unknown internal error",
    };
    let data: Vec<String> = data
        .iter()
        .take(usize::try_from(count).unwrap_or(0))
        .map(|word| format!("{word:#x}"))
        .collect();
    format!("{kind} [{}]", data.join(" "))
}
