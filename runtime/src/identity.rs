//! Names and times that the daemon gives to things.

use std::{
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::rand::{GetRandomFlags, getrandom};

/// A new id of a pod or container: 64 hexadecimal digits, 256 random bits.
pub fn new_id() -> String {
    hex::<32>()
}

/// A new id of an exec: unique in its container.
pub fn new_exec_id() -> String {
    format!("exec-{}", hex::<16>())
}

/// Whether `id` looks like one that [`new_id`] made. Directories and control groups are named by it, so nothing else
/// is taken for one.
pub fn is_id(id: &str) -> bool {
    id.len() == 64
        && id
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The first digits of an id, enough for people to tell them apart.
pub fn short(id: &str) -> &str {
    id.get(..13).unwrap_or(id)
}

/// Now, in nanoseconds since the epoch, as CRI counts time.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Random bytes that nobody can guess.
pub fn random<const BYTES: usize>() -> [u8; BYTES] {
    let mut bytes = [0u8; BYTES];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        // getrandom(2) fails only for bad arguments once the kernel's generator has been seeded, and waits before.
        filled += getrandom(rest, GetRandomFlags::empty()).unwrap_or(0);
    }
    bytes
}

fn hex<const BYTES: usize>() -> String {
    random::<BYTES>()
        .iter()
        .fold(String::with_capacity(2 * BYTES), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_digits_and_never_the_same() {
        let (a, b) = (new_id(), new_id());
        assert!(is_id(&a), "{a}");
        assert_ne!(a, b);
        assert!(!is_id(&a[1..]));
        assert!(!is_id(&format!("{}G", &a[1..])));
        assert!(!is_id("../etc"));
    }

    #[test]
    fn the_time_is_in_nanoseconds() {
        // 2020-01-01 and 2100-01-01.
        assert!((1_577_836_800_000_000_000..4_102_444_800_000_000_000).contains(&now_ns()));
    }
}
