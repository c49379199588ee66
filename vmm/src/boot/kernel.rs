//! Reading kernel and initramfs straight into the guest's memory.

use std::{fs::File, io};

use linux_loader::loader::{
    self, Elf, KernelLoader,
    elf::{self, PvhBootCapability},
};
use vm_memory::{Address, Bytes, GuestAddress};

use super::BootError;
use crate::memory::{
    FileReader, GuestRam,
    layout::{KERNEL_START, PAGE_SIZE, RamRanges},
};

/// An open file with the name it has in messages.
#[derive(Debug)]
pub struct NamedFile {
    /// The file, open for reading.
    pub file: File,
    /// Its path, or how it was handed over.
    pub name: String,
}

/// A kernel in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedKernel {
    /// Physical address of the PVH entry.
    pub entry: u64,
    /// First byte after the kernel, its zeroed data included.
    pub end: u64,
}

/// A module (here always the initramfs) in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedModule {
    /// Physical address.
    pub address: u64,
    /// Size in bytes.
    pub size: u64,
}

/// Reads `kernel` to the physical addresses that its program headers name.
///
/// # Errors
///
/// [`BootError::NoKernel`] for a file of another kind, [`BootError::TooSmall`] when it does not fit.
pub fn load_kernel(
    kernel: &mut NamedFile,
    ram: &GuestRam,
    ranges: RamRanges,
) -> Result<LoadedKernel, BootError> {
    let name = kernel.name.as_str();
    let no_kernel = |reason: String| BootError::NoKernel {
        file: name.to_owned(),
        reason,
    };
    let mut reader = FileReader::new(&mut kernel.file, ram);
    let loaded =
        Elf::load(ram.as_ref(), None, &mut reader, Some(GuestAddress(KERNEL_START))).map_err(|error| {
            match error {
                loader::Error::Elf(elf::Error::ReadKernelImage) => {
                    no_kernel("it is cut short, or its segments do not lie in the guest's memory".to_owned())
                }
                other => no_kernel(other.to_string()),
            }
        })?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(no_kernel("it has no PVH entry (ELF note Xen 18)".to_owned()));
    };
    let loaded = LoadedKernel {
        entry: entry.raw_value(),
        end: loaded.kernel_end,
    };
    if loaded.end > ranges.low_end {
        return Err(too_small(format!("the kernel {name}"), loaded.end, ranges));
    }
    if !(KERNEL_START..loaded.end).contains(&loaded.entry) {
        return Err(no_kernel(format!(
            "its PVH entry {:#x} lies outside of what it loads",
            loaded.entry
        )));
    }
    Ok(loaded)
}

/// Reads `initramfs` to the end of the RAM below 4 GiB, where the kernel has most room to keep it apart from itself.
///
/// # Errors
///
/// [`BootError::Initramfs`] when it cannot be read, [`BootError::TooSmall`] when it does not fit above `kernel`.
pub fn load_initramfs(
    initramfs: &mut NamedFile,
    kernel: LoadedKernel,
    ram: &GuestRam,
    ranges: RamRanges,
) -> Result<LoadedModule, BootError> {
    let name = initramfs.name.as_str();
    let unreadable = |source: io::Error| BootError::Initramfs {
        file: name.to_owned(),
        source,
    };
    let size = initramfs.file.metadata().map_err(unreadable)?.len();
    let address = ranges
        .low_end
        .checked_sub(size)
        .map(|address| address / PAGE_SIZE * PAGE_SIZE)
        .filter(|address| *address >= kernel.end)
        .ok_or_else(|| {
            let needed = kernel.end.saturating_add(size).saturating_add(PAGE_SIZE);
            too_small(format!("the initramfs {name}"), needed, ranges)
        })?;
    let length = usize::try_from(size).map_err(|error| unreadable(io::Error::other(error)))?;
    ram.read_exact_volatile_from(
        GuestAddress(address),
        &mut FileReader::new(&mut initramfs.file, ram),
        length,
    )
    .map_err(|error| unreadable(io::Error::other(error)))?;
    Ok(LoadedModule { address, size })
}

fn too_small(what: String, needed: u64, ranges: RamRanges) -> BootError {
    BootError::TooSmall {
        what,
        memory_mib: ranges.low_end >> 20,
        needed_mib: needed.div_ceil(1 << 20),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;
    use crate::memory::allocate;

    fn named(bytes: &[u8]) -> NamedFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        NamedFile {
            file,
            name: "/boot/test-kernel".to_owned(),
        }
    }

    /// An ELF file with one loadable segment of `code` at `address`, and a PVH note that names `entry` if there is one.
    fn elf(address: u64, code: &[u8], entry: Option<u32>) -> Vec<u8> {
        let note: Vec<u8> = entry
            .map(|entry| {
                [4u32, 4, 18]
                    .into_iter()
                    .flat_map(u32::to_le_bytes)
                    .chain(*b"Xen\0")
                    .chain(entry.to_le_bytes())
                    .collect()
            })
            .unwrap_or_default();
        let header_size = 64 + 2 * 56;
        let program_header = |kind: u32, offset: u64, address: u64, size: u64| {
            let mut header = Vec::new();
            header.extend(kind.to_le_bytes());
            header.extend(7u32.to_le_bytes());
            for word in [offset, address, address, size, size, 0] {
                header.extend(word.to_le_bytes());
            }
            header
        };
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(2u16.to_le_bytes());
        file.extend(62u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(address.to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend([0; 12]);
        for half in [64u16, 56, 2, 0, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        file.extend(program_header(1, header_size, address, code.len() as u64));
        file.extend(program_header(
            4,
            header_size + code.len() as u64,
            0,
            note.len() as u64,
        ));
        assert_eq!(file.len() as u64, header_size);
        file.extend(code);
        file.extend(note);
        file
    }

    fn load(bytes: &[u8]) -> Result<LoadedKernel, BootError> {
        load_kernel(&mut named(bytes), &allocate(32).unwrap(), RamRanges::of(32))
    }

    #[test]
    fn a_kernel_lies_where_its_headers_say() {
        let ram = allocate(32).unwrap();
        let mut file = named(&elf(0x20_0000, b"kernel", Some(0x20_0002)));
        let kernel = load_kernel(&mut file, &ram, RamRanges::of(32)).unwrap();
        assert_eq!(
            kernel,
            LoadedKernel {
                entry: 0x20_0002,
                end: 0x20_0006
            }
        );
        let mut code = [0; 6];
        ram.read_slice(&mut code, GuestAddress(0x20_0000)).unwrap();
        assert_eq!(&code, b"kernel");
    }

    #[test]
    fn a_file_that_is_no_kernel_is_named_with_what_is_needed() {
        let without_note = elf(0x20_0000, b"kernel", None);
        let wild_entry = elf(0x20_0000, b"kernel", Some(0x10));
        let cut = elf(0x20_0000, b"kernel", Some(0x20_0000));
        let cases: [&[u8]; 5] = [
            b"",
            b"#!/bin/sh\necho this is a script and no kernel, though it is long enough to have a header\n",
            &without_note,
            &wild_entry,
            &cut[..170],
        ];
        for bytes in cases {
            let message = load(bytes).unwrap_err().to_string();
            assert!(
                message.contains("/boot/test-kernel") && message.contains("CONFIG_PVH"),
                "{message}"
            );
        }
    }

    #[test]
    fn an_initramfs_without_room_says_how_much_it_needs() {
        let ram = allocate(32).unwrap();
        let kernel = LoadedKernel {
            entry: KERNEL_START,
            end: 31 << 20,
        };
        let mut small = named(&[7; 5000]);
        let module = load_initramfs(&mut small, kernel, &ram, RamRanges::of(32)).unwrap();
        assert_eq!(module.address % PAGE_SIZE, 0);
        assert!(module.address + module.size <= 32 << 20);
        let mut large = named(&vec![7; 2 << 20]);
        let message = load_initramfs(&mut large, kernel, &ram, RamRanges::of(32))
            .unwrap_err()
            .to_string();
        assert!(message.contains("34 MiB"), "{message}");
    }
}
