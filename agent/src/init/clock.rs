//! The guest's clocks in nanoseconds.

use std::io;

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const NANOSECONDS: u64 = 1_000_000_000;

/// `CLOCK_BOOTTIME`: since the machine started.
pub fn boottime_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

/// `CLOCK_REALTIME`: since the epoch.
pub fn realtime_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

/// Sets `CLOCK_REALTIME` to nanoseconds since the epoch; 0 leaves it alone.
///
/// # Errors
///
/// `EINVAL` for a time before the machine's start or beyond the year 2262.
pub fn set_realtime_ns(realtime_ns: u64) -> io::Result<()> {
    if realtime_ns == 0 {
        return Ok(());
    }
    let time = Timespec {
        tv_sec: i64::try_from(realtime_ns / NANOSECONDS).map_err(|_| io::ErrorKind::InvalidInput)?,
        tv_nsec: i64::try_from(realtime_ns % NANOSECONDS).map_err(|_| io::ErrorKind::InvalidInput)?,
    };
    clock_settime(ClockId::Realtime, time)?;
    Ok(())
}

fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(NANOSECONDS)
        .saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}
