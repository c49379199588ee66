//! Copying files into the guest's RAM without touching the mapping of it.
//!
//! `sendfile` moves the bytes from one file's pages to the other's. Reading into the mapping instead costs a page fault for
//! every page (measured with a kernel of 12 MB: more than twice the time), also for pages that the guest never uses.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use rustix::{fs::sendfile, io::Errno};
use vm_memory::{
    GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, ReadVolatile, VolatileMemoryError,
    VolatileSlice, bitmap::BitmapSlice,
};

use super::GuestRam;

/// A file to be read into `ram`, from its current position on.
#[derive(Debug)]
pub struct FileReader<'a> {
    file: &'a mut File,
    ram: &'a GuestRam,
}

impl<'a> FileReader<'a> {
    /// Reads `file` into `ram`. Only one reader of a machine's RAM may be at work at a time.
    pub fn new(file: &'a mut File, ram: &'a GuestRam) -> Self {
        Self { file, ram }
    }

    /// The file under a piece of the RAM, and where in it the piece lies.
    fn place_of<B: BitmapSlice>(&self, piece: &VolatileSlice<'_, B>) -> Option<(&File, u64)> {
        let address = piece.ptr_guard().as_ptr().addr();
        self.ram.iter().find_map(|region| {
            let start = region.get_host_address(MemoryRegionAddress(0)).ok()?.addr();
            let distance = u64::try_from(address.checked_sub(start)?).ok()?;
            let backing = region.file_offset()?;
            (distance < region.len()).then(|| (backing.file(), backing.start() + distance))
        })
    }
}

impl ReadVolatile for FileReader<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        piece: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        if let Some((mut backing, offset)) = self.place_of(piece) {
            backing
                .seek(SeekFrom::Start(offset))
                .map_err(VolatileMemoryError::IOError)?;
            match sendfile(backing, &*self.file, None, piece.len()) {
                // A file system whose pages cannot be passed on.
                Err(Errno::INVAL) => {}
                sent => return sent.map_err(|error| VolatileMemoryError::IOError(error.into())),
            }
        }
        self.file.read_volatile(piece)
    }
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for FileReader<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{
        allocate,
        layout::{HIGH_RAM_START, LOW_RAM_LIMIT},
    };

    #[test]
    fn bytes_arrive_where_they_belong_in_low_and_high_ram() {
        let ram = allocate(4096).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let text: Vec<u8> = (0..20_000u32).flat_map(u32::to_le_bytes).collect();
        file.write_all(&text).unwrap();
        for address in [
            0x12_3457,
            LOW_RAM_LIMIT - text.len() as u64,
            HIGH_RAM_START + 0x1001,
        ] {
            file.rewind().unwrap();
            ram.read_exact_volatile_from(
                GuestAddress(address),
                &mut FileReader::new(&mut file, &ram),
                text.len(),
            )
            .unwrap();
            let mut read = vec![0; text.len()];
            ram.read_slice(&mut read, GuestAddress(address)).unwrap();
            assert_eq!(read, text, "at {address:#x}");
        }
    }

    #[test]
    fn a_file_that_is_too_short_is_an_error() {
        let ram = allocate(32).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"short").unwrap();
        file.rewind().unwrap();
        let read =
            ram.read_exact_volatile_from(GuestAddress(0x1000), &mut FileReader::new(&mut file, &ram), 4096);
        assert!(read.is_err());
    }
}
