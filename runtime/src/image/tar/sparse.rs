//! Which parts of a sparse file its archive has.

use super::MAX_EXTENSION_BYTES;
use super::header::{BLOCK_BYTES, MAX_FILE_BYTES, number};
use super::pax::decimal;

/// The most parts a map may have: as many as fit the largest extension record.
const MAX_PARTS: usize = 1 << 17;

/// Bytes of one part in GNU's old form: offset and length of 12 digits each.
const GNU_PART_BYTES: usize = 24;

/// The parts of a sparse file that have data, in order and apart from each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct SparseMap {
    parts: Vec<(u64, u64)>,
    size: u64,
}

impl SparseMap {
    /// Offset and length of each part with data.
    pub(in super::super) fn parts(&self) -> &[(u64, u64)] {
        &self.parts
    }

    /// Bytes of the file with its holes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn data_bytes(&self) -> u64 {
        self.parts.iter().map(|(_, length)| length).sum()
    }

    /// From offset, length, offset, length, ….
    pub(super) fn from_numbers(numbers: &[u64], size: u64) -> Result<Self, String> {
        let mut end = 0;
        let mut parts = Vec::with_capacity(numbers.len() / 2);
        for pair in numbers.chunks(2) {
            let &[offset, length] = pair else {
                return Err("a sparse map has an offset without a length".into());
            };
            if offset < end || length > MAX_FILE_BYTES || offset.saturating_add(length) > size {
                return Err(format!(
                    "a sparse map has {length} bytes at {offset}, out of order or of the file"
                ));
            }
            end = offset + length;
            if length > 0 {
                parts.push((offset, length));
            }
        }
        Ok(Self { parts, size })
    }
}

/// A map in GNU's old form, in the header and blocks behind it.
#[derive(Debug)]
pub(super) struct GnuMap {
    numbers: Vec<u64>,
    more_follows: bool,
    size: u64,
}

impl GnuMap {
    pub(super) fn start(parts: &[u8], more_follows: bool, size: u64) -> Result<Self, String> {
        let mut map = Self {
            numbers: Vec::new(),
            more_follows,
            size,
        };
        map.take(parts)?;
        Ok(map)
    }

    pub(super) fn more_follows(&self) -> bool {
        self.more_follows
    }

    pub(super) fn extend(&mut self, block: &[u8; BLOCK_BYTES]) -> Result<(), String> {
        self.take(&block[..21 * GNU_PART_BYTES])?;
        self.more_follows = block[21 * GNU_PART_BYTES] != 0;
        Ok(())
    }

    pub(super) fn finish(self) -> Result<SparseMap, String> {
        SparseMap::from_numbers(&self.numbers, self.size)
    }

    fn take(&mut self, parts: &[u8]) -> Result<(), String> {
        for part in parts.chunks_exact(GNU_PART_BYTES) {
            if part.first() == Some(&0) {
                break;
            }
            for field in part.chunks_exact(GNU_PART_BYTES / 2) {
                let value = number(field).and_then(|value| u64::try_from(value).ok());
                self.numbers
                    .push(value.ok_or("a sparse map's number is not one")?);
            }
        }
        if self.numbers.len() > 2 * MAX_PARTS {
            return Err(format!("a sparse map has more than {MAX_PARTS} parts"));
        }
        Ok(())
    }
}

/// A map in the form 1.0: the number of parts and then their numbers, one in a line, in whole blocks.
#[derive(Debug, Default)]
pub(super) struct MapText {
    line: Vec<u8>,
    numbers: Vec<u64>,
    bytes: u64,
}

impl MapText {
    /// Takes one more block; gives the map when it is whole.
    pub(super) fn extend(
        &mut self,
        block: &[u8; BLOCK_BYTES],
        size: u64,
    ) -> Result<Option<SparseMap>, String> {
        self.bytes += block.len() as u64;
        if self.bytes > MAX_EXTENSION_BYTES {
            return Err(format!("a sparse map is over {MAX_EXTENSION_BYTES} bytes"));
        }
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let number = decimal(&self.line).filter(|_| !self.line.is_empty());
            self.numbers
                .push(number.ok_or("a sparse map has a line that is not a number")?);
            self.line.clear();
            if let Some((count, numbers)) = self.numbers.split_first()
                && *count == numbers.len() as u64 / 2
                && numbers.len().is_multiple_of(2)
            {
                return SparseMap::from_numbers(numbers, size).map(Some);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_must_be_in_order_and_inside_the_file() {
        let map = SparseMap::from_numbers(&[0, 0, 4, 2, 8, 2], 10).unwrap();
        assert_eq!(map.parts(), [(4, 2), (8, 2)]);
        assert_eq!((map.size(), map.data_bytes()), (10, 4));
        for bad in [&[1][..], &[4, 2, 5, 1], &[0, 11], &[u64::MAX, 2], &[1, u64::MAX]] {
            assert!(SparseMap::from_numbers(bad, 10).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_map_in_text_ends_with_its_last_number() {
        let mut block = [0; BLOCK_BYTES];
        block[..8].copy_from_slice(b"1\n3\n2\n\0\0");
        let map = MapText::default().extend(&block, 9).unwrap().unwrap();
        assert_eq!(map.parts(), [(3, 2)]);
        block[..8].copy_from_slice(b"1\n3\n2x\n\0");
        assert!(MapText::default().extend(&block, 9).is_err());
        assert!(
            MapText::default()
                .extend(&[b'1'; BLOCK_BYTES], 9)
                .unwrap()
                .is_none()
        );
    }
}
