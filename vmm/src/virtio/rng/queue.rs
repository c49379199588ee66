//! The request queue: fills buffers with random bytes, as many as a guest may have now.

use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};

use crate::virtio::{requests::Serve, ring::Chain};

/// Most bytes for one request; the driver asks again for more.
pub const MOST_AT_ONCE: usize = 4096;

/// Bytes that a guest may have in a burst.
pub const BURST: u32 = 256 * 1024;

/// Bytes that it may have per second after that. A guest needs a few hundred for its own generator and seldom more, and
/// what it takes is the host kernel's processor time.
const PER_SECOND: u64 = 1024 * 1024;

/// Time for the host's generator to make one byte's worth of allowance.
const PER_BYTE: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND);

/// The source, as a leaky bucket.
#[derive(Debug)]
pub struct Entropy {
    /// When all that was taken is paid for. The guest may be a burst ahead of it.
    paid_at: Instant,
}

impl Entropy {
    /// A source of which nothing was taken.
    pub fn new() -> Self {
        Self {
            paid_at: Instant::now(),
        }
    }
}

impl Serve for Entropy {
    fn serve(&mut self, request: &Chain<'_>) -> usize {
        let mut bytes = [0; MOST_AT_ONCE];
        let wanted = request.writable.len().min(bytes.len());
        let Some(bytes) = bytes.get_mut(..wanted) else {
            return 0;
        };
        // It may give less, and fails only without the system call or when interrupted. The driver asks again.
        let got = getrandom(&mut *bytes, GetRandomFlags::empty()).unwrap_or(0);
        self.paid_at = self.paid_at.max(Instant::now()) + PER_BYTE * u32::try_from(got).unwrap_or(u32::MAX);
        request.writable.copy_in(0, bytes.get(..got).unwrap_or_default())
    }

    fn not_before(&self) -> Option<Instant> {
        self.paid_at.checked_sub(PER_BYTE * BURST)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    use super::*;
    use crate::virtio::buffer::GuestBuffer;

    #[test]
    fn a_burst_is_free_and_what_is_taken_beyond_it_has_to_be_waited_for() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap();
        let mut writable = GuestBuffer::default();
        writable.push(memory.get_slice(GuestAddress(0), 1 << 16).unwrap());
        let request = Chain {
            head: 0,
            readable: GuestBuffer::default(),
            writable,
        };
        let mut entropy = Entropy::new();
        let begin = Instant::now();
        assert_eq!(entropy.serve(&request), MOST_AT_ONCE);
        assert!(
            entropy
                .not_before()
                .is_none_or(|instant| instant <= Instant::now())
        );
        let mut taken = MOST_AT_ONCE;
        while taken < BURST as usize * 3 {
            taken += entropy.serve(&request);
        }
        // Three bursts were taken: two have to be waited for, counted from the first.
        let earliest = begin + PER_BYTE * BURST * 2;
        assert!(entropy.not_before().is_some_and(|instant| instant >= earliest));
    }
}
