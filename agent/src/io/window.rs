//! The bytes of an output stream that the agent holds: read from the process, not yet acknowledged by the host.
//!
//! Positions count from the stream's first byte: `acknowledged ≤ sent ≤ end`. What lies between the first and the last
//! is held, at most [`STREAM_WINDOW_BYTES`] of it.

use std::collections::VecDeque;

use bulkhead_proto::agent::limits::STREAM_WINDOW_BYTES;

/// Capacity that an empty window may keep, in bytes. What a burst needed beyond it goes back to the guest.
const IDLE_BYTES: usize = 16 * 1024;

/// The held bytes and the host's place in them.
#[derive(Debug, Default)]
pub struct Window {
    held: VecDeque<u8>,
    acknowledged: u64,
    /// How many of the held bytes have been sent on the present connection.
    sent: usize,
    /// How many of the held bytes have been sent on any connection: what the host can have.
    ever_sent: usize,
}

/// The host names a place in a stream where it cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Bytes that the agent no longer has.
    #[error("offset {offset} is behind: bytes before {oldest} were acknowledged and are gone")]
    Gone {
        /// Asked for.
        offset: u64,
        /// Oldest there is.
        oldest: u64,
    },
    /// Bytes that the host has never been sent.
    #[error("offset {offset} is ahead: only {newest} bytes were sent")]
    Ahead {
        /// Asked for.
        offset: u64,
        /// End of what was sent.
        newest: u64,
    },
}

impl Window {
    /// How many bytes more it takes.
    pub fn room(&self) -> usize {
        STREAM_WINDOW_BYTES.saturating_sub(self.held.len())
    }

    /// Takes bytes from the process, at most [`room`](Self::room).
    pub fn push(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.room(), "the window is a bound");
        self.held.extend(bytes);
    }

    /// A part of what is still to be sent; empty when nothing is.
    pub fn unsent(&self) -> &[u8] {
        let (front, back) = self.held.as_slices();
        match front.get(self.sent..) {
            Some(part) if !part.is_empty() => part,
            _ => back.get(self.sent - front.len()..).unwrap_or_default(),
        }
    }

    /// Counts `length` bytes from the front of [`unsent`](Self::unsent) as sent.
    pub fn mark_sent(&mut self, length: usize) {
        self.sent = (self.sent + length).min(self.held.len());
        self.ever_sent = self.ever_sent.max(self.sent);
    }

    /// Lets go of everything before `position`, which the host has put away. One that it told before is no news.
    pub fn acknowledge(&mut self, position: u64) -> Result<(), WindowError> {
        let Some(length) = position.checked_sub(self.acknowledged) else {
            return Ok(());
        };
        match usize::try_from(length) {
            Ok(length) if length <= self.ever_sent => {
                self.held.drain(..length);
                self.sent = self.sent.saturating_sub(length);
                self.ever_sent -= length;
                self.acknowledged = position;
                if self.held.is_empty() && self.held.capacity() > IDLE_BYTES {
                    self.held = VecDeque::new();
                }
                Ok(())
            }
            _ => Err(WindowError::Ahead {
                offset: position,
                newest: self.acknowledged + self.ever_sent as u64,
            }),
        }
    }

    /// Goes on from `offset` on a new connection, whose host has everything before it.
    pub fn resume(&mut self, offset: u64) -> Result<(), WindowError> {
        if offset < self.acknowledged {
            return Err(WindowError::Gone {
                offset,
                oldest: self.acknowledged,
            });
        }
        self.acknowledge(offset)?;
        self.sent = 0;
        Ok(())
    }

    /// Whether the host has acknowledged every byte.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(bytes: &[u8]) -> Window {
        let mut window = Window::default();
        window.push(bytes);
        window
    }

    /// Sends everything there is, as a connection with endless room would.
    fn send_all(window: &mut Window) -> Vec<u8> {
        let mut sent = Vec::new();
        while !window.unsent().is_empty() {
            let part = window.unsent().to_vec();
            window.mark_sent(part.len());
            sent.extend(part);
        }
        sent
    }

    #[test]
    fn bytes_are_held_until_they_are_acknowledged() {
        let mut window = window(b"hello");
        assert_eq!(send_all(&mut window), b"hello");
        assert_eq!(window.room(), STREAM_WINDOW_BYTES - 5);
        window.acknowledge(2).unwrap();
        assert_eq!(window.room(), STREAM_WINDOW_BYTES - 3);
        assert!(!window.is_empty());
        window.acknowledge(5).unwrap();
        assert!(window.is_empty());
        assert_eq!(window.room(), STREAM_WINDOW_BYTES);
    }

    #[test]
    fn a_full_window_takes_no_more() {
        let mut window = window(&vec![7; STREAM_WINDOW_BYTES]);
        assert_eq!(window.room(), 0);
        send_all(&mut window);
        assert_eq!(window.room(), 0, "sent is not yet acknowledged");
        window.acknowledge(1).unwrap();
        assert_eq!(window.room(), 1);
    }

    #[test]
    fn a_new_connection_goes_on_from_what_the_host_has() {
        let mut window = window(b"0123456789");
        send_all(&mut window);
        window.acknowledge(3).unwrap();
        window.resume(5).unwrap();
        assert_eq!(send_all(&mut window), b"56789");
        window.resume(5).unwrap();
        assert_eq!(send_all(&mut window), b"56789");
    }

    #[test]
    fn a_host_that_was_sent_a_part_may_have_no_more_than_it() {
        let mut window = window(b"0123456789");
        window.mark_sent(4);
        assert_eq!(window.resume(5), Err(WindowError::Ahead { offset: 5, newest: 4 }));
        window.resume(2).unwrap();
        window.resume(4).unwrap();
        assert_eq!(send_all(&mut window), b"456789");
    }

    #[test]
    fn what_is_gone_or_was_never_sent_is_refused() {
        let mut window = window(b"0123456789");
        window.mark_sent(6);
        window.acknowledge(4).unwrap();
        assert_eq!(window.resume(3), Err(WindowError::Gone { offset: 3, oldest: 4 }));
        assert_eq!(
            window.acknowledge(7),
            Err(WindowError::Ahead { offset: 7, newest: 6 })
        );
        assert_eq!(
            window.acknowledge(u64::MAX),
            Err(WindowError::Ahead {
                offset: u64::MAX,
                newest: 6
            })
        );
        window.acknowledge(2).unwrap();
        assert_eq!(
            window.room(),
            STREAM_WINDOW_BYTES - 6,
            "an old word changes nothing"
        );
    }

    #[test]
    fn bytes_keep_their_order_when_the_ring_wraps() {
        let mut window = Window::default();
        let mut expected = 0_u8;
        let mut position = 0_u64;
        for round in 0..200_usize {
            let part: Vec<u8> = (0..=(round % 97))
                .map(|_| {
                    expected = expected.wrapping_add(1);
                    expected
                })
                .collect();
            window.push(&part);
            assert_eq!(send_all(&mut window), part);
            position += part.len() as u64;
            window.acknowledge(position - 1).unwrap();
        }
    }
}
