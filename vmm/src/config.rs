//! What a machine is made of: the JSON document that `bulkhead-vmm` reads from its standard input before it starts.
//!
//! Every file and socket is named by a path, which is opened before the guest runs and never after, or by the number
//! of a file descriptor that the parent left open across `exec`.

use std::{collections::HashSet, fmt, os::fd::RawFd, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{memory::layout::RAM_LIMIT_MIB, virtio::net::MOST_PAIRS};

/// A whole machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Name of the machine in messages; 1 to 128 bytes.
    pub name: String,
    /// Virtual CPUs, 1 to 32.
    pub vcpus: u8,
    /// Guest memory in MiB, at least 32.
    pub memory_mib: u32,
    /// Uncompressed x86-64 ELF kernel with a PVH note.
    pub kernel: FileSource,
    /// Initial file system, an uncompressed cpio archive.
    #[serde(default)]
    pub initramfs: Option<FileSource>,
    /// Kernel command line; at most 2048 bytes.
    #[serde(default)]
    pub cmdline: String,
    /// Listening `SOCK_SEQPACKET` unix socket for control requests. A path is created and bound.
    #[serde(default)]
    pub control: Option<FileSource>,
    /// Disks there from the start, in the order in which they appear on the bus.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network interfaces.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// Virtual socket device.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// Where the guest's kernel log goes. Without it the guest has no console.
    #[serde(default)]
    pub console: Option<ConsoleConfig>,
    /// File into which an [`ExitReport`] is written, as JSON, when the machine has ended. A path is created.
    #[serde(default)]
    pub exit_report: Option<FileSource>,
}

/// A file or socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileSource {
    /// Opened (or, for a socket, bound) at the start.
    Path(PathBuf),
    /// Inherited from the parent.
    Fd(RawFd),
}

impl fmt::Display for FileSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(formatter),
            Self::Fd(number) => write!(formatter, "file descriptor {number}"),
        }
    }
}

/// A disk: one or more pieces of files, seen by the guest as one contiguous device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// What the guest reads as the disk's serial: 1 to 20 bytes of ASCII, unique in the machine.
    pub serial: String,
    /// Whether the guest may write. A writable disk has exactly one segment.
    pub access: DiskAccess,
    /// The pieces, in order. Each starts and ends on a 512-byte boundary of the disk.
    pub segments: Vec<SegmentConfig>,
}

/// What a guest may do with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskAccess {
    /// Reads only; a write fails in the guest.
    ReadOnly,
    /// Reads, writes, flushes and discards.
    ReadWrite,
}

/// A piece of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentConfig {
    /// Where its bytes are. In a control request: `Fd(n)` means the n-th descriptor sent with it.
    pub file: FileSource,
    /// Length in bytes, a multiple of 512, at most the file's. Absent: the whole file.
    #[serde(default)]
    pub length: Option<u64>,
}

/// A network interface on taps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Open taps with `IFF_NO_PI | IFF_VNET_HDR`, one for each pair of queues of the guest's interface: 1 to 8. Several of
    /// them are queues of the same host interface, with `IFF_MULTI_QUEUE`.
    pub taps: Vec<RawFd>,
    /// Hardware address, such as `02:00:00:00:00:01`.
    pub mac: String,
    /// Largest packet in bytes, without the Ethernet header.
    pub mtu: u16,
}

/// The virtual socket device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, at least 3.
    pub cid: u32,
    /// Listening `SOCK_STREAM` unix socket on the host's side. See [`crate::virtio::vsock`] for what is spoken there.
    pub socket: FileSource,
}

/// The console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// File that keeps the newest output. A path is created.
    pub file: FileSource,
    /// Bound of that file in bytes, at least 4096.
    pub max_bytes: u64,
    /// Also take what the kernel writes to port 0x3f8 before its console driver runs (`earlyprintk=serial,0x3f8`).
    #[serde(default)]
    pub early: bool,
}

/// What a configuration asks for that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine's configuration cannot be used: {field} is {value}, but must be {allowed}")]
pub struct ConfigError {
    /// Which value.
    pub field: &'static str,
    /// What it is.
    pub value: String,
    /// What it may be.
    pub allowed: String,
}

impl VmConfig {
    /// Checks all that needs no look at a file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for the first value out of its bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        require(
            (1..=128).contains(&self.name.len()),
            "name",
            &self.name,
            "1 to 128 bytes",
        )?;
        require(
            (1..=VCPUS_MAX).contains(&self.vcpus),
            "vcpus",
            self.vcpus,
            format!("1 to {VCPUS_MAX}"),
        )?;
        require(
            (MEMORY_MIN_MIB..=RAM_LIMIT_MIB).contains(&self.memory_mib),
            "memory_mib",
            self.memory_mib,
            format!("{MEMORY_MIN_MIB} to {RAM_LIMIT_MIB}"),
        )?;
        let mut serials = HashSet::new();
        for disk in &self.disks {
            disk.check()?;
            require(
                serials.insert(&disk.serial),
                "the serial of a disk",
                &disk.serial,
                "unique in the machine",
            )?;
        }
        let mut addresses = HashSet::new();
        for net in &self.nets {
            net.check()?;
            require(
                addresses.insert(net.hardware_address()?),
                "the mac of a network interface",
                &net.mac,
                "unique in the machine",
            )?;
        }
        if let Some(vsock) = &self.vsock {
            require(
                vsock.cid >= CID_MIN && vsock.cid < u32::MAX,
                "the cid of vsock",
                vsock.cid,
                format!("at least {CID_MIN} and less than {}", u32::MAX),
            )?;
        }
        Ok(())
    }
}

impl NetConfig {
    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the field.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.hardware_address()?;
        require(
            (1..=MOST_PAIRS).contains(&self.taps.len()),
            "the number of taps of a network interface",
            self.taps.len(),
            format!("1 to {MOST_PAIRS}"),
        )
    }

    /// The hardware address as bytes.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for anything but six pairs of hexadecimal digits between colons, and for a group address.
    pub fn hardware_address(&self) -> Result<[u8; 6], ConfigError> {
        let bytes: Option<Vec<u8>> = self
            .mac
            .split(':')
            .map(|part| {
                let digits = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
                digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
            })
            .collect();
        bytes
            .and_then(|bytes| <[u8; 6]>::try_from(bytes).ok())
            .filter(|[first, ..]| first & GROUP_ADDRESS == 0)
            .ok_or_else(|| ConfigError {
                field: "the mac of a network interface",
                value: self.mac.clone(),
                allowed: "the address of one station, such as 02:00:00:00:00:01".to_owned(),
            })
    }
}

/// A hardware address as [`NetConfig::mac`] has it.
pub fn hardware_address_text(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

/// The bit of the first byte by which an Ethernet address is that of a group.
const GROUP_ADDRESS: u8 = 1;

impl DiskConfig {
    /// Checks what the machine asks of a disk; its device checks serial and segments.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a writable disk of several segments.
    pub fn check(&self) -> Result<(), ConfigError> {
        require(
            self.access == DiskAccess::ReadOnly || self.segments.len() == 1,
            "the number of segments of a writable disk",
            self.segments.len(),
            "1",
        )
    }
}

/// The most vCPUs of a machine. All have APIC ids of 8 bits.
pub const VCPUS_MAX: u8 = 32;
/// The least memory of a machine, in MiB.
pub const MEMORY_MIN_MIB: u32 = 32;
/// The first context id that is a guest's (virtio 1.2, 5.10.4).
pub const CID_MIN: u32 = 3;

fn require(
    holds: bool,
    field: &'static str,
    value: impl fmt::Display,
    allowed: impl Into<String>,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError {
        field,
        value: value.to_string(),
        allowed: allowed.into(),
    })
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitReport {
    /// What ended it.
    pub reason: ExitReason,
    /// One sentence for the operator.
    pub message: String,
}

/// What ended a machine. Also the exit status of `bulkhead-vmm`, see [`ExitReason::exit_code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel panicked.
    Panic,
    /// A vCPU met a triple fault.
    TripleFault,
    /// The owner asked for it on the control socket, or with SIGTERM.
    Quit,
    /// The VMM could not go on.
    VmmError,
}

impl ExitReason {
    /// Exit status of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::PowerOff | Self::Quit => 0,
            Self::VmmError => 1,
            Self::Reset => 10,
            Self::Panic => 11,
            Self::TripleFault => 12,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<VmConfig, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn the_smallest_configuration_is_a_name_a_size_and_a_kernel() {
        let config =
            parse(r#"{"name":"m","vcpus":1,"memory_mib":128,"kernel":{"path":"/vmlinux"}}"#).unwrap();
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.kernel.to_string(), "/vmlinux");
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(
            parse(r#"{"name":"m","vcpus":1,"memory_mib":128,"kernel":{"path":"/v"},"memory":1}"#).is_err()
        );
    }

    #[test]
    fn a_hardware_address_is_six_bytes_of_one_station() {
        let parse = |mac: &str| {
            let mac = mac.to_owned();
            NetConfig {
                taps: vec![3],
                mac,
                mtu: 1500,
            }
            .hardware_address()
        };
        assert_eq!(parse("02:00:00:00:ab:CD"), Ok([2, 0, 0, 0, 0xab, 0xcd]));
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:01",
            "2:0:0:0:0:1",
            "01:00:5e:00:00:01",
            "02:00:00:00:00:+1",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn values_out_of_bounds_are_named_with_what_they_may_be() {
        let good = parse(r#"{"name":"m","vcpus":1,"memory_mib":128,"kernel":{"fd":3}}"#).unwrap();
        let disk = |access, segments| DiskConfig {
            serial: "d".to_owned(),
            access,
            segments: vec![
                SegmentConfig {
                    file: FileSource::Fd(4),
                    length: None
                };
                segments
            ],
        };
        let cases = [
            (
                VmConfig {
                    vcpus: 0,
                    ..good.clone()
                },
                "vcpus is 0, but must be 1 to 32",
            ),
            (
                VmConfig {
                    memory_mib: 16,
                    ..good.clone()
                },
                "memory_mib is 16",
            ),
            (
                VmConfig {
                    name: String::new(),
                    ..good.clone()
                },
                "name is ",
            ),
            (
                VmConfig {
                    disks: vec![disk(DiskAccess::ReadOnly, 1); 2],
                    ..good.clone()
                },
                "unique",
            ),
            (
                VmConfig {
                    disks: vec![disk(DiskAccess::ReadWrite, 2)],
                    ..good.clone()
                },
                "segments of a writable disk is 2",
            ),
        ];
        for (config, expected) in cases {
            let message = config.check().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
