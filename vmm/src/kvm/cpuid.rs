//! What a vCPU says of itself: all that KVM supports on this host, with the topology of this machine (one socket, one
//! thread per core, APIC id = index of the vCPU) and without what a pod's guest has no business with.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::KvmError;

/// Bits of leaf 1, ECX.
const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF1_ECX_PDCM: u32 = 1 << 15;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
/// Bit of leaf 1, EDX: more than one logical processor in the package.
const LEAF1_EDX_HTT: u32 = 1 << 28;
/// Bits of leaf 0x8000_0001, ECX.
const AMD_ECX_CMP_LEGACY: u32 = 1 << 1;
const AMD_ECX_SVM: u32 = 1 << 2;
const AMD_ECX_PERFORMANCE: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// Leaves left out: performance counters (0xa, 0x8000_0022), nested virtualisation (0x8000_000a), and the topology that is
/// written anew (0xb, 0x1f) or that would contradict it (0x8000_0026).
const LEFT_OUT: &[u32] = &[0xa, 0xb, 0x1f, 0x8000_000a, 0x8000_0022, 0x8000_0026];

/// The leaves with the extended topology, the same in both.
const TOPOLOGY_LEAVES: [u32; 2] = [0xb, 0x1f];

/// What vCPU `index` of `count` answers, given what KVM `supported`.
pub(super) fn for_vcpu(supported: &CpuId, index: u8, count: u8) -> Result<CpuId, KvmError> {
    let topology = Topology::of(index, count);
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| !LEFT_OUT.contains(&entry.function))
        .copied()
        .collect();
    for entry in &mut entries {
        topology.adapt(entry);
    }
    let last_basic_leaf = entries
        .iter()
        .find(|entry| entry.function == 0)
        .map_or(0, |entry| entry.eax);
    for leaf in TOPOLOGY_LEAVES
        .into_iter()
        .filter(|leaf| *leaf <= last_basic_leaf)
    {
        entries.extend(topology.levels(leaf));
    }
    CpuId::from_entries(&entries).map_err(|error| KvmError::Refused {
        what: format!("describe vCPU {index}"),
        source: std::io::Error::other(format!("{error:?}")),
    })
}

/// Where a vCPU sits in the one socket.
struct Topology {
    index: u32,
    count: u32,
    /// Bits of an APIC id that number the cores.
    core_bits: u32,
}

impl Topology {
    fn of(index: u8, count: u8) -> Self {
        let count = u32::from(count.max(1));
        Self {
            index: u32::from(index),
            count,
            core_bits: count.next_power_of_two().trailing_zeros(),
        }
    }

    fn adapt(&self, entry: &mut kvm_cpuid_entry2) {
        match entry.function {
            0x1 => {
                entry.ebx = field(entry.ebx, 24..32, self.index);
                entry.ebx = field(entry.ebx, 16..24, self.count);
                entry.ecx &= !(LEAF1_ECX_VMX | LEAF1_ECX_PDCM);
                entry.ecx |= LEAF1_ECX_TSC_DEADLINE | LEAF1_ECX_HYPERVISOR;
                entry.edx = if self.count > 1 {
                    entry.edx | LEAF1_EDX_HTT
                } else {
                    entry.edx & !LEAF1_EDX_HTT
                };
            }
            // Caches, Intel: ids reserved for cores of the package, and for threads that share the cache.
            0x4 if entry.eax & 0x1f != 0 => {
                entry.eax = field(entry.eax, 26..32, (1 << self.core_bits) - 1);
                entry.eax = field(entry.eax, 14..26, self.sharing(entry.eax));
            }
            0x8000_0001 => {
                entry.ecx &= !(AMD_ECX_SVM | AMD_ECX_PERFORMANCE | AMD_ECX_CMP_LEGACY);
                if self.count > 1 {
                    entry.ecx |= AMD_ECX_CMP_LEGACY;
                }
            }
            // Number of cores less one, and the bits that number them.
            0x8000_0008 => {
                entry.ecx = field(entry.ecx, 0..8, self.count - 1);
                entry.ecx = field(entry.ecx, 12..16, self.core_bits);
            }
            // Caches, AMD.
            0x8000_001d if entry.eax & 0x1f != 0 => {
                entry.eax = field(entry.eax, 14..26, self.sharing(entry.eax));
            }
            // APIC id, core id with one thread, node 0 of one.
            0x8000_001e => {
                entry.eax = self.index;
                entry.ebx = self.index;
                entry.ecx = 0;
                entry.edx = 0;
            }
            _ => {}
        }
    }

    /// How many vCPUs, less one, share the cache that `eax` describes: all of them from level 3 on.
    fn sharing(&self, eax: u32) -> u32 {
        let level = (eax >> 5) & 0x7;
        if level >= 3 { (1 << self.core_bits) - 1 } else { 0 }
    }

    /// The levels of the extended topology: thread, core, and the end mark.
    fn levels(&self, leaf: u32) -> [kvm_cpuid_entry2; 3] {
        let level = |number: u32, kind: u32, shift: u32, processors: u32| kvm_cpuid_entry2 {
            function: leaf,
            index: number,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: number | kind << 8,
            edx: self.index,
            ..kvm_cpuid_entry2::default()
        };
        [
            level(0, 1, 0, 1),
            level(1, 2, self.core_bits, self.count),
            level(2, 0, 0, 0),
        ]
    }
}

/// `register` with `value` in `bits`, cut to what fits.
fn field(register: u32, bits: std::ops::Range<u32>, value: u32) -> u32 {
    let mask = (1 << (bits.end - bits.start)) - 1;
    register & !(mask << bits.start) | (value & mask) << bits.start
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        }
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .copied()
    }

    #[test]
    fn the_third_of_three_vcpus_knows_its_place() {
        let host = CpuId::from_entries(&[
            entry(0x0, [0xd, 0, 0, 0]),
            entry(0x1, [0, 0x0012_0800, LEAF1_ECX_VMX, 0]),
            entry(0xb, [9, 9, 9, 9]),
            entry(0x8000_0001, [0, 0, AMD_ECX_SVM, 0]),
            entry(0x8000_0008, [0x3030, 0, 0x7077, 0]),
            entry(0x8000_000a, [1, 1, 1, 1]),
        ])
        .unwrap();
        let cpuid = for_vcpu(&host, 2, 3).unwrap();
        let one = leaf(&cpuid, 1, 0).unwrap();
        assert_eq!(one.ebx, 0x0203_0800);
        assert_eq!(one.ecx, LEAF1_ECX_TSC_DEADLINE | LEAF1_ECX_HYPERVISOR);
        assert_eq!(one.edx, LEAF1_EDX_HTT);
        let cores = leaf(&cpuid, 0xb, 1).unwrap();
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, 2));
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0).unwrap().ecx & 0xf0ff, 0x2002);
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).unwrap().ecx, AMD_ECX_CMP_LEGACY);
        assert_eq!(
            leaf(&cpuid, 0x8000_000a, 0),
            None,
            "nested virtualisation is offered"
        );
        assert_eq!(
            leaf(&cpuid, 0x1f, 0),
            None,
            "a leaf beyond the last basic one is there"
        );
    }
}
