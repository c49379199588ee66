//! Saving and restoring a vCPU.
//!
//! The order matters, and is the one that has proven itself with KVM: saving starts with MP_STATE, because reading it makes
//! KVM settle pending INIT and SIPI, and ends with VCPU_EVENTS, because reading the others can queue events. Restoring
//! starts with CPUID, on which the validity of nearly all the rest depends; the local APIC needs the APIC base in SREGS;
//! the TSC must be there before the deadline that is compared with it; VCPU_EVENTS comes last, since setting other
//! registers clears pending events.

use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use serde::{Deserialize, Serialize};

use super::{KvmError, Vcpu, refused};

/// Version of [`VcpuState`].
const VERSION: u32 = 1;

/// Most entries in a CPUID table that KVM gives or takes.
const MOST_CPUID_ENTRIES: usize = 256;

/// Most registers in one call (`MAX_IO_MSRS` of KVM is 256).
const MSRS_AT_ONCE: usize = 128;

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// Frequencies further apart than this many parts in a million are set, nearer ones are the same within what KVM's own
/// calibration differs from boot to boot.
const TSC_TOLERANCE_PPM: u64 = 250;

/// Everything that makes up a vCPU.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    version: u32,
    index: u8,
    mp_state: kvm_mp_state,
    general: kvm_regs,
    system: kvm_sregs,
    xsave: kvm_xsave,
    extended_control: kvm_xcrs,
    debug: kvm_debugregs,
    local_apic: kvm_lapic_state,
    cpuid: Vec<kvm_cpuid_entry2>,
    msrs: Vec<kvm_msr_entry>,
    /// Absent on a host with an unstable TSC.
    tsc_khz: Option<u32>,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Where the vCPU stands in its program.
    pub fn instruction_pointer(&self) -> u64 {
        self.general.rip
    }
}

impl Vcpu {
    /// Saves the vCPU, which must not be running, with those of the model-specific registers in `msr_indices` that it has.
    pub(super) fn save(&self, msr_indices: &[u32]) -> Result<VcpuState, KvmError> {
        let what = |part: &str| refused(format!("read {part} of vCPU {}", self.index));
        let mp_state = self.fd.get_mp_state().map_err(what("the run state"))?;
        let general = self.fd.get_regs().map_err(what("registers"))?;
        let system = self.fd.get_sregs().map_err(what("system registers"))?;
        let xsave = self.fd.get_xsave().map_err(what("the extended state"))?;
        let extended_control = self.fd.get_xcrs().map_err(what("extended control registers"))?;
        let debug = self.fd.get_debug_regs().map_err(what("debug registers"))?;
        let local_apic = self.fd.get_lapic().map_err(what("the local APIC"))?;
        let cpuid = self
            .fd
            .get_cpuid2(MOST_CPUID_ENTRIES)
            .map_err(what("CPUID"))?
            .as_slice()
            .to_vec();
        let tsc_khz = self.fd.get_tsc_khz().ok();
        let msrs = self.read_msrs(msr_indices)?;
        let events = self.fd.get_vcpu_events().map_err(what("pending events"))?;
        Ok(VcpuState {
            version: VERSION,
            index: self.index,
            mp_state,
            general,
            system,
            xsave,
            extended_control,
            debug,
            local_apic,
            cpuid,
            msrs,
            tsc_khz,
            events,
        })
    }

    /// Gives the vCPU a saved state.
    pub(super) fn restore(&mut self, state: &VcpuState) -> Result<(), KvmError> {
        let bad = |reason: String| KvmError::BadState {
            index: self.index,
            reason,
        };
        if state.version != VERSION {
            return Err(bad(format!(
                "its version is {}, this binary knows {VERSION}",
                state.version
            )));
        }
        if state.index != self.index {
            return Err(bad(format!("it is of vCPU {}", state.index)));
        }
        let what = |part: &str| refused(format!("set {part} of vCPU {}", self.index));
        let cpuid = CpuId::from_entries(&state.cpuid)
            .map_err(|_| bad(format!("it has {} entries of CPUID", state.cpuid.len())))?;
        self.fd.set_cpuid2(&cpuid).map_err(what("CPUID"))?;
        self.restore_tsc_frequency(state.tsc_khz)?;
        self.fd
            .set_mp_state(state.mp_state)
            .map_err(what("the run state"))?;
        self.fd.set_regs(&state.general).map_err(what("registers"))?;
        self.fd
            .set_sregs(&state.system)
            .map_err(what("system registers"))?;
        self.set_xsave(&state.xsave).map_err(what("the extended state"))?;
        self.fd
            .set_xcrs(&state.extended_control)
            .map_err(what("extended control registers"))?;
        self.fd
            .set_debug_regs(&state.debug)
            .map_err(what("debug registers"))?;
        self.fd
            .set_lapic(&state.local_apic)
            .map_err(what("the local APIC"))?;
        for entries in msrs_in_order(&state.msrs).chunks(MSRS_AT_ONCE) {
            self.set_msrs(entries)?;
        }
        self.fd
            .set_vcpu_events(&state.events)
            .map_err(what("pending events"))?;
        self.excuse_pause();
        Ok(())
    }

    /// Reads every register that KVM lists and this vCPU has.
    fn read_msrs(&self, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, KvmError> {
        let mut found = Vec::with_capacity(indices.len());
        let mut left = indices;
        while !left.is_empty() {
            let (asked, _) = left.split_at(left.len().min(MSRS_AT_ONCE));
            let entries: Vec<kvm_msr_entry> = asked
                .iter()
                .map(|index| kvm_msr_entry {
                    index: *index,
                    ..kvm_msr_entry::default()
                })
                .collect();
            let mut msrs = Msrs::from_entries(&entries).map_err(|error| KvmError::BadState {
                index: self.index,
                reason: format!("{} registers do not fit one call: {error:?}", entries.len()),
            })?;
            let read = self.fd.get_msrs(&mut msrs).map_err(refused(format!(
                "read model-specific registers of vCPU {}",
                self.index
            )))?;
            found.extend(msrs.as_slice().iter().take(read));
            // KVM stops at the first register that this vCPU, given its CPUID, has not: leave that one out.
            let done = if read < asked.len() { read + 1 } else { read };
            left = left.get(done..).unwrap_or_default();
        }
        Ok(found)
    }

    fn restore_tsc_frequency(&self, saved: Option<u32>) -> Result<(), KvmError> {
        let (Some(saved), Ok(own)) = (saved, self.fd.get_tsc_khz()) else {
            return Ok(());
        };
        let apart = u64::from(saved.abs_diff(own)) * 1_000_000;
        if apart <= u64::from(own) * TSC_TOLERANCE_PPM {
            return Ok(());
        }
        self.fd.set_tsc_khz(saved).map_err(refused(format!(
            "run vCPU {} at the {saved} kHz it was saved with, on a processor of {own} kHz",
            self.index
        )))
    }
}

/// The registers in the order in which they can be written: the TSC before all, its deadline after all.
///
/// A deadline of 0 is written as the TSC's value: KVM reads 0 also when the timer expired between the reading of the
/// local APIC and now, and then the interrupt would be lost. One that comes without need does no harm, and without
/// deadline mode the write is ignored.
fn msrs_in_order(saved: &[kvm_msr_entry]) -> Vec<kvm_msr_entry> {
    let tsc = saved
        .iter()
        .find(|entry| entry.index == MSR_TSC)
        .map_or(0, |entry| entry.data);
    let rank = |entry: &kvm_msr_entry| match entry.index {
        MSR_TSC => 0,
        MSR_TSC_DEADLINE => 2,
        _ => 1,
    };
    let mut ordered = saved.to_vec();
    ordered.sort_by_key(rank);
    for entry in &mut ordered {
        if entry.index == MSR_TSC_DEADLINE && entry.data == 0 {
            entry.data = tsc;
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_comes_after_the_counter_it_is_compared_with() {
        let entry = |index, data| kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        };
        let ordered = msrs_in_order(&[
            entry(MSR_TSC_DEADLINE, 0),
            entry(0x1a0, 1),
            entry(MSR_TSC, 77),
            entry(0x174, 3),
        ]);
        let order: Vec<(u32, u64)> = ordered.iter().map(|entry| (entry.index, entry.data)).collect();
        assert_eq!(
            order,
            [(MSR_TSC, 77), (0x1a0, 1), (0x174, 3), (MSR_TSC_DEADLINE, 77)]
        );
    }
}
