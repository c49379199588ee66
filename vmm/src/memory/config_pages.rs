//! What the guest reads of PCI configuration space: pages of ours that it may read and not write, so that a read does not
//! interrupt it. A kernel that looks for devices reads there a thousand times, and writes a few dozen times.

use vm_memory::{MmapRegion, VolatileMemory};

use super::{
    MemoryError,
    layout::{ECAM_SIZE, PAGE_SIZE},
};

const PAGE: usize = 4096;

/// Pages of a device: one for each of its functions, of which it has only the first.
const PAGES_OF_A_DEVICE: u64 = 8;

/// Configuration space of a bus ([`ECAM_SIZE`] bytes) as the guest reads it. Places without a device read as all ones, and the
/// functions that no device has as zeros: neither is a vendor.
#[derive(Debug)]
pub struct ConfigPages {
    region: MmapRegion<()>,
}

impl ConfigPages {
    /// The pages of a bus without devices.
    ///
    /// # Errors
    ///
    /// [`MemoryError::ConfigPages`].
    pub fn new() -> Result<Self, MemoryError> {
        let refused = |reason: String| MemoryError::ConfigPages(reason);
        let size = usize::try_from(ECAM_SIZE).map_err(|error| refused(error.to_string()))?;
        let region = MmapRegion::new(size).map_err(|error| refused(error.to_string()))?;
        let pages = Self { region };
        for device in 0..ECAM_SIZE / (PAGE_SIZE * PAGES_OF_A_DEVICE) {
            pages.show(device, &[0xff; PAGE]);
        }
        Ok(pages)
    }

    /// Shows `space` as the configuration space of a device, by its number. What it does not have of the 4096 bytes is zero.
    pub fn show(&self, device: u64, space: &[u8]) {
        let mut page = [0; PAGE];
        for (shown, byte) in page.iter_mut().zip(space) {
            *shown = *byte;
        }
        let start = usize::try_from(device * PAGE_SIZE * PAGES_OF_A_DEVICE);
        let place = start
            .ok()
            .and_then(|start| self.region.get_slice(start, PAGE).ok());
        // A device beyond the bus has no page.
        if let Some(place) = place {
            place.copy_from(&page);
        }
    }

    /// The mapping, for the one who gives it to the guest.
    pub fn mapping(&self) -> &MmapRegion<()> {
        &self.region
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn read(pages: &ConfigPages, offset: usize) -> u32 {
        pages.region.get_slice(offset, 4).unwrap().read_obj(0).unwrap()
    }

    #[test]
    fn a_device_is_seen_at_its_place_and_nothing_elsewhere() {
        let pages = ConfigPages::new().unwrap();
        pages.show(3, &[1, 2, 3, 4]);
        pages.show(32, &[5; 4]);
        assert_eq!(read(&pages, 3 << 15), 0x0403_0201);
        assert_eq!(read(&pages, 0), u32::MAX);
        assert_eq!(read(&pages, 31 << 15), u32::MAX);
        assert_eq!(read(&pages, (3 << 15) + 4096), 0);
    }
}
