//! What the containers of the guest share: its network interfaces and its scratch disk.

use std::fs;

use bulkhead_proto::agent::{DiskSpace, InterfaceStats, limits};
use rustix::fs::statvfs;

use crate::storage::scratch::SCRATCH;

/// The counters of all interfaces but loopback, as far as they are within the bound.
pub fn interfaces() -> Vec<InterfaceStats> {
    parse_interfaces(&fs::read_to_string("/proc/net/dev").unwrap_or_default())
}

/// The columns are those of the file's header: eight for what came, then eight for what went.
fn parse_interfaces(file: &str) -> Vec<InterfaceStats> {
    file.lines()
        .skip(2)
        .filter_map(interface)
        .filter(|interface| interface.name != "lo")
        .take(limits::DEVICES)
        .collect()
}

fn interface(line: &str) -> Option<InterfaceStats> {
    // A name may have a colon in it, and the first number may follow without a space.
    let (name, counters) = line.rsplit_once(':')?;
    let counters: Vec<u64> = counters
        .split_whitespace()
        .map(|counter| counter.parse().unwrap_or(0))
        .collect();
    let [
        received_bytes,
        received_packets,
        receive_errors,
        receive_drops,
        _,
        _,
        _,
        _,
        sent_bytes,
        sent_packets,
        send_errors,
        send_drops,
        ..,
    ] = *counters.as_slice()
    else {
        return None;
    };
    Some(InterfaceStats {
        name: name.trim().to_owned(),
        received_bytes,
        received_packets,
        receive_errors,
        receive_drops,
        sent_bytes,
        sent_packets,
        send_errors,
        send_drops,
    })
}

/// The scratch disk; nothing before it is mounted.
pub fn scratch() -> Option<DiskSpace> {
    let space = statvfs(SCRATCH).ok()?;
    Some(DiskSpace {
        total_bytes: space.f_blocks.saturating_mul(space.f_frsize),
        free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
        inodes: space.f_files,
        free_inodes: space.f_ffree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_without_loopback() {
        let file = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo \
                    colls carrier compressed\n    \
                    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n  \
                    eth0: 100 2 3 4 0 0 0 0 200 5 6 7 0 0 0 0\n\
                    a:b:12345678 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  \
                    odd: 1 2 3\n";
        let interfaces = parse_interfaces(file);
        assert_eq!(
            interfaces[0],
            InterfaceStats {
                name: "eth0".to_owned(),
                received_bytes: 100,
                received_packets: 2,
                receive_errors: 3,
                receive_drops: 4,
                sent_bytes: 200,
                sent_packets: 5,
                send_errors: 6,
                send_drops: 7,
            }
        );
        assert_eq!(
            (interfaces[1].name.as_str(), interfaces[1].received_bytes),
            ("a:b", 12_345_678)
        );
        assert_eq!(interfaces.len(), 2);
        assert!(parse_interfaces("").is_empty());
    }
}
