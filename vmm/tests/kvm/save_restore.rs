//! A machine's state goes through text into another machine of the same make, which goes on where the first stood.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use bulkhead_vmm::{
    machine::{Machine, ProcessStart, Sources, build},
    snapshot::MachineSnapshot,
};
use serde_json::{Map, Value, json};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::{
    bare::{Code, SHARED},
    linux, running,
};

/// Builds a machine within this process.
fn built(described: &running::Machine) -> Machine {
    let config = described.parsed();
    let mut sources = Sources::claim(&config).unwrap();
    sources.exit_report(&config).unwrap();
    build(config, sources, ProcessStart::now()).unwrap()
}

/// The same machine with another directory for what it makes.
fn twin(described: &running::Machine) -> running::Machine {
    let mut twin = running::Machine::new(Path::new(""));
    let own: Vec<Value> = ["control", "console", "exit_report", "vsock"]
        .iter()
        .map(|key| twin.config[*key].clone())
        .collect();
    twin.config = described.config.clone();
    for (key, value) in ["control", "console", "exit_report", "vsock"].iter().zip(own) {
        twin.config[*key] = value;
    }
    twin
}

/// Copies the contents of all memory.
fn copy_memory(from: &Machine, to: &Machine) {
    for region in from.ram().iter() {
        let mut chunk = vec![0; 1 << 20];
        let start = region.start_addr().0;
        for offset in (0..region.len()).step_by(chunk.len()) {
            let length = chunk.len().min((region.len() - offset).try_into().unwrap());
            let address = GuestAddress(start + offset);
            from.ram().read_slice(&mut chunk[..length], address).unwrap();
            to.ram().write_slice(&chunk[..length], address).unwrap();
        }
    }
}

/// Through text, as a file would have it.
fn as_text(snapshot: &MachineSnapshot) -> String {
    serde_json::to_string(snapshot).unwrap()
}

/// A snapshot without what time changes: the guest's clock and the registers that count. Model-specific registers are named
/// by their numbers.
fn without_time(text: &str) -> Value {
    let mut snapshot: Value = serde_json::from_str(text).unwrap();
    snapshot["clock"] = json!(null);
    for vcpu in snapshot["vcpus"].as_array_mut().unwrap() {
        let local_apic = vcpu["local_apic"].as_array_mut().unwrap();
        // The processor's priority follows from the task's priority and what is in service; KVM works it out anew when it
        // looks for an interrupt to deliver, and what it had before stays in the page until then.
        local_apic[0xa0..0xa4].fill(json!(0));
        // The current count of the timer.
        local_apic[0x390..0x394].fill(json!(0));
        let registers: Map<String, Value> = vcpu["msrs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| {
                let bytes: Vec<u8> = serde_json::from_value(entry.clone()).unwrap();
                let index = u32::from_le_bytes(bytes[..4].try_into().unwrap());
                let value = u64::from_le_bytes(bytes[8..].try_into().unwrap());
                (format!("{index:#x}"), json!(format!("{value:#x}")))
            })
            .filter(|(index, _)| !UNSTABLE.contains(&index.as_str()))
            .collect();
        vcpu["msrs"] = json!(registers);
    }
    snapshot
}

/// Time-stamp counter and its deadline, and the stack of SYSENTER, of which AMD's processors keep only the lower half.
const UNSTABLE: [&str; 3] = ["0x10", "0x6e0", "0x175"];

/// Fails with the places where two snapshots differ in more than time.
fn assert_same(saved: &str, restored: &str) {
    let mut differences = Vec::new();
    compare(
        "",
        &without_time(saved),
        &without_time(restored),
        &mut differences,
    );
    assert!(
        differences.is_empty(),
        "what was restored is not what was saved:\n{}",
        differences.join("\n")
    );
}

fn compare(path: &str, saved: &Value, restored: &Value, differences: &mut Vec<String>) {
    match (saved, restored) {
        (Value::Object(saved), Value::Object(restored)) if saved.keys().eq(restored.keys()) => {
            for (key, value) in saved {
                compare(&format!("{path}/{key}"), value, &restored[key], differences);
            }
        }
        (Value::Array(saved), Value::Array(restored)) if saved.len() == restored.len() => {
            for (index, (saved, restored)) in saved.iter().zip(restored).enumerate() {
                compare(&format!("{path}/{index}"), saved, restored, differences);
            }
        }
        _ if saved == restored => {}
        _ => differences.push(format!("{path}: {saved} became {restored}")),
    }
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_mins(2), "no {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn shared(machine: &Machine) -> u32 {
    machine.ram().read_obj(GuestAddress(SHARED.into())).unwrap()
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_counting_guest_counts_on_in_another_machine() {
    let described = running::Machine::bare(&Code::new().count());
    let mut first = built(&described);
    first.resume().unwrap();
    wait_for("counting", || shared(&first) > 1000);
    assert!(first.save().is_err(), "a running machine was saved");
    first.pause();
    let saved = as_text(&first.save().unwrap());
    let reached = shared(&first);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(shared(&first), reached, "a paused guest counts");

    let other = twin(&described);
    let mut second = built(&other);
    copy_memory(&first, &second);
    second.restore(&serde_json::from_str(&saved).unwrap()).unwrap();
    assert_same(&saved, &as_text(&second.save().unwrap()));
    second.resume().unwrap();
    wait_for("counting on", || shared(&second) > reached);
    assert_eq!(shared(&first), reached);

    first.resume().unwrap();
    wait_for("counting on in the first", || shared(&first) > reached);
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn linux_on_two_processors_goes_on_in_another_machine() {
    let mut described = linux::machine(
        "i=0; while true; do i=$((i + 1)); say tick $i $(dd if=/dev/hwrng bs=4 count=1 2>/dev/null | wc -c) \
         $(dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null); sleep 0.05; done",
    );
    let disk = described.directory.path().join("disk");
    fs::write(&disk, "from the disk\n".repeat(512)).unwrap();
    described.config["disks"] = json!([
        {"serial": "d", "access": "read_only", "segments": [{"file": {"path": disk}}]},
    ]);
    described.config["vcpus"] = json!(2);
    let console = |described: &running::Machine| {
        let path = described.directory.path().join("console");
        String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
    };
    let mut first = built(&described);
    first.resume().unwrap();
    wait_for("ticks", || console(&described).contains("tick 3 "));
    first.pause();
    let saved = as_text(&first.save().unwrap());

    let other = twin(&described);
    let mut second = built(&other);
    copy_memory(&first, &second);
    second.restore(&serde_json::from_str(&saved).unwrap()).unwrap();
    assert_same(&saved, &as_text(&second.save().unwrap()));
    drop(first);
    second.resume().unwrap();
    wait_for("ticks in the other machine", || {
        console(&other).matches("tick ").count() > 10
    });
    let said = console(&other);
    assert!(said.contains("from the disk"), "{said}");
    assert!(
        !said.contains("tick 1 ") && !said.contains("Linux version"),
        "it booted anew:\n{said}"
    );
    assert!(!said.contains("WARNING") && !said.contains("stall"), "{said}");
}

#[test]
#[ignore = "needs /dev/kvm: run by hack/test in the node"]
fn a_state_is_taken_only_by_a_fresh_machine_of_the_same_make() {
    let described = running::Machine::bare(&Code::new().count());
    let mut first = built(&described);
    first.resume().unwrap();
    wait_for("counting", || shared(&first) > 0);
    first.pause();
    let saved = first.save().unwrap();
    assert!(
        first.restore(&saved).is_err(),
        "a machine that has run took a state"
    );
    for (key, value) in [("vcpus", json!(2)), ("memory_mib", json!(96))] {
        let mut other = twin(&described);
        other.config[key] = value;
        assert!(built(&other).restore(&saved).is_err(), "another {key} was taken");
    }
    let mut version = saved;
    version.version += 1;
    assert!(built(&twin(&described)).restore(&version).is_err());
}
