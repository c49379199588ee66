//! The guest kernel of the project on the machine, with BusyBox for a user space.

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use bulkhead_vmm::config::{DiskAccess, ExitReason};
use serde_json::json;

use crate::running::{Machine, Running};

/// The kernel: in `BULKHEAD_GUEST_DIR` where tests run away from where they were built.
fn kernel() -> PathBuf {
    std::env::var_os("BULKHEAD_GUEST_DIR")
        .map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../out/guest"),
            PathBuf::from,
        )
        .join("vmlinux")
}

/// What every script begins with. The kernel's log is the console, so that lines of both do not mix.
const PRELUDE: &str = "#!/bin/sh
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
say() { echo \"$*\" > /dev/kmsg; }
";

/// A machine that boots Linux and runs `script` as its first process.
pub fn machine(script: &str) -> Machine {
    let mut machine = Machine::new(&kernel());
    let initramfs = machine.directory.path().join("initramfs");
    fs::write(&initramfs, archive(&format!("{PRELUDE}{script}"))).unwrap();
    machine.config["initramfs"] = json!({"path": initramfs});
    machine.config["memory_mib"] = json!(128);
    machine.config["cmdline"] = json!("console=hvc0 panic_print=0 printk.devkmsg=on");
    machine
}

/// An archive (cpio, "newc") with BusyBox and `init`.
fn archive(init: &str) -> Vec<u8> {
    const DIRECTORY: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    const LINK: u32 = 0o120_777;
    let busybox = fs::read("/bin/busybox").expect("Debian's busybox-static gives the guest its user space");
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "proc", "sys"] {
        archive.add(directory, DIRECTORY, b"");
    }
    archive.add("bin/busybox", PROGRAM, &busybox);
    for applet in [
        "cat", "dd", "grep", "ls", "mount", "nproc", "poweroff", "reboot", "sh", "sleep", "sync", "wc",
    ] {
        archive.add(&format!("bin/{applet}"), LINK, b"busybox");
    }
    archive.add("init", PROGRAM, init.as_bytes());
    archive.add("TRAILER!!!", 0, b"");
    archive.bytes
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    files: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.files += 1;
        let fields = [
            self.files,
            mode,
            0,
            0,
            1,
            0,
            content.len().try_into().unwrap(),
            0,
            0,
            0,
            0,
            (name.len() + 1).try_into().unwrap(),
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn ends(running: &mut Running, status: i32, reason: ExitReason) {
    let (code, report) = running.end();
    assert_eq!(
        (code, report.reason),
        (Some(status), reason),
        "{}\n{}",
        running.errors(),
        running.console()
    );
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn linux_boots_on_two_processors_finds_its_devices_and_powers_off() {
    let mut machine = machine(
        "say cpus $(nproc)
say clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
say virtio $(ls /sys/bus/virtio/devices)
say generation $(ls /sys/bus/platform/drivers/vmgenid)
say interrupts $(grep -c PCI-MSIX /proc/interrupts)
say entropy $(cat /sys/class/misc/hw_random/rng_current)
poweroff -f
",
    );
    machine.config["vcpus"] = json!(2);
    let mut running = machine.start();
    ends(&mut running, 0, ExitReason::PowerOff);
    let console = running.console();
    for fact in [
        "cpus 2",
        "clock kvm-clock",
        "virtio virtio0 virtio1 virtio2",
        "VMGENCTR:00",
        "entropy virtio_rng",
    ] {
        assert!(console.contains(fact), "{fact} is not in:\n{console}");
    }
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_panic_ends_the_machine_with_its_reason_in_the_console() {
    let mut running = machine("echo c > /proc/sysrq-trigger").start();
    ends(&mut running, 11, ExitReason::Panic);
    let console = running.console();
    assert!(
        console.contains("Kernel panic - not syncing: sysrq triggered crash"),
        "{console}"
    );
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn the_end_of_the_first_process_is_a_panic() {
    let mut running = machine("exit 3").start();
    ends(&mut running, 11, ExitReason::Panic);
    assert!(
        running.console().contains("Attempted to kill init"),
        "{}",
        running.console()
    );
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_reboot_is_a_reset() {
    ends(&mut machine("reboot -f").start(), 10, ExitReason::Reset);
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn disks_of_the_configuration_and_added_ones_are_read_and_written() {
    let mut machine = machine(
        "say first $(dd if=/dev/vda bs=512 count=1)
say ready
until [ -e /dev/vdb ] && [ -e /dev/vdc ]; do echo 1 > /sys/bus/pci/rescan; sleep 0.2; done
say second $(dd if=/dev/vdb bs=512 skip=1 count=1)
say serials $(cat /sys/block/vdb/serial) $(cat /sys/block/vdc/serial)
echo written by the guest | dd of=/dev/vdc conv=sync bs=512
sync
poweroff -f
",
    );
    let file = |name: &str, content: &[&str]| {
        let path = machine.directory.path().join(name);
        let sectors: Vec<u8> = content
            .iter()
            .flat_map(|text| {
                let mut sector = text.as_bytes().to_vec();
                sector.resize(512, b'\n');
                sector
            })
            .collect();
        fs::write(&path, sectors).unwrap();
        path
    };
    let cold = file("cold", &["cold disk"]);
    let layers = [file("layer-1", &["layer one"]), file("layer-2", &["layer two"])];
    let scratch = file("scratch", &["", "", "", ""]);
    machine.config["disks"] = json!([
        {"serial": "cold", "access": "read_only", "segments": [{"file": {"path": cold}}]},
    ]);
    let mut running = machine.start();
    running.wait_for_console("ready");
    let client = running.client();
    let layers = layers.map(|path| fs::File::open(path).unwrap());
    let segments: Vec<_> = layers.iter().map(|file| (file.as_fd(), 512)).collect();
    client.add_disk("image", DiskAccess::ReadOnly, &segments).unwrap();
    let mut scratch = fs::File::options().read(true).write(true).open(scratch).unwrap();
    client
        .add_disk("scratch", DiskAccess::ReadWrite, &[(scratch.as_fd(), 2048)])
        .unwrap();
    ends(&mut running, 0, ExitReason::PowerOff);
    let console = running.console();
    for fact in ["first cold disk", "second layer two", "serials image scratch"] {
        assert!(console.contains(fact), "{fact} is not in:\n{console}");
    }
    let mut written = String::new();
    scratch.seek(SeekFrom::Start(0)).unwrap();
    scratch.read_to_string(&mut written).unwrap();
    assert!(written.starts_with("written by the guest\n"), "{written:?}");
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_paused_linux_says_nothing_and_goes_on_after() {
    let mut machine = machine("i=0; while true; do i=$((i + 1)); say tick $i; sleep 0.05; done");
    machine.config["vcpus"] = json!(2);
    let mut running = machine.start();
    running.wait_for_console("tick 5");
    let client = running.client();
    for _ in 0..3 {
        client.pause().unwrap();
        let before = running.console();
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert_eq!(running.console(), before, "a paused guest wrote to its console");
        client.resume().unwrap();
        running.wait_for("a further tick", |running| {
            (running.console().len() > before.len()).then_some(())
        });
    }
    let console = running.console();
    assert!(!console.contains("stall"), "{console}");
    client.quit().unwrap();
    ends(&mut running, 0, ExitReason::Quit);
}
