//! What the kernel is told at its PVH entry (Xen, `public/arch-x86/hvm/start_info.h`): memory map, initramfs, command
//! line and where the ACPI tables are. All of it fits in one page, so that no other page of low memory is touched.

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::{BootError, kernel::LoadedModule};
use crate::memory::{
    GuestRam,
    layout::{
        ACPI_END, ACPI_START, BOOT_PAGE, CONVENTIONAL_END, ECAM_SIZE, ECAM_START, HIGH_RAM_START,
        KERNEL_START, PAGE_SIZE, RamRanges,
    },
};

/// "xEn3" with its top bit set.
const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const VERSION: u32 = 1;

/// Longest command line in bytes, without the zero that ends it: what Linux takes on x86 (COMMAND_LINE_SIZE).
const COMMAND_LINE_MAX: usize = 2047;

const MODULES: u64 = BOOT_PAGE + 0x80;
const MEMORY_MAP: u64 = BOOT_PAGE + 0x100;
const COMMAND_LINE: u64 = BOOT_PAGE + 0x200;
const _: () = assert!(COMMAND_LINE + (COMMAND_LINE_MAX as u64) < BOOT_PAGE + PAGE_SIZE);

/// Kinds of memory (ACPI 6.5, table 15.4).
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// Writes the start info and what it points to; gives the address to be passed in RBX.
///
/// # Errors
///
/// [`BootError::CommandLine`] for one that is too long or has a zero byte.
pub fn write_start_info(
    ram: &GuestRam,
    ranges: RamRanges,
    command_line: &str,
    initramfs: Option<LoadedModule>,
) -> Result<u64, BootError> {
    let unfit = |reason| BootError::CommandLine {
        reason,
        length: command_line.len(),
    };
    if command_line.len() > COMMAND_LINE_MAX {
        return Err(unfit("is longer than 2047 bytes"));
    }
    if command_line.contains('\0') {
        return Err(unfit("has a zero byte"));
    }
    let memory_map = memory_map(ranges);
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: initramfs.is_some().into(),
        modlist_paddr: if initramfs.is_some() { MODULES } else { 0 },
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: ACPI_START,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(memory_map.len()).unwrap_or_default(),
        ..hvm_start_info::default()
    };
    write(ram, "the start info", BOOT_PAGE, start_info.as_slice())?;
    if let Some(initramfs) = initramfs {
        let module = hvm_modlist_entry {
            paddr: initramfs.address,
            size: initramfs.size,
            ..hvm_modlist_entry::default()
        };
        write(ram, "the module list", MODULES, module.as_slice())?;
    }
    for (address, entry) in (MEMORY_MAP..)
        .step_by(size_of::<hvm_memmap_table_entry>())
        .zip(&memory_map)
    {
        write(ram, "the memory map", address, entry.as_slice())?;
    }
    write(ram, "the command line", COMMAND_LINE, command_line.as_bytes())?;
    let end = COMMAND_LINE + command_line.len() as u64;
    write(ram, "the end of the command line", end, &[0])?;
    Ok(BOOT_PAGE)
}

fn memory_map(ranges: RamRanges) -> Vec<hvm_memmap_table_entry> {
    [
        (0, CONVENTIONAL_END, RAM),
        (ACPI_START, ACPI_END, RESERVED),
        (KERNEL_START, ranges.low_end, RAM),
        (ECAM_START, ECAM_START + ECAM_SIZE, RESERVED),
        (HIGH_RAM_START, ranges.high_end, RAM),
    ]
    .into_iter()
    .filter(|(start, end, _)| start < end)
    .map(|(start, end, kind)| hvm_memmap_table_entry {
        addr: start,
        size: end - start,
        type_: kind,
        reserved: 0,
    })
    .collect()
}

fn write(ram: &GuestRam, what: &'static str, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    ram.write_slice(bytes, GuestAddress(address))
        .map_err(|error| BootError::Write {
            what,
            reason: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    #[test]
    fn the_longest_command_line_fits_and_ends_with_a_zero() {
        let ram = allocate(32).unwrap();
        let longest = "x".repeat(COMMAND_LINE_MAX);
        let address = write_start_info(&ram, RamRanges::of(32), &longest, None).unwrap();
        let info: hvm_start_info = ram.read_obj(GuestAddress(address)).unwrap();
        assert_eq!((info.magic, info.nr_modules, info.modlist_paddr), (MAGIC, 0, 0));
        let end: u16 = ram
            .read_obj(GuestAddress(info.cmdline_paddr + COMMAND_LINE_MAX as u64 - 1))
            .unwrap();
        assert_eq!(end, u16::from(b'x'));
        assert!(write_start_info(&ram, RamRanges::of(32), &format!("{longest}x"), None).is_err());
        assert!(write_start_info(&ram, RamRanges::of(32), "a\0b", None).is_err());
    }

    #[test]
    fn the_memory_map_has_all_ram_and_reserves_the_configuration_space() {
        let small = memory_map(RamRanges::of(128));
        assert!(small.iter().all(|entry| entry.addr != HIGH_RAM_START));
        let large = memory_map(RamRanges::of(8192));
        let ram: u64 = large
            .iter()
            .filter(|entry| entry.type_ == RAM)
            .map(|entry| entry.size)
            .sum();
        assert_eq!(ram, (8 << 30) - (KERNEL_START - CONVENTIONAL_END));
        assert!(
            large
                .iter()
                .any(|entry| entry.addr == ECAM_START && entry.type_ == RESERVED)
        );
    }
}
