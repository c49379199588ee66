//! What a control group reads from disks and writes to them: `io.stat`.

use std::fs;

use bulkhead_proto::agent::{DiskStats, limits};

/// The lines of `io.stat`, as far as they are within the bound; `name` says how a device is called.
pub fn parse(file: &str, name: impl Fn(u32, u32) -> String) -> Vec<DiskStats> {
    file.lines()
        .filter_map(|line| disk(line, &name))
        .take(limits::DEVICES)
        .collect()
}

fn disk(line: &str, name: impl Fn(u32, u32) -> String) -> Option<DiskStats> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let mut disk = DiskStats {
        major,
        minor,
        name: name(major, minor),
        ..DiskStats::default()
    };
    let mut counted = false;
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let Ok(value) = value.parse() else { continue };
        match key {
            "rbytes" => disk.read_bytes = value,
            "wbytes" => disk.written_bytes = value,
            "rios" => disk.reads = value,
            "wios" => disk.writes = value,
            _ => continue,
        }
        counted = true;
    }
    // A device may have a line without figures (block/blk-cgroup.c).
    counted.then_some(disk)
}

/// How the kernel calls a device; empty where it is not there any more.
pub fn name(major: u32, minor: u32) -> String {
    let event = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
    event
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_disk_has_its_figures() {
        let file = "254:16 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n254:0 \n7:0 rbytes=512 rios=1\n\
                    no line\n";
        let disks = parse(file, |major, minor| format!("d{major}-{minor}"));
        assert_eq!(disks.len(), 2, "{disks:?}");
        assert_eq!((disks[0].major, disks[0].minor), (254, 16));
        assert_eq!(disks[0].name, "d254-16");
        assert_eq!((disks[0].read_bytes, disks[0].written_bytes), (4096, 8192));
        assert_eq!((disks[0].reads, disks[0].writes), (1, 2));
        assert_eq!((disks[1].read_bytes, disks[1].written_bytes), (512, 0));
    }

    #[test]
    fn there_are_no_more_than_the_bound() {
        let file = "7:0 rbytes=1\n".repeat(100);
        assert_eq!(parse(&file, |_, _| String::new()).len(), limits::DEVICES);
    }
}
