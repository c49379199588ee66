//! The configuration space of a function: its bytes, and beside each byte the bits of it that the guest may write.
//!
//! That table of writable bits is all there is to most registers. The BAR for one: its writable bits are those above the
//! size, so that writing all ones reads back as the size, as the specification (PCI 3.0, 6.2.5.1) has it.

use std::ops::Range;

/// Size of the part that is used; beyond it everything reads as zero, which says that there are no extended capabilities.
const SIZE: usize = 256;

/// Registers of the type 0 header.
const VENDOR_ID: usize = 0x00;
const DEVICE_ID: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
const SUBSYSTEM_ID: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// First byte after the header.
const HEADER_END: usize = 0x40;

/// Command register: responds to memory accesses, may write to memory, must not use INTx.
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status register: there is a list of capabilities.
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// A BAR's type: memory, 64 bits.
const BAR_MEMORY_64: u64 = 0b100;
const BAR_TYPE_BITS: u64 = 0xf;

/// What a function says it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface, such as `0x06_00_00`.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// A configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// Size of the memory in BAR 0 and 1; 0 without one.
    memory_size: u64,
    /// Where the next capability goes, and where the pointer to it is.
    next_capability: usize,
    last_pointer: usize,
}

impl ConfigSpace {
    /// The space of a function without memory and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            memory_size: 0,
            next_capability: HEADER_END,
            last_pointer: CAPABILITIES,
        };
        space.set(VENDOR_ID, &identity.vendor.to_le_bytes());
        space.set(DEVICE_ID, &identity.device.to_le_bytes());
        space.set(REVISION, &[identity.revision]);
        let [interface, subclass, class, _] = identity.class.to_le_bytes();
        space.set(CLASS, &[interface, subclass, class]);
        space.set(SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        space.set(SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds memory of `size` bytes at `address` in BAR 0 and 1. The guest may move it.
    ///
    /// # Panics
    ///
    /// Unless `size` is a power of two of at least 16.
    pub fn add_memory(&mut self, size: u64, address: u64) {
        assert!(size.is_power_of_two() && size >= 16, "a BAR of {size} bytes");
        self.memory_size = size;
        self.set(BAR0, &(address | BAR_MEMORY_64).to_le_bytes());
        self.allow(BAR0, &(!(size - 1)).to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        self.allow(COMMAND, &command.to_le_bytes());
    }

    /// Adds a capability with the given id: `body` is what follows the pointer to the next one, `writable` the bits of it
    /// that the guest may write. Gives the offset of the capability.
    ///
    /// # Panics
    ///
    /// When the capabilities of a function do not fit its 256 bytes.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let offset = self.next_capability;
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        let pointer = u8::try_from(offset).expect("the space has 256 bytes");
        self.set(self.last_pointer, &[pointer]);
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        self.allow(offset + 2, writable);
        self.last_pointer = offset + 1;
        // Capabilities start at multiples of 4.
        self.next_capability = (offset + 2 + body.len()).next_multiple_of(4);
        u16::from(pointer)
    }

    /// Where the function's memory is at present; `None` while the guest has it switched off.
    pub fn memory(&self) -> Option<Range<u64>> {
        let command = u16::from_le_bytes(self.array(COMMAND));
        if command & COMMAND_MEMORY == 0 || self.memory_size == 0 {
            return None;
        }
        let start = u64::from_le_bytes(self.array(BAR0)) & !BAR_TYPE_BITS;
        Some(start..start.checked_add(self.memory_size)?)
    }

    /// Reads `data.len()` bytes at `offset`.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (byte, position) in data.iter_mut().zip(usize::from(offset)..) {
            *byte = self.bytes.get(position).copied().unwrap_or(0);
        }
    }

    /// Writes the bits of `data` that are writable at `offset`.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let start = usize::from(offset);
        let bytes = self.bytes.iter_mut().zip(&self.writable).skip(start);
        for (new, (byte, writable)) in data.iter().zip(bytes) {
            *byte = *byte & !writable | new & writable;
        }
    }

    /// The `N` bytes at `offset`, as they are.
    pub fn bytes<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes);
        bytes
    }

    pub(super) fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Takes over the writable bits of a saved space, all others of which must be as they are here.
    pub(super) fn restore(&mut self, saved: &[u8]) -> Result<(), &'static str> {
        if saved.len() != SIZE {
            return Err("its configuration space has another size");
        }
        let fixed = |bytes: &[u8]| -> Vec<u8> {
            bytes
                .iter()
                .zip(&self.writable)
                .map(|(byte, writable)| byte & !writable)
                .collect()
        };
        if fixed(saved) != fixed(&self.bytes) {
            return Err("its configuration space is that of another function");
        }
        self.write(0, saved);
        Ok(())
    }

    /// Only for offsets of this file and the sizes of capabilities, which the code fixes and not the guest.
    fn set(&mut self, offset: usize, value: &[u8]) {
        self.bytes
            .get_mut(offset..offset + value.len())
            .expect("registers lie in the space")
            .copy_from_slice(value);
    }

    fn allow(&mut self, offset: usize, bits: &[u8]) {
        self.writable
            .get_mut(offset..offset + bits.len())
            .expect("registers lie in the space")
            .copy_from_slice(bits);
    }

    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.bytes
            .get(offset..offset + N)
            .and_then(|bytes| bytes.try_into().ok())
            .expect("registers lie in the space")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_80_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x42,
        });
        space.add_memory(0x8000, 0x40_0001_0000);
        space
    }

    fn read32(space: &ConfigSpace, offset: u16) -> u32 {
        u32::from_le_bytes(space.bytes(offset))
    }

    #[test]
    fn a_bar_of_all_ones_reads_back_as_its_size() {
        let mut space = space();
        space.write(0x10, &[0xff; 4]);
        space.write(0x14, &[0xff; 4]);
        assert_eq!(read32(&space, 0x10), 0xffff_8004);
        assert_eq!(read32(&space, 0x14), 0xffff_ffff);
    }

    #[test]
    fn memory_is_there_only_while_switched_on_and_where_the_guest_put_it() {
        let mut space = space();
        assert_eq!(space.memory(), None);
        space.write(0x04, &[0xff, 0xff]);
        assert_eq!(
            read32(&space, 0x04),
            0x0000_0406,
            "bits beyond the three are writable"
        );
        assert_eq!(space.memory(), Some(0x40_0001_0000..0x40_0001_8000));
        space.write(0x10, &0xc000_0000u32.to_le_bytes());
        assert_eq!(space.memory(), Some(0x40_c000_0000..0x40_c000_8000));
        space.write(0x10, &[0xff; 4]);
        space.write(0x14, &[0xff; 4]);
        assert_eq!(
            space.memory(),
            None,
            "memory that passes the end of the address space"
        );
    }

    #[test]
    fn capabilities_form_a_list_and_keep_what_is_read_only() {
        let mut space = space();
        let first = space.add_capability(0x11, &[1, 2, 3], &[0, 0xc0, 0]);
        let second = space.add_capability(0x09, &[7; 14], &[]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(space.bytes::<1>(0x34), [0x40]);
        assert_eq!(space.bytes::<6>(0x40), [0x11, 0x48, 1, 2, 3, 0]);
        assert_eq!(space.bytes::<2>(0x48), [0x09, 0]);
        space.write(0x42, &[0xff; 4]);
        assert_eq!(space.bytes::<4>(0x42), [1, 0xc2, 3, 0]);
    }

    #[test]
    fn what_lies_beyond_the_space_is_zero_and_stays_so() {
        let mut space = space();
        space.write(0xfff, &[0xff]);
        space.write(0xfe, &[0xff; 4]);
        assert_eq!(space.bytes::<4>(0xfe), [0; 4]);
        assert_eq!(space.bytes::<1>(0xfff), [0]);
    }

    #[test]
    fn a_space_takes_over_its_own_state_only() {
        let mut moved = space();
        moved.write(0x10, &0xc000_0000u32.to_le_bytes());
        let mut fresh = space();
        fresh.restore(&moved.save()).unwrap();
        assert_eq!(fresh, moved);
        let mut other = moved.save();
        other[2] ^= 1;
        assert!(fresh.restore(&other).is_err());
    }
}
