//! The guest's RAM: one sealed memfd, mapped shared, so that other mappings of the same file (a clone's private one, a
//! snapshot writer's) see what the guest wrote.

use std::{fs::File, io, sync::Arc};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::{
    GuestRam,
    layout::{HIGH_RAM_START, RamRanges},
};

/// Why the guest's RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel refused the file.
    #[error("no memory file of {mib} MiB could be made for the guest: {source}")]
    File {
        /// Size of the guest's RAM in MiB.
        mib: u32,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused the pages for configuration space.
    #[error("the pages of PCI configuration space could not be mapped: {0}")]
    ConfigPages(String),
    /// The kernel refused the mapping.
    #[error(
        "{mib} MiB of guest memory could not be mapped: {reason}; the process may have a limit on its address space"
    )]
    Map {
        /// Size of the guest's RAM in MiB.
        mib: u32,
        /// Why.
        reason: String,
    },
}

/// Makes `mib` MiB of zeroed RAM. No page of it exists until it is touched.
///
/// # Errors
///
/// [`MemoryError`] when the kernel refuses the file or its mapping.
pub fn allocate(mib: u32) -> Result<GuestRam, MemoryError> {
    let ranges = RamRanges::of(mib);
    let file = Arc::new(memory_file(ranges).map_err(|source| MemoryError::File { mib, source })?);
    let low = region(&file, 0, ranges.low_end, 0);
    let high =
        (ranges.high_size() > 0).then(|| region(&file, ranges.low_end, ranges.high_size(), HIGH_RAM_START));
    let regions: Result<Vec<_>, String> = [Some(low), high].into_iter().flatten().collect();
    regions
        .and_then(|regions| GuestMemoryMmap::from_regions(regions).map_err(|error| error.to_string()))
        .map(Arc::new)
        .map_err(|reason| MemoryError::Map { mib, reason })
}

/// A file as large as the RAM. Its size is sealed: whoever gets its descriptor cannot make an access of ours fault.
fn memory_file(ranges: RamRanges) -> io::Result<File> {
    let file = memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, ranges.low_end + ranges.high_size())?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}

fn region(file: &Arc<File>, offset: u64, size: u64, address: u64) -> Result<GuestRegionMmap<()>, String> {
    let size = usize::try_from(size).map_err(|error| error.to_string())?;
    let mapping = MmapRegion::from_file(FileOffset::from_arc(Arc::clone(file), offset), size)
        .map_err(|error| error.to_string())?;
    GuestRegionMmap::new(mapping, GuestAddress(address))
        .ok_or_else(|| "it passes the end of the address space".to_owned())
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;
    use crate::memory::layout::LOW_RAM_LIMIT;

    #[test]
    fn ram_of_four_gibibytes_has_a_hole_and_one_sealed_file() {
        let ram = allocate(4096).unwrap();
        assert!(ram.write_obj(1u8, GuestAddress(LOW_RAM_LIMIT - 1)).is_ok());
        assert!(ram.write_obj(1u8, GuestAddress(LOW_RAM_LIMIT)).is_err());
        assert!(
            ram.write_obj(1u8, GuestAddress(HIGH_RAM_START + (1 << 30) - 1))
                .is_ok()
        );
        assert!(
            ram.write_obj(1u8, GuestAddress(HIGH_RAM_START + (1 << 30)))
                .is_err()
        );
        let file = ram.iter().next().and_then(|region| region.file_offset()).unwrap();
        assert_eq!(
            ftruncate(file.file(), 4096).unwrap_err(),
            rustix::io::Errno::PERM,
            "the file of the RAM can be shrunk"
        );
    }
}
