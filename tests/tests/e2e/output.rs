//! Output faster than it can be written: back-pressure from the log's disk to the container.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use bulkhead_tests::{Container, ContainerSpec, Daemon, DaemonOptions, PodSpec, log, until};
use tempfile::TempDir;

/// A disk of its own for logs, which can be brought to a halt.
struct LogDisk {
    directory: TempDir,
}

impl LogDisk {
    fn new() -> Self {
        let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
        let image = directory.path().join("disk");
        let file = fs::File::create(&image).expect("a disk image");
        file.set_len(400 << 20).expect("a sparse file");
        let disk = Self { directory };
        fs::create_dir(disk.path()).expect("a mount point");
        run("mkfs.ext4", &["-q", text(&image)]);
        run("mount", &["-o", "loop", text(&image), text(&disk.path())]);
        disk
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("logs")
    }

    fn halt(&self) {
        run("fsfreeze", &["--freeze", text(&self.path())]);
    }

    fn go_on(&self) {
        run("fsfreeze", &["--unfreeze", text(&self.path())]);
    }
}

impl Drop for LogDisk {
    fn drop(&mut self) {
        // A failed test may have left it halted.
        let _ = Command::new("fsfreeze")
            .arg("--unfreeze")
            .arg(self.path())
            .output();
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).output();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("a program of the node starts");
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

fn number(container: &Container<'_>, script: &str) -> i64 {
    container.sh(script).parse().expect("a number")
}

/// Memory of a process that is its own, in KiB.
fn resident_kib(pid: i32) -> i64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("RssAnon");
    line.trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number of KiB")
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_halted_log_disk_halts_its_container_and_nothing_else_and_no_byte_is_lost() {
    let disk = LogDisk::new();
    let daemon = Daemon::private(DaemonOptions::new());
    let pod = daemon.run_pod(PodSpec::new("flood").with("/log_directory", text(&disk.path())));
    let other_pod = daemon.run_pod(PodSpec::new("beside"));
    let beside = pod.run(ContainerSpec::idle());
    let elsewhere = other_pod.run(ContainerSpec::idle());
    let memory = "sed -n 's/^MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo";

    // 100 blocks of a million bytes in lines of 1,000, each block with its number.
    let script = "seq 1000000 1130000 | tr '\\n' ' ' | fold -w 999 | head -n 1000 > /block; \
                  i=0; while [ $i -lt 100 ]; do echo block $i; cat /block; i=$((i+1)); echo $i > /dev/shm/blocks; done";
    let available = number(&beside, memory);
    let own = resident_kib(daemon.pid());
    let container = pod.run(ContainerSpec::sh(script));
    let path = container.status().log_path;
    until("the log to grow", || {
        match fs::metadata(&path).map(|file| file.len()) {
            Ok(length) if length > 5_000_000 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    disk.halt();

    let mut last = -1;
    let mut same = 0;
    let blocks = until("the container to come to a halt", || {
        let blocks = number(&beside, "cat /dev/shm/blocks");
        same = if blocks == last { same + 1 } else { 0 };
        last = blocks;
        if same == 8 {
            Ok(blocks)
        } else {
            Err(format!("{blocks} blocks"))
        }
    });
    assert!(
        blocks < 95,
        "it wrote {blocks} blocks of 100 without a disk to write to"
    );
    let less = available - number(&beside, memory);
    assert!(
        less < 12 * 1024,
        "the guest has {less} KiB less while the log is halted"
    );
    let more = resident_kib(daemon.pid()) - own;
    assert!(
        more < 32 * 1024,
        "the daemon has {more} KiB more while the log is halted"
    );
    assert_eq!(elsewhere.sh("echo alive"), "alive", "another pod goes on");
    assert_eq!(
        daemon.crictl().ok(["ps", "-q", "--pod", other_pod.id()]),
        elsewhere.id()
    );

    disk.go_on();
    let status = container.wait_exited();
    assert_eq!(status.exit_code, 0, "{status:?}");
    let lines = container.log();
    let written = log::bytes_of(&lines, "stdout");
    let block_bytes = container_block(&lines);
    let mut expected = Vec::new();
    for number in 0..100 {
        expected.extend(format!("block {number}\n").bytes());
        expected.extend_from_slice(&block_bytes);
    }
    assert!(
        expected.len() > 90_000_000,
        "the block has {} bytes",
        block_bytes.len()
    );
    assert_eq!(written.len(), expected.len());
    assert!(written == expected, "the log differs from what was written");
}

/// The lines of the first block; every other block must be the same.
fn container_block(lines: &[log::Line]) -> Vec<u8> {
    let end = lines
        .iter()
        .position(|line| line.content == b"block 1")
        .expect("a second block");
    let block = log::bytes_of(lines.get(1..end).expect("a first block"), "stdout");
    assert!(
        block.starts_with(b"1000000 1000001 "),
        "the block begins with its first number"
    );
    block
}
