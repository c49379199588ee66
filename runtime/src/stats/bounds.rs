//! What a guest says, bounded to what can be: it is not trusted, and its figures go to whoever watches the node.

use bulkhead_proto::agent::{DiskSpace, InterfaceStats, Pressure, PressureLine, limits};

use super::Figures;
use crate::sandbox::size::MachineSize;

/// Longest name of a device, in bytes: an interface has one of 15 (linux/if.h), a disk one of 31.
const NAME_BYTES: usize = 31;

/// Longest name of a resource limit, in bytes.
const LIMIT_BYTES: usize = 64;

/// A container's figures within what its machine has.
pub(super) fn figures(mut figures: Figures, machine: &MachineSize) -> Figures {
    let memory = u64::from(machine.memory_mib) << 20;
    for bytes in [
        &mut figures.memory_usage_bytes,
        &mut figures.memory_working_set_bytes,
        &mut figures.memory_rss_bytes,
        &mut figures.memory_file_bytes,
        &mut figures.memory_file_mapped_bytes,
        &mut figures.memory_kernel_bytes,
    ] {
        *bytes = memory.min(*bytes);
    }
    figures.memory_peak_bytes = figures.memory_peak_bytes.map(|bytes| bytes.min(memory));
    let scratch = machine.scratch_mib.saturating_mul(1 << 20);
    figures.writable_layer_bytes = figures.writable_layer_bytes.map(|bytes| bytes.min(scratch));
    for pressure in [
        &mut figures.cpu_pressure,
        &mut figures.memory_pressure,
        &mut figures.io_pressure,
    ] {
        *pressure = pressure.take().map(self::pressure);
    }
    figures.disks.truncate(limits::DEVICES);
    for disk in &mut figures.disks {
        disk.name = name(&disk.name, NAME_BYTES);
    }
    figures.soft_limits.truncate(limits::SOFT_LIMITS);
    figures
        .soft_limits
        .retain(|limit| !limit.name.is_empty() && limit.name.len() <= LIMIT_BYTES && limit.name.is_ascii());
    figures
}

/// Interfaces whose names are names, each once.
pub(super) fn interfaces(interfaces: Vec<InterfaceStats>) -> Vec<InterfaceStats> {
    let mut known: Vec<InterfaceStats> = Vec::new();
    for interface in interfaces.into_iter().take(limits::DEVICES) {
        let named = !interface.name.is_empty() && name(&interface.name, NAME_BYTES) == interface.name;
        if named && known.iter().all(|other| other.name != interface.name) {
            known.push(interface);
        }
    }
    known
}

/// The scratch disk, not larger than it was made.
pub(super) fn scratch(space: DiskSpace, machine: &MachineSize) -> DiskSpace {
    let total_bytes = space.total_bytes.min(machine.scratch_mib.saturating_mul(1 << 20));
    DiskSpace {
        total_bytes,
        free_bytes: space.free_bytes.min(total_bytes),
        inodes: space.inodes,
        free_inodes: space.free_inodes.min(space.inodes),
    }
}

fn pressure(pressure: Pressure) -> Pressure {
    let part = |value: f64| {
        // Also what is no number.
        if value >= 0.0 { value.min(100.0) } else { 0.0 }
    };
    let line = |line: PressureLine| PressureLine {
        total_us: line.total_us,
        avg10: part(line.avg10),
        avg60: part(line.avg60),
        avg300: part(line.avg300),
    };
    Pressure {
        some: pressure.some.map(line),
        full: pressure.full.map(line),
    }
}

/// A name of what names of devices are made of; empty otherwise.
fn name(name: &str, most: usize) -> String {
    let good = name.len() <= most && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if good { name.to_owned() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::agent::{DiskStats, SoftLimit};

    use super::*;

    const MACHINE: MachineSize = MachineSize {
        vcpus: 1,
        memory_mib: 128,
        scratch_mib: 10,
    };

    #[test]
    fn a_guest_has_no_more_than_its_machine() {
        let lie = Figures {
            memory_working_set_bytes: u64::MAX,
            memory_rss_bytes: 4096,
            memory_peak_bytes: Some(u64::MAX),
            writable_layer_bytes: Some(u64::MAX),
            cpu_pressure: Some(Pressure {
                some: Some(PressureLine {
                    total_us: 7,
                    avg10: f64::NAN,
                    avg60: -3.0,
                    avg300: f64::INFINITY,
                }),
                full: None,
            }),
            disks: vec![
                DiskStats {
                    name: "vda\n\x1b[2J".to_owned(),
                    ..DiskStats::default()
                };
                1000
            ],
            soft_limits: vec![
                SoftLimit {
                    name: "x".repeat(100),
                    value: 1,
                };
                5
            ],
            ..Figures::default()
        };
        let known = figures(lie, &MACHINE);
        assert_eq!(known.memory_working_set_bytes, 128 << 20);
        assert_eq!(known.memory_rss_bytes, 4096);
        assert_eq!(known.memory_peak_bytes, Some(128 << 20));
        assert_eq!(known.writable_layer_bytes, Some(10 << 20));
        let some = known.cpu_pressure.unwrap().some.unwrap();
        assert_eq!(
            (some.total_us, some.avg10, some.avg60, some.avg300),
            (7, 0.0, 0.0, 100.0)
        );
        assert_eq!(known.disks.len(), limits::DEVICES);
        assert_eq!(known.disks[0].name, "");
        assert!(known.soft_limits.is_empty());
    }

    #[test]
    fn interfaces_have_names_of_their_own() {
        let named = |name: &str| InterfaceStats {
            name: name.to_owned(),
            ..InterfaceStats::default()
        };
        let said = ["eth0", "eth0", "", "a b", "a/b", "e\u{202e}", "veth0@if3"]
            .map(named)
            .to_vec();
        assert_eq!(interfaces(said), [named("eth0"), named("veth0@if3")]);
    }

    #[test]
    fn a_disk_has_no_more_free_than_it_has() {
        let space = DiskSpace {
            total_bytes: u64::MAX,
            free_bytes: u64::MAX,
            inodes: 5,
            free_inodes: 6,
        };
        let known = scratch(space, &MACHINE);
        assert_eq!(
            (known.total_bytes, known.free_bytes, known.free_inodes),
            (10 << 20, 10 << 20, 5)
        );
    }
}
