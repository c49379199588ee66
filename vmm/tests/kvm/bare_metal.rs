//! How a machine ends, and what it does on request, with guests of a few instructions.

use std::{fs, os::fd::AsFd, path::Path};

use bulkhead_vmm::{
    config::{DiskAccess, ExitReason},
    control::{client::ControlError, protocol::MachinePhase},
    kvm::Host,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{bare::Code, running::Machine};

/// Configuration space of device 1, which is pvpanic.
const PVPANIC_CONFIG: u32 = 0xe000_8000;

fn ends(code: &Code, status: i32, reason: ExitReason) {
    let mut running = Machine::bare(code).start();
    let (code, report) = running.end();
    assert_eq!(
        (code, report.reason),
        (Some(status), reason),
        "{}",
        running.errors()
    );
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn this_host_has_all_that_a_machine_needs() {
    Host::open().unwrap();
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn powering_off_is_a_good_end() {
    ends(&Code::new().power_off(), 0, ExitReason::PowerOff);
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_reset_is_told() {
    ends(&Code::new().out(0x602, 1).idle(), 10, ExitReason::Reset);
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_triple_fault_is_told() {
    // ud2, with no table of handlers
    ends(&Code::new().raw(&[0x0f, 0x0b]), 12, ExitReason::TripleFault);
}

/// Moves the register of pvpanic to where 32-bit code reaches it, and reports a panic.
fn panic() -> Code {
    Code::new()
        .store(PVPANIC_CONFIG + 0x10, 0xd000_0000)
        .store(PVPANIC_CONFIG + 0x14, 0)
        .store_byte(PVPANIC_CONFIG + 0x04, 2)
        .store_byte(0xd000_0000, 1)
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_panic_is_told_by_the_reset_that_follows_or_when_the_guest_lingers() {
    ends(&panic().out(0x602, 1).idle(), 11, ExitReason::Panic);
    ends(&panic().idle(), 11, ExitReason::Panic);
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn early_output_is_in_the_console() {
    let code = b"hello"
        .iter()
        .fold(Code::new(), |code, byte| code.out(0x3f8, *byte));
    let mut running = Machine::bare(&code.power_off()).start();
    running.end();
    assert_eq!(running.console(), "hello");
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_request_or_a_signal_ends_an_idle_machine() {
    let mut running = Machine::bare(&Code::new().idle()).start();
    running.client().quit().unwrap();
    let (status, report) = running.end();
    assert_eq!((status, report.reason), (Some(0), ExitReason::Quit));

    let mut running = Machine::bare(&Code::new().count()).start();
    running.client();
    let pid = Pid::from_raw(running.pid().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let (status, report) = running.end();
    assert_eq!((status, report.reason), (Some(0), ExitReason::Quit));
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_machine_tells_how_it_is_and_can_be_stopped_and_go_on() {
    let mut running = Machine::bare(&Code::new().count()).start();
    let client = running.client();
    let state = client.state().unwrap();
    assert_eq!((state.name.as_str(), state.pid), ("test", running.pid()));
    running.wait_for("first entry into the guest", |_| {
        (client.state().unwrap().setup_us > 0).then_some(())
    });
    for _ in 0..20 {
        client.pause().unwrap();
        client.pause().unwrap();
        assert_eq!(client.state().unwrap().phase, MachinePhase::Paused);
        client.resume().unwrap();
        assert_eq!(client.state().unwrap().phase, MachinePhase::Running);
    }
    client.pause().unwrap();
    client.quit().unwrap();
    assert_eq!(running.end().1.reason, ExitReason::Quit);
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn disks_are_added_until_the_bus_is_full_and_bad_ones_are_refused() {
    let mut running = Machine::bare(&Code::new().idle()).start();
    let client = running.client();
    let path = running.machine.directory.path().join("disk");
    fs::write(&path, [0; 4096]).unwrap();
    let file = fs::File::open(&path).unwrap();
    let add = |serial: &str, length| client.add_disk(serial, DiskAccess::ReadOnly, &[(file.as_fd(), length)]);
    for (serial, length, complaint) in [
        ("too-long-a-serial-for-a-disk", 4096, "20"),
        ("short", 8192, "4096"),
        ("odd", 100, "512"),
    ] {
        let Err(ControlError::Refused(message)) = add(serial, length) else {
            panic!("{serial} was taken");
        };
        assert!(message.contains(complaint), "{message}");
    }
    // Host bridge, pvpanic, console, rng and vsock are there.
    for number in 0..27 {
        add(&format!("disk-{number}"), 4096).unwrap();
    }
    for (serial, complaint) in [("disk-3", "disk-3"), ("one-more", "full")] {
        let Err(ControlError::Refused(message)) = add(serial, 4096) else {
            panic!("{serial} was taken");
        };
        assert!(message.contains(complaint), "{message}");
    }
    assert_eq!(client.state().unwrap().disks.len(), 27);
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_network_interface_that_is_none_is_refused() {
    let mut running = Machine::bare(&Code::new().idle()).start();
    let client = running.client();
    let file = fs::File::open("/dev/null").unwrap();
    let add = |mac: &str, mtu, taps: &[_]| client.add_net(mac.to_owned(), mtu, taps);
    for (outcome, complaint) in [
        (
            add("01:00:5e:00:00:01", 1500, &[file.as_fd()]),
            "01:00:5e:00:00:01",
        ),
        (add("02:00:00:00:00:01", 1500, &[]), "taps"),
        (add("02:00:00:00:00:01", 1500, &[file.as_fd()]), "tap"),
    ] {
        let Err(ControlError::Refused(message)) = outcome else {
            panic!("{complaint} was taken: {outcome:?}");
        };
        assert!(message.contains(complaint), "{message}");
    }
    assert_eq!(client.state().unwrap().nets, Vec::<String>::new());
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_guest_that_writes_anything_anywhere_on_the_bus_ends_only_itself() {
    // ECX: a xorshift generator. EDI: an address in the first six devices' configuration space, or in the BAR of device 2
    // once it was moved below 4 GiB. Word writes and reads of both.
    let shake = Code::new()
        // mov eax,ecx; shl eax,13; xor ecx,eax; mov eax,ecx; shr eax,17; xor ecx,eax; mov eax,ecx; shl eax,5; xor ecx,eax
        .raw(&[0x89, 0xc8, 0xc1, 0xe0, 13, 0x31, 0xc1])
        .raw(&[0x89, 0xc8, 0xc1, 0xe8, 17, 0x31, 0xc1])
        .raw(&[0x89, 0xc8, 0xc1, 0xe0, 5, 0x31, 0xc1]);
    // mov edi,ecx; and edi,mask; add edi,base; mov [edi],ecx; mov eax,[edi]
    let poke = |mask: u32, base: u32| {
        shake
            .clone()
            .raw(&[0x89, 0xcf, 0x81, 0xe7])
            .raw(&mask.to_le_bytes())
            .raw(&[0x81, 0xc7])
            .raw(&base.to_le_bytes())
            .raw(&[0x89, 0x0f, 0x8b, 0x07])
    };
    let place = Code::new()
        .store(0xe001_0010, 0xd000_0000)
        .store(0xe001_0014, 0)
        .store_byte(0xe001_0004, 6);
    let round = poke(0x0002_ffff, 0xe000_0000)
        .raw(&place.clone().store_byte(0xd000_0014, 0).clone_bytes())
        .raw(&poke(0x3f, 0xd000_0000).clone_bytes())
        .raw(&poke(0x7fff, 0xd000_0000).clone_bytes());
    let code = Code::new()
        .raw(&[0xb9, 0x15, 0x7c, 0x4a, 0x7f])
        .raw(&round.repeated(4_000).clone_bytes())
        .power_off();
    ends(&code, 0, ExitReason::PowerOff);
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn what_cannot_be_started_says_why_and_leaves_a_report() {
    let mut cases = Vec::new();
    let mut no_kernel = Machine::bare(&Code::new().idle());
    fs::write(
        no_kernel.directory.path().join("kernel"),
        "not a kernel\n".repeat(100),
    )
    .unwrap();
    cases.push((no_kernel, "is not a kernel that can be booted"));
    no_kernel = Machine::new(Path::new("/nowhere/vmlinux"));
    cases.push((no_kernel, "/nowhere/vmlinux cannot be opened"));
    let mut no_cpus = Machine::bare(&Code::new().idle());
    no_cpus.config["vcpus"] = json!(33);
    cases.push((no_cpus, "vcpus is 33"));
    let mut long = Machine::bare(&Code::new().idle());
    long.config["cmdline"] = json!("x".repeat(3000));
    cases.push((long, "3000 bytes"));
    for (machine, complaint) in cases {
        let mut running = machine.start();
        let (status, report) = running.end();
        assert_eq!((status, report.reason), (Some(1), ExitReason::VmmError));
        assert!(report.message.contains(complaint), "{}", report.message);
        assert!(running.errors().contains(complaint), "{}", running.errors());
    }
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_descriptor_that_the_parent_did_not_leave_is_named() {
    let mut machine = Machine::bare(&Code::new().idle());
    machine.config["initramfs"] = json!({"fd": 77});
    let mut running = machine.start();
    assert_eq!(running.wait().code(), Some(1));
    assert!(
        running.errors().contains("file descriptor 77"),
        "{}",
        running.errors()
    );
}
