//! Buffers in guest memory, as a driver describes them: pieces that lie anywhere.

use vm_memory::VolatileSlice;

/// A run of bytes in guest memory, in one or more pieces. The guest may change it at any time, so what is to be judged
/// is copied out once and judged from the copy.
#[derive(Clone, Debug, Default)]
pub struct GuestBuffer<'m> {
    pieces: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> GuestBuffer<'m> {
    /// Bytes in the whole buffer. A chain holds less than 4 GiB, which virtio-queue sees to.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces, none of them empty.
    pub fn pieces(&self) -> &[VolatileSlice<'m>] {
        &self.pieces
    }

    /// Puts a piece at the end.
    pub fn push(&mut self, piece: VolatileSlice<'m>) {
        if !piece.is_empty() {
            self.len = self.len.saturating_add(piece.len());
            self.pieces.push(piece);
        }
    }

    /// Puts another buffer at the end.
    pub fn extend(&mut self, other: &GuestBuffer<'m>) {
        for piece in &other.pieces {
            self.push(*piece);
        }
    }

    /// The bytes from `start` on, at most `length` of them; fewer where the buffer ends before.
    #[must_use]
    pub fn part(&self, start: usize, length: usize) -> GuestBuffer<'m> {
        let mut part = GuestBuffer::default();
        let (mut skip, mut left) = (start, length);
        for piece in &self.pieces {
            if left == 0 {
                break;
            }
            let from = skip.min(piece.len());
            skip -= from;
            let count = left.min(piece.len() - from);
            if let Ok(slice) = piece.subslice(from, count) {
                left -= count;
                part.push(slice);
            }
        }
        part
    }

    /// Copies bytes from `start` on into `data` and gives their number: all of `data`, or fewer where the buffer ends.
    pub fn copy_out(&self, start: usize, data: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.part(start, data.len()).pieces {
            let Some(rest) = data.get_mut(done..) else { break };
            done += piece.copy_to(rest);
        }
        done
    }

    /// Copies `data` to the bytes from `start` on and gives their number: all of `data`, or fewer where the buffer ends.
    pub fn copy_in(&self, start: usize, data: &[u8]) -> usize {
        let mut done = 0;
        for piece in self.part(start, data.len()).pieces {
            let Some(rest) = data.get(done..) else { break };
            let count = rest.len().min(piece.len());
            let Some(now) = rest.get(..count) else { break };
            piece.copy_from(now);
            done += count;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    use super::*;

    #[test]
    fn pieces_are_one_run_of_bytes() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let mut buffer = GuestBuffer::default();
        for (address, length) in [(100, 3), (50, 0), (10, 4), (200, 5)] {
            buffer.push(memory.get_slice(GuestAddress(address), length).unwrap());
        }
        assert_eq!((buffer.len(), buffer.pieces().len()), (12, 3));
        assert_eq!(buffer.copy_in(0, b"abcdefghijklmnop"), 12);
        let mut out = [0; 16];
        assert_eq!(buffer.copy_out(2, &mut out), 10);
        assert_eq!(&out[..10], b"cdefghijkl");
        assert_eq!(buffer.part(3, 4).copy_out(0, &mut out), 4);
        assert_eq!(&out[..4], b"defg");
        assert_eq!(buffer.part(3, 4).pieces().len(), 1);
        assert_eq!(buffer.part(12, 1).len(), 0);
        assert_eq!(buffer.part(usize::MAX, usize::MAX).len(), 0);
        assert_eq!(buffer.part(1, usize::MAX).len(), 11);
        assert_eq!(buffer.copy_in(11, b"xy"), 1);
        assert_eq!(buffer.copy_in(12, b"xy"), 0);
    }
}
