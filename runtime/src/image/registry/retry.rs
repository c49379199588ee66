//! How long is waited before a request is sent again, and when no more.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::super::ImageConfig;

/// The first wait, where the server says nothing. Each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// The longest wait, where the server says nothing.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Whether a failed request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// It would fail again.
    Never,
    /// It may succeed later: after so long, if the server said.
    Later(Option<Duration>),
}

/// The waits between the attempts of one request.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    /// Attempts that are left after the one that just failed.
    left: u64,
    wait: Duration,
    /// When no wait may end later, from the first one on.
    deadline: Option<Instant>,
    budget: Duration,
}

impl Backoff {
    pub(super) fn new(config: &ImageConfig) -> Self {
        Self {
            left: config.request_attempts.saturating_sub(1),
            wait: FIRST_WAIT,
            deadline: None,
            budget: Duration::from_secs(config.retry_seconds),
        }
    }

    /// How long to wait before the next attempt; nothing if there is to be none.
    pub(super) fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let wait = asked.unwrap_or_else(|| jittered(self.wait));
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        let now = Instant::now();
        let deadline = *self.deadline.get_or_insert(now + self.budget);
        // Asking sooner than the server said would be refused again, and held against us.
        (now.checked_add(wait)? <= deadline).then_some(wait)
    }
}

/// Half of `wait` and a random part of the other half, so that clients that failed together do not come back together.
fn jittered(wait: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness it is just half.
    let _ = rustix::rand::getrandom(&mut byte, rustix::rand::GetRandomFlags::empty());
    wait / 2 + wait / 2 * u32::from(byte[0]) / 255
}

/// What `Retry-After` means (RFC 9110, 10.2.3): seconds, or a date.
pub(super) fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff(attempts: u64, seconds: u64) -> Backoff {
        Backoff::new(&ImageConfig {
            request_attempts: attempts,
            retry_seconds: seconds,
            ..ImageConfig::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn waits_double_and_end() {
        let mut waits = backoff(9, 3600);
        for expected in [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000] {
            let (wait, expected) = (waits.next(None).unwrap(), Duration::from_millis(expected));
            assert!(
                (expected / 2..=expected).contains(&wait),
                "{wait:?} of {expected:?}"
            );
        }
        assert_eq!(waits.next(None), None);
        assert_eq!(backoff(1, 3600).next(None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_server_asks_for_is_kept_within_the_time_there_is() {
        let mut waits = backoff(100, 10);
        let wait = Duration::from_secs(4);
        for _ in 0..2 {
            assert_eq!(waits.next(Some(wait)), Some(wait));
            tokio::time::advance(wait).await;
        }
        assert_eq!(waits.next(Some(wait)), None);
        assert_eq!(backoff(100, 10).next(Some(Duration::MAX)), None);
        assert_eq!(backoff(2, 0).next(Some(Duration::ZERO)), Some(Duration::ZERO));
    }

    #[test]
    fn jitter_varies() {
        let waits: std::collections::HashSet<_> = (0..50).map(|_| jittered(LONGEST_WAIT)).collect();
        assert!(waits.len() > 5, "{waits:?}");
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let read = |text| parse_retry_after(text, now).map(|wait| wait.as_secs());
        assert_eq!(read("120"), Some(120));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:07 GMT"), Some(30));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:00 GMT"), Some(0));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-1"), None);
    }
}
