//! MSI-X: the table of vectors, which the guest fills, and the bits of what waits while a vector is masked
//! (PCI 3.0, 6.8.2).

use serde::{Deserialize, Serialize};

/// Bytes of one entry of the table.
const ENTRY_SIZE: u64 = 16;

/// A vector's control word: masked. The only bit that is not reserved.
const VECTOR_MASKED: u32 = 1;

/// Message control: enabled, all vectors masked.
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;
/// Both, as bits that the guest may write.
pub(super) const CONTROL_WRITABLE: u16 = CONTROL_ENABLE | CONTROL_MASK_ALL;

/// A message to be sent: data, and the address it is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// The vectors of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Msix {
    vectors: Vec<Vector>,
    enabled: bool,
    all_masked: bool,
}

/// The state of [`Msix`], apart from the control word, which is in configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedMsix {
    vectors: Vec<Vector>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

impl Vector {
    fn message(&self) -> Message {
        Message {
            address: self.address,
            data: self.data,
        }
    }
}

impl Msix {
    /// `count` vectors, all masked, as after a reset.
    pub fn new(count: u16) -> Self {
        let vector = Vector {
            address: 0,
            data: 0,
            masked: true,
            pending: false,
        };
        Self {
            vectors: vec![vector; count.into()],
            enabled: false,
            all_masked: false,
        }
    }

    /// Whether there is a vector of this number.
    pub fn has(&self, vector: u16) -> bool {
        usize::from(vector) < self.vectors.len()
    }

    /// Whether the guest uses MSI-X at all.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Raises a vector: gives the message to be sent, or keeps it pending while it is masked.
    pub fn raise(&mut self, vector: u16) -> Option<Message> {
        let held_back = self.all_masked;
        let enabled = self.enabled;
        let vector = self.vectors.get_mut(usize::from(vector))?;
        if !enabled {
            return None;
        }
        if held_back || vector.masked {
            vector.pending = true;
            return None;
        }
        Some(vector.message())
    }

    /// Takes over the message control word; gives the messages that were waiting for it.
    pub fn set_control(&mut self, control: u16) -> Vec<Message> {
        self.enabled = control & CONTROL_ENABLE != 0;
        self.all_masked = control & CONTROL_MASK_ALL != 0;
        (0..self.vectors.len())
            .filter_map(|index| self.release(index))
            .collect()
    }

    /// The guest reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (word, position) in words(offset, data.len()).zip(0..) {
            let Some(vector) = self.vectors.get(word.vector) else {
                return;
            };
            let value = match word.register {
                Register::AddressLow => low(vector.address),
                Register::AddressHigh => high(vector.address),
                Register::Data => vector.data,
                Register::Control => u32::from(vector.masked),
            };
            if let Some(bytes) = data.chunks_exact_mut(4).nth(position) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    /// The guest writes the table; gives the messages that were waiting for it.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Vec<Message> {
        let mut released = Vec::new();
        for (word, bytes) in words(offset, data.len()).zip(data.chunks_exact(4)) {
            let (Some(vector), Ok(bytes)) = (self.vectors.get_mut(word.vector), bytes.try_into()) else {
                break;
            };
            let value = u32::from_le_bytes(bytes);
            match word.register {
                Register::AddressLow => {
                    vector.address = u64::from(high(vector.address)) << 32 | u64::from(value);
                }
                Register::AddressHigh => {
                    vector.address = u64::from(value) << 32 | u64::from(low(vector.address));
                }
                Register::Data => vector.data = value,
                Register::Control => {
                    vector.masked = value & VECTOR_MASKED != 0;
                    released.extend(self.release(word.vector));
                }
            }
        }
        released
    }

    /// The guest reads the pending bits, in words of 8 bytes.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        if !is_word(offset, data.len()) {
            return;
        }
        for (byte, position) in data.iter_mut().zip(offset..) {
            let first = usize::try_from(position).unwrap_or(usize::MAX).saturating_mul(8);
            *byte = self
                .vectors
                .iter()
                .skip(first)
                .take(8)
                .zip(0..)
                .fold(0, |bits, (vector, bit)| bits | u8::from(vector.pending) << bit);
        }
    }

    pub(super) fn save(&self) -> SavedMsix {
        SavedMsix {
            vectors: self.vectors.clone(),
        }
    }

    /// Takes over vectors, and the control word that goes with them.
    pub(super) fn restore(&mut self, saved: &SavedMsix, control: u16) -> Result<(), &'static str> {
        if saved.vectors.len() != self.vectors.len() {
            return Err("it has another number of vectors");
        }
        self.vectors.clone_from(&saved.vectors);
        self.enabled = control & CONTROL_ENABLE != 0;
        self.all_masked = control & CONTROL_MASK_ALL != 0;
        Ok(())
    }

    /// The message of a vector that waits for nothing any more.
    fn release(&mut self, index: usize) -> Option<Message> {
        let free = self.enabled && !self.all_masked;
        let vector = self.vectors.get_mut(index)?;
        if !free || vector.masked || !vector.pending {
            return None;
        }
        vector.pending = false;
        Some(vector.message())
    }
}

/// The four words of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    AddressLow,
    AddressHigh,
    Data,
    Control,
}

const REGISTERS: [Register; 4] = [
    Register::AddressLow,
    Register::AddressHigh,
    Register::Data,
    Register::Control,
];

/// A word of the table.
struct Word {
    vector: usize,
    register: Register,
}

/// The words that an access touches: one or two, none if it is not of 4 or 8 bytes or not aligned.
fn words(offset: u64, length: usize) -> impl Iterator<Item = Word> {
    let count = if is_word(offset, length) { length / 4 } else { 0 };
    (offset..).step_by(4).take(count).filter_map(|offset| {
        let register = usize::try_from(offset % ENTRY_SIZE / 4).ok()?;
        Some(Word {
            vector: usize::try_from(offset / ENTRY_SIZE).ok()?,
            register: *REGISTERS.get(register)?,
        })
    })
}

/// Whether an access is one that the specification allows: 4 or 8 bytes, aligned.
fn is_word(offset: u64, length: usize) -> bool {
    matches!(length, 4 | 8) && offset.is_multiple_of(length as u64)
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).expect("half of 64 bits fits 32")
}

fn high(value: u64) -> u32 {
    u32::try_from(value >> 32).expect("half of 64 bits fits 32")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Msix {
        let mut msix = Msix::new(3);
        let _ = msix.set_control(CONTROL_ENABLE);
        let _ = msix.write_table(16, &0xfee0_1000u64.to_le_bytes());
        let _ = msix.write_table(24, &0x21u32.to_le_bytes());
        let _ = msix.write_table(28, &0u32.to_le_bytes());
        msix
    }

    const MESSAGE: Message = Message {
        address: 0xfee0_1000,
        data: 0x21,
    };

    #[test]
    fn a_vector_sends_what_the_guest_wrote_into_it() {
        let mut msix = ready();
        assert_eq!(msix.raise(1), Some(MESSAGE));
        assert_eq!(msix.raise(0), None, "a vector that was never unmasked");
        assert_eq!(msix.raise(3), None, "a vector that is not there");
        let mut entry = [0xff; 8];
        msix.read_table(24, &mut entry);
        assert_eq!(entry, [0x21, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_masked_vector_waits_and_comes_once() {
        let mut msix = ready();
        let _ = msix.write_table(28, &1u32.to_le_bytes());
        assert_eq!(msix.raise(1), None);
        assert_eq!(msix.raise(1), None);
        let mut pending = [0xff; 8];
        msix.read_pending(0, &mut pending);
        assert_eq!(u64::from_le_bytes(pending), 0b10);
        assert_eq!(msix.write_table(28, &0u32.to_le_bytes()), [MESSAGE]);
        assert_eq!(msix.write_table(28, &0u32.to_le_bytes()), []);
        let _ = msix.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
        assert_eq!(msix.raise(1), None);
        assert_eq!(msix.set_control(CONTROL_ENABLE), [MESSAGE]);
    }

    #[test]
    fn odd_accesses_change_nothing() {
        let mut msix = ready();
        let before = msix.clone();
        for (offset, length) in [(16, 1), (17, 4), (20, 8), (48, 4), (u64::MAX - 3, 4), (16, 3)] {
            assert_eq!(msix.write_table(offset, &vec![0xff; length]), []);
            let mut data = vec![0xab; length];
            msix.read_table(offset, &mut data);
            assert_eq!(data, vec![0xab; length], "{length} bytes at {offset}");
        }
        let mut data = [0xab; 2];
        msix.read_pending(0, &mut data);
        assert_eq!(data, [0xab; 2]);
        assert_eq!(msix, before);
    }
}
