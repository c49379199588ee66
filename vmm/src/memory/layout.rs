//! The map of the guest's physical address space.
//!
//! | from | what |
//! |---|---|
//! | 0 | RAM; [`BOOT_PAGE`] holds what the PVH entry is told, and is free once the kernel has read it |
//! | [`ACPI_START`] | ACPI tables and the generation ID, not RAM in the memory map |
//! | [`KERNEL_START`] | RAM up to 3 GiB: the kernel at the address its ELF file says, the initramfs at the end |
//! | [`LOW_RAM_LIMIT`] | no RAM: [`ECAM_START`], local APICs, what KVM needs for itself |
//! | [`HIGH_RAM_START`] | the RAM that did not fit below |
//! | [`BAR_WINDOW_START`] | memory of PCI functions |

/// Size of a page in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// The page with the PVH start info, memory map, module list and command line.
pub const BOOT_PAGE: u64 = 0x6000;

/// End of conventional memory below 1 MiB.
pub const CONVENTIONAL_END: u64 = 0xa_0000;

/// First byte of the ACPI tables; the RSDP is there.
pub const ACPI_START: u64 = 0xe_0000;

/// First byte after the ACPI tables and the generation ID.
pub const ACPI_END: u64 = 0x10_0000;

/// The page that holds the virtual machine generation ID.
pub const GENERATION_ID: u64 = 0xf_f000;

/// RAM begins again here, and a kernel may lie from here on.
pub const KERNEL_START: u64 = 0x10_0000;

/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_LIMIT: u64 = 0xc000_0000;

/// Memory-mapped configuration space (ECAM) of PCI bus 0.
pub const ECAM_START: u64 = 0xe000_0000;

/// One bus: 32 devices of 8 functions of 4 KiB.
pub const ECAM_SIZE: u64 = 0x10_0000;

/// Registers of the local APICs (architectural).
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// A page that KVM needs on processors that cannot run real mode in a guest.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Three pages that KVM needs on the same processors.
pub const KVM_TSS: usize = 0xfffb_d000;

/// RAM above the hole starts here.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// Memory of PCI functions, 1 GiB. At 256 GiB, which even processors with 39 address bits reach.
pub const BAR_WINDOW_START: u64 = 0x40_0000_0000;

/// Last byte of that window.
pub const BAR_WINDOW_LAST: u64 = BAR_WINDOW_START + 0x3fff_ffff;

/// The most RAM that fits below [`BAR_WINDOW_START`], in MiB.
pub const RAM_LIMIT_MIB: u32 = 252 * 1024;

/// The RAM of a guest, as address ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRanges {
    /// First byte after the RAM below 4 GiB.
    pub low_end: u64,
    /// First byte after the RAM from [`HIGH_RAM_START`] on; equal to it when there is none.
    pub high_end: u64,
}

impl RamRanges {
    /// How `mib` MiB of RAM are laid out.
    pub fn of(mib: u32) -> Self {
        let bytes = u64::from(mib) << 20;
        let low_end = bytes.min(LOW_RAM_LIMIT);
        Self {
            low_end,
            high_end: HIGH_RAM_START + (bytes - low_end),
        }
    }

    /// Bytes of RAM from [`HIGH_RAM_START`] on.
    pub fn high_size(&self) -> u64 {
        self.high_end - HIGH_RAM_START
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_beyond_three_gibibytes_goes_above_the_hole() {
        assert_eq!(
            RamRanges::of(128),
            RamRanges {
                low_end: 128 << 20,
                high_end: HIGH_RAM_START
            }
        );
        let large = RamRanges::of(4096);
        assert_eq!((large.low_end, large.high_size()), (LOW_RAM_LIMIT, 1 << 30));
    }

    #[test]
    fn the_largest_ram_ends_where_the_window_starts() {
        assert!(RamRanges::of(RAM_LIMIT_MIB).high_end <= BAR_WINDOW_START);
    }
}
