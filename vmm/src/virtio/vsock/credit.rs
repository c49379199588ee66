//! Flow control (virtio 1.2, section 5.10.6.3): each side says in every packet how large its receive buffer is and how
//! many bytes have left it, and the other never has more under way than fits. Counts wrap at 2^32.

/// Size of the receive buffer of each connection: what is kept of a guest's bytes for a host that reads slowly.
pub const BUFFER_BYTES: u32 = 128 * 1024;

/// Progress below which the guest is not told of room while more is coming.
const WORTH_TELLING: u32 = 4096;

/// What may be sent to the guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct ToGuest {
    sent: u32,
    forwarded: u32,
    buffer: u32,
}

/// A guest's count is of bytes that it never got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lie;

impl ToGuest {
    /// Takes over what a packet of the guest says.
    ///
    /// # Errors
    ///
    /// [`Lie`] when it has forwarded what was not sent.
    pub fn learn(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), Lie> {
        let under_way = self.sent.wrapping_sub(self.forwarded);
        let advance = fwd_cnt.wrapping_sub(self.forwarded);
        if advance <= under_way {
            self.forwarded = fwd_cnt;
            self.buffer = buf_alloc;
            return Ok(());
        }
        // Two threads of a guest may overtake each other between counting and sending: an older count says nothing new.
        // Whatever is not a little older is ahead of what was sent.
        if advance > u32::MAX / 2 {
            return Ok(());
        }
        Err(Lie)
    }

    /// Bytes that may be sent now.
    pub fn room(&self) -> u32 {
        self.buffer.saturating_sub(self.sent.wrapping_sub(self.forwarded))
    }

    /// Counts bytes that were sent, at most [`ToGuest::room`].
    pub fn send(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }
}

/// What the guest may send.
#[derive(Clone, Copy, Debug, Default)]
pub struct FromGuest {
    received: u32,
    forwarded: u32,
    /// `forwarded` as the guest knows it.
    told: u32,
    /// Whether the guest has asked.
    asked: bool,
}

/// A guest has sent more than there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overrun;

impl FromGuest {
    /// Counts bytes that have come.
    ///
    /// # Errors
    ///
    /// [`Overrun`] when they do not fit into the buffer beside those that are there.
    pub fn receive(&mut self, bytes: u32) -> Result<(), Overrun> {
        let held = self.received.wrapping_sub(self.forwarded);
        if bytes > BUFFER_BYTES.saturating_sub(held) {
            return Err(Overrun);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// Counts bytes that have left the buffer, at most as many as are in it.
    pub fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Notes that the guest wants to know.
    pub fn ask(&mut self) {
        self.asked = true;
    }

    /// Whether the guest should hear of the room there is, though there is nothing else to be said to it: it asked, or
    /// it sees less than half a buffer and is wrong by enough.
    pub fn should_tell(&self) -> bool {
        let progress = self.forwarded.wrapping_sub(self.told);
        let seen = BUFFER_BYTES.saturating_sub(self.received.wrapping_sub(self.told));
        let all_gone = self.received == self.forwarded;
        self.asked || (seen < BUFFER_BYTES / 2 && progress > 0 && (progress >= WORTH_TELLING || all_gone))
    }

    /// The count for a header that goes out now.
    pub fn tell(&mut self) -> u32 {
        self.asked = false;
        self.told = self.forwarded;
        self.forwarded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_sent_than_fits_and_counts_wrap() {
        let near_wrap = u32::MAX - 50;
        let mut credit = ToGuest {
            sent: near_wrap,
            forwarded: near_wrap,
            buffer: 0,
        };
        assert_eq!(
            credit.room(),
            0,
            "nothing may be sent to a guest that has said nothing"
        );
        credit.learn(100, near_wrap).unwrap();
        assert_eq!(credit.room(), 100);
        credit.send(70);
        assert_eq!(credit.room(), 30);
        credit.learn(100, near_wrap.wrapping_add(60)).unwrap();
        assert_eq!(credit.room(), 90);
        credit.learn(5, near_wrap.wrapping_add(60)).unwrap();
        assert_eq!(
            credit.room(),
            0,
            "a guest may make its buffer smaller than what is under way"
        );
    }

    #[test]
    fn a_guest_cannot_have_forwarded_what_it_did_not_get_but_may_repeat_itself() {
        let mut credit = ToGuest::default();
        credit.learn(100, 0).unwrap();
        credit.send(40);
        assert_eq!(credit.learn(100, 41), Err(Lie));
        assert_eq!(credit.learn(100, u32::MAX / 2), Err(Lie));
        credit.learn(100, 30).unwrap();
        credit.learn(7, 10).unwrap();
        assert_eq!(credit.room(), 90, "an old count has taken the place of a newer");
    }

    #[test]
    fn a_guest_that_sends_more_than_there_is_room_for_is_found_out() {
        let mut credit = FromGuest::default();
        assert_eq!(credit.receive(BUFFER_BYTES + 1), Err(Overrun));
        credit.receive(BUFFER_BYTES).unwrap();
        assert_eq!(credit.receive(1), Err(Overrun));
        credit.forward(10);
        credit.receive(10).unwrap();
        assert_eq!(credit.receive(u32::MAX), Err(Overrun));
    }

    #[test]
    fn the_guest_is_told_when_it_sees_little_room_and_there_is_more() {
        let mut credit = FromGuest::default();
        credit.receive(BUFFER_BYTES / 4).unwrap();
        credit.forward(BUFFER_BYTES / 4);
        assert!(!credit.should_tell(), "it still sees three quarters");
        credit.receive(BUFFER_BYTES / 2).unwrap();
        assert!(credit.should_tell());
        assert_eq!(credit.tell(), BUFFER_BYTES / 4);
        assert!(!credit.should_tell());
        credit.receive(BUFFER_BYTES / 2).unwrap();
        credit.forward(WORTH_TELLING - 1);
        assert!(!credit.should_tell(), "more will leave soon");
        credit.forward(BUFFER_BYTES - WORTH_TELLING + 1);
        assert!(credit.should_tell(), "no more will leave");
        credit.tell();
        credit.ask();
        assert!(credit.should_tell());
    }
}
