//! The device status and the order in which a driver may set its bits (virtio 1.2, 2.1 and 3.1.1).

/// The driver has noticed the device.
pub(super) const ACKNOWLEDGE: u8 = 1;
/// It knows how to drive it.
pub(super) const DRIVER: u8 = 2;
/// It is ready.
pub(super) const DRIVER_OK: u8 = 4;
/// Features are agreed.
pub(super) const FEATURES_OK: u8 = 8;
/// The device cannot go on; set by the device.
pub(super) const NEEDS_RESET: u8 = 64;
/// The driver has given up.
pub(super) const FAILED: u8 = 128;

/// Every bit that a driver may set.
const DRIVER_BITS: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;

/// Each step of a driver, with what must have been taken before, in order.
const STEPS: [(u8, u8); 4] = [
    (ACKNOWLEDGE, 0),
    (DRIVER, ACKNOWLEDGE),
    (FEATURES_OK, ACKNOWLEDGE | DRIVER),
    (DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK),
];

/// What a driver's write to the status asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatusWrite {
    /// A reset.
    Reset,
    /// These new bits, in the order of [`STEPS`]; maybe none.
    Add(u8),
    /// Something that a driver must not do.
    Forbidden(&'static str),
}

/// Judges a write of `new` to a status of `old`.
pub(super) fn judge(old: u8, new: u8) -> StatusWrite {
    if new == 0 {
        return StatusWrite::Reset;
    }
    // The device's own bit may be written back as read, or left out.
    let (old_bits, new_bits) = (old & DRIVER_BITS, new & !NEEDS_RESET);
    if new_bits & !DRIVER_BITS != 0 {
        return StatusWrite::Forbidden("the driver set status bits that do not exist");
    }
    if old_bits & !new_bits != 0 {
        return StatusWrite::Forbidden("the driver cleared status bits without a reset");
    }
    let added = new_bits & !old_bits;
    let mut reached = old_bits;
    for (step, needed) in STEPS {
        if added & step != 0 {
            if reached & needed != needed {
                return StatusWrite::Forbidden("the driver set status bits out of order");
            }
            reached |= step;
        }
    }
    StatusWrite::Add(added)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_takes_the_steps_in_order() {
        for (old, new, added) in [
            (0, 1, 1),
            (1, 3, 2),
            (3, 11, 8),
            (11, 15, 4),
            (0, 15, 15),
            (3, 0x83, 0x80),
            (0x4f, 0x4f, 0),
            (0x4f, 0xf, 0),
        ] {
            assert_eq!(judge(old, new), StatusWrite::Add(added), "{old:#x} -> {new:#x}");
        }
        assert_eq!(judge(15, 0), StatusWrite::Reset);
    }

    #[test]
    fn steps_out_of_order_bits_taken_back_and_unknown_bits_are_refused() {
        for (old, new) in [(0, 2), (1, 9), (3, 7), (15, 11), (15, 1), (0, 0x11), (3, 0x23)] {
            assert!(
                matches!(judge(old, new), StatusWrite::Forbidden(_)),
                "{old:#x} -> {new:#x}"
            );
        }
    }
}
