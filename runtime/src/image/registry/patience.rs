//! How long a registry is waited for: not longer than it may be silent, and not for a trickle.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;

use super::super::ImageConfig;

/// Parts in which a registry's silence is counted.
const PARTS_OF_SILENCE: u32 = 8;

/// What a registry is granted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// The longest silence.
    pub(super) silence: Duration,
    /// The least bytes a second, over as long as the longest silence.
    least_rate: u64,
}

/// The registry has been silent for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Silent;

/// So few bytes came in so much waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trickle {
    pub(super) bytes: u64,
    pub(super) seconds: u64,
}

impl Patience {
    pub(super) fn new(config: &ImageConfig) -> Self {
        Self {
            silence: Duration::from_secs(config.stall_timeout_seconds),
            least_rate: config.least_bytes_per_second,
        }
    }

    /// Waits for the registry, but not longer than it may be silent, and says for how long it was waited.
    ///
    /// The time is counted in parts, each of which counts once however long it was: a process or a machine that was not
    /// run for a while finds its timers expired before it has looked at what has come meanwhile.
    pub(super) async fn wait<T>(self, work: impl Future<Output = T>) -> Result<(T, Duration), Silent> {
        let mut work = pin!(work);
        let part = self.silence / PARTS_OF_SILENCE;
        let mut waited = Duration::ZERO;
        for _ in 0..PARTS_OF_SILENCE {
            let begun = Instant::now();
            if let Ok(done) = tokio::time::timeout(part, &mut work).await {
                return Ok((done, waited + begun.elapsed().min(part)));
            }
            waited += part;
        }
        Err(Silent)
    }

    /// Begins to count what comes.
    pub(super) fn meter(self) -> Meter {
        Meter {
            patience: self,
            bytes: 0,
            waited: Duration::ZERO,
        }
    }
}

/// Counts what comes in how much waiting. The time that others take to use what came does not count.
#[derive(Debug)]
pub(super) struct Meter {
    patience: Patience,
    bytes: u64,
    waited: Duration,
}

impl Meter {
    /// Counts a piece; an error if it is less than must come.
    pub(super) fn count(&mut self, bytes: usize, waited: Duration) -> Result<(), Trickle> {
        self.bytes += bytes as u64;
        self.waited += waited;
        if self.waited < self.patience.silence {
            return Ok(());
        }
        let (bytes, seconds) = (self.bytes, self.waited.as_secs().max(1));
        *self = self.patience.meter();
        if bytes / seconds < self.patience.least_rate {
            Err(Trickle { bytes, seconds })
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        silence: Duration::from_mins(1),
        least_rate: 1000,
    };

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it() {
        let begun = Instant::now();
        assert_eq!(PATIENCE.wait(std::future::pending::<()>()).await, Err(Silent));
        assert_eq!(begun.elapsed().as_secs(), 60);
        let sleep = Duration::from_secs(59);
        let ((), waited) = PATIENCE.wait(tokio::time::sleep(sleep)).await.unwrap();
        assert_eq!(waited.as_secs(), 59);
    }

    #[test]
    fn a_trickle_ends_it_but_slow_use_does_not() {
        let mut meter = PATIENCE.meter();
        for _ in 0..59 {
            meter.count(1, Duration::from_secs(1)).unwrap();
        }
        let trickle = meter.count(1, Duration::from_secs(1)).unwrap_err();
        assert_eq!(
            trickle,
            Trickle {
                bytes: 60,
                seconds: 60
            }
        );

        let mut meter = PATIENCE.meter();
        for _ in 0..1000 {
            meter.count(1000, Duration::from_secs(1)).unwrap();
            meter.count(1, Duration::ZERO).unwrap();
        }
        let mut unbounded = Patience {
            least_rate: 0,
            ..PATIENCE
        }
        .meter();
        for _ in 0..1000 {
            unbounded.count(1, Duration::from_secs(59)).unwrap();
        }
    }
}
