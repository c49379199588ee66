//! Waiting for a condition, with a deadline that only a hang can meet.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long a condition may take to come. The node may be an emulated one, some twenty times slower than hardware, and
/// two tests share it.
pub const DEADLINE: Duration = Duration::from_mins(5);

/// Looks again and again until `look` has found `what` it looks for. An `Err` says what is there instead.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(10);
    loop {
        match look() {
            Ok(found) => return found,
            Err(instead) => assert!(
                start.elapsed() < DEADLINE,
                "waited {} s for {what}; there is: {instead}",
                DEADLINE.as_secs()
            ),
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}
