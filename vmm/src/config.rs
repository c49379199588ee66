//! What a machine is made of: the JSON document that `bulkhead-vmm` reads from its standard input before it starts.
//!
//! Every file and socket is named by a path, which is opened before the guest runs and never after, or by the number
//! of a file descriptor that the parent left open across `exec`.

use std::{os::fd::RawFd, path::PathBuf};

use serde::{Deserialize, Serialize};

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

/// A network interface on a tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Open tap with `IFF_NO_PI | IFF_VNET_HDR`.
    pub tap: RawFd,
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
