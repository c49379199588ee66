//! What was said before of a container or machine: so that nothing goes back, and for what is used in a time.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bulkhead_proto::agent::{DiskStats, InterfaceStats, Pressure, PressureLine};

use super::{Figures, Usage};
use crate::identity::now_ns;

/// Least time over which the use of processors is averaged: what comes quicker is told the last average.
const SHORTEST: Duration = Duration::from_millis(500);

/// The measurements of one container or machine.
#[derive(Debug, Default)]
pub struct History {
    last: Mutex<Option<Last>>,
}

#[derive(Debug)]
struct Last {
    figures: Figures,
    at_ns: i64,
    /// Where the average that is being made began.
    base: (Instant, u64),
    nano_cores: Option<u64>,
}

impl History {
    /// A measurement with what came before it: figures that only grow are at least what they were, and times advance.
    pub fn add(&self, figures: Figures) -> Usage {
        self.add_at(figures, Instant::now())
    }

    fn add_at(&self, mut figures: Figures, now: Instant) -> Usage {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Last {
            at_ns: now_ns(),
            base: (now, figures.cpu_usage_us),
            nano_cores: None,
            figures: Figures::default(),
        };
        if let Some(last) = last.as_ref() {
            not_back(&mut figures, &last.figures);
            next.at_ns = next.at_ns.max(last.at_ns.saturating_add(1));
            let (began, used) = last.base;
            let elapsed = now.saturating_duration_since(began);
            if elapsed < SHORTEST {
                (next.base, next.nano_cores) = (last.base, last.nano_cores);
            } else {
                next.base = (now, figures.cpu_usage_us);
                next.nano_cores = Some(rate(figures.cpu_usage_us.saturating_sub(used), elapsed));
            }
        }
        next.figures = figures.clone();
        let usage = Usage {
            at_ns: next.at_ns,
            figures,
            nano_cores: next.nano_cores,
        };
        *last = Some(next);
        usage
    }
}

/// Microseconds of a processor in a time, as thousand-millionths of a processor.
fn rate(used_us: u64, elapsed: Duration) -> u64 {
    let nano_cores = u128::from(used_us) * 1_000_000_000_000 / elapsed.as_nanos().max(1);
    u64::try_from(nano_cores).unwrap_or(u64::MAX)
}

/// Makes what only grows at least what it was.
fn not_back(figures: &mut Figures, before: &Figures) {
    for (now, before) in [
        (&mut figures.cpu_usage_us, before.cpu_usage_us),
        (&mut figures.cpu_user_us, before.cpu_user_us),
        (&mut figures.cpu_system_us, before.cpu_system_us),
        (&mut figures.cpu_periods, before.cpu_periods),
        (&mut figures.cpu_throttled_periods, before.cpu_throttled_periods),
        (&mut figures.cpu_throttled_us, before.cpu_throttled_us),
        (&mut figures.memory_page_faults, before.memory_page_faults),
        (
            &mut figures.memory_major_page_faults,
            before.memory_major_page_faults,
        ),
        (&mut figures.memory_limit_hits, before.memory_limit_hits),
        (&mut figures.oom_kills, before.oom_kills),
    ] {
        *now = before.max(*now);
    }
    figures.memory_peak_bytes = figures.memory_peak_bytes.max(before.memory_peak_bytes);
    for (now, before) in [
        (&mut figures.cpu_pressure, before.cpu_pressure.as_ref()),
        (&mut figures.memory_pressure, before.memory_pressure.as_ref()),
        (&mut figures.io_pressure, before.io_pressure.as_ref()),
    ] {
        if let (Some(now), Some(before)) = (now, before) {
            pressure_not_back(now, before);
        }
    }
    for disk in &mut figures.disks {
        let same = |before: &&DiskStats| (before.major, before.minor) == (disk.major, disk.minor);
        if let Some(before) = before.disks.iter().find(same) {
            disk.read_bytes = disk.read_bytes.max(before.read_bytes);
            disk.written_bytes = disk.written_bytes.max(before.written_bytes);
            disk.reads = disk.reads.max(before.reads);
            disk.writes = disk.writes.max(before.writes);
        }
    }
}

fn pressure_not_back(now: &mut Pressure, before: &Pressure) {
    let line = |now: &mut Option<PressureLine>, before: &Option<PressureLine>| {
        if let (Some(now), Some(before)) = (now, before) {
            now.total_us = now.total_us.max(before.total_us);
        }
    };
    line(&mut now.some, &before.some);
    line(&mut now.full, &before.full);
}

/// The same for the interfaces of a guest.
pub(super) fn interfaces_not_back(interfaces: &mut [InterfaceStats], before: &[InterfaceStats]) {
    for now in interfaces {
        let Some(before) = before.iter().find(|before| before.name == now.name) else {
            continue;
        };
        for (now, before) in [
            (&mut now.received_bytes, before.received_bytes),
            (&mut now.received_packets, before.received_packets),
            (&mut now.receive_errors, before.receive_errors),
            (&mut now.receive_drops, before.receive_drops),
            (&mut now.sent_bytes, before.sent_bytes),
            (&mut now.sent_packets, before.sent_packets),
            (&mut now.send_errors, before.send_errors),
            (&mut now.send_drops, before.send_drops),
        ] {
            *now = before.max(*now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(cpu_usage_us: u64) -> Figures {
        Figures {
            cpu_usage_us,
            ..Figures::default()
        }
    }

    #[test]
    fn what_only_grows_is_never_smaller_and_the_rest_is_as_it_is() {
        let history = History::default();
        let line = |total_us| Pressure {
            some: Some(PressureLine {
                total_us,
                ..PressureLine::default()
            }),
            full: None,
        };
        let disk = |minor, reads| DiskStats {
            major: 254,
            minor,
            reads,
            ..DiskStats::default()
        };
        let first = history.add(Figures {
            cpu_usage_us: 100,
            oom_kills: 2,
            memory_usage_bytes: 5000,
            memory_peak_bytes: Some(7000),
            cpu_pressure: Some(line(50)),
            disks: vec![disk(0, 5), disk(16, 5)],
            ..Figures::default()
        });
        let second = history.add(Figures {
            cpu_usage_us: 10,
            oom_kills: 3,
            memory_usage_bytes: 1000,
            cpu_pressure: Some(line(0)),
            disks: vec![disk(16, 4), disk(32, 1)],
            ..Figures::default()
        });
        let figures = &second.figures;
        assert_eq!((figures.cpu_usage_us, figures.oom_kills), (100, 3));
        assert_eq!(figures.memory_usage_bytes, 1000, "memory is given back");
        assert_eq!(figures.memory_peak_bytes, Some(7000));
        assert_eq!(figures.cpu_pressure, Some(line(50)));
        assert_eq!(figures.disks, [disk(16, 5), disk(32, 1)]);
        assert!(second.at_ns > first.at_ns);
    }

    #[test]
    fn what_a_processor_does_in_a_time_takes_two_measurements_that_are_apart() {
        let history = History::default();
        let begun = Instant::now();
        let at = |ms, us| {
            history
                .add_at(used(us), begun + Duration::from_millis(ms))
                .nano_cores
        };
        assert_eq!(at(0, 1_000_000), None);
        assert_eq!(at(100, 1_100_000), None, "too soon to tell");
        // Half a second of a processor in a second.
        assert_eq!(at(1000, 1_500_000), Some(500_000_000));
        assert_eq!(at(1100, 9_000_000), Some(500_000_000), "too soon to tell anew");
        // A guest that goes back has done nothing.
        assert_eq!(at(3000, 0), Some(3_750_000_000));
        assert_eq!(at(4000, u64::MAX), Some(u64::MAX), "a lie that no number holds");
    }

    #[test]
    fn interfaces_are_told_apart_by_name() {
        let interface = |name: &str, sent_bytes| InterfaceStats {
            name: name.to_owned(),
            sent_bytes,
            ..InterfaceStats::default()
        };
        let mut now = [interface("eth0", 1), interface("eth1", 1)];
        interfaces_not_back(&mut now, &[interface("eth1", 9)]);
        assert_eq!(now, [interface("eth0", 1), interface("eth1", 9)]);
    }
}
