//! Every file and socket of a machine, opened before the guest starts. Nothing is opened after.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{fs::OpenOptionsExt, net::UnixListener},
    },
    path::Path,
};

use rustix::{
    fs::{SeekFrom, seek},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};

use super::{MachineError, inherited::Inherited};
use crate::{
    boot::kernel::NamedFile,
    config::{DiskAccess, DiskConfig, FileSource, VmConfig},
    virtio::block::{Block, Segment},
};

/// Connections that may wait on the control socket to be accepted.
const BACKLOG: i32 = 16;

/// What goes into the guest's memory before it starts.
#[derive(Debug)]
pub(super) struct BootFiles {
    pub(super) kernel: NamedFile,
    pub(super) initramfs: Option<NamedFile>,
}

/// What a machine works on while it runs, each list in the order of the configuration.
#[derive(Debug)]
pub(super) struct DeviceFiles {
    pub(super) disks: Vec<OpenDisk>,
    pub(super) taps: Vec<Vec<OwnedFd>>,
    pub(super) vsock: Option<UnixListener>,
    pub(super) console: Option<File>,
    /// Listening.
    pub(super) control: Option<OwnedFd>,
}

/// A disk with its files.
#[derive(Debug)]
pub(super) struct OpenDisk {
    /// What the guest reads as its serial.
    pub(super) serial: String,
    /// The device.
    pub(super) block: Block,
}

/// The sources of a configuration, of which nothing has been opened yet.
#[derive(Debug)]
pub struct Sources {
    inherited: Inherited,
}

impl Sources {
    /// Takes over every descriptor that `config` names. To be called before anything has been opened.
    ///
    /// # Errors
    ///
    /// [`MachineError::Inherited`] for a number that is not open or named twice.
    pub fn claim(config: &VmConfig) -> Result<Self, MachineError> {
        let segments = config.disks.iter().flat_map(|disk| &disk.segments);
        let sources = [
            Some(&config.kernel),
            config.initramfs.as_ref(),
            config.control.as_ref(),
            config.vsock.as_ref().map(|vsock| &vsock.socket),
            config.console.as_ref().map(|console| &console.file),
            config.exit_report.as_ref(),
        ]
        .into_iter()
        .flatten()
        .chain(segments.map(|segment| &segment.file));
        let numbers: Vec<RawFd> = sources
            .filter_map(|source| match source {
                FileSource::Fd(number) => Some(*number),
                FileSource::Path(_) => None,
            })
            .chain(config.nets.iter().flat_map(|net| net.taps.iter().copied()))
            .collect();
        Ok(Self {
            inherited: Inherited::claim(numbers)?,
        })
    }

    /// Opens the file for the report of the machine's end. Comes first: what fails later is reported there too.
    ///
    /// # Errors
    ///
    /// [`MachineError::File`].
    pub fn exit_report(&mut self, config: &VmConfig) -> Result<Option<File>, MachineError> {
        config
            .exit_report
            .as_ref()
            .map(|source| self.created(source, "exit report"))
            .transpose()
    }

    /// Opens kernel and initramfs.
    pub(super) fn boot_files(&mut self, config: &VmConfig) -> Result<BootFiles, MachineError> {
        Ok(BootFiles {
            kernel: self.named(&config.kernel, "kernel")?,
            initramfs: config
                .initramfs
                .as_ref()
                .map(|source| self.named(source, "initramfs"))
                .transpose()?,
        })
    }

    /// Opens all else.
    pub(super) fn device_files(mut self, config: &VmConfig) -> Result<DeviceFiles, MachineError> {
        Ok(DeviceFiles {
            disks: config
                .disks
                .iter()
                .map(|disk| open_disk(disk, |source| self.readable(source, disk.access, "disk")))
                .collect::<Result<_, _>>()?,
            taps: config
                .nets
                .iter()
                .map(|net| net.taps.iter().map(|tap| self.inherited.take(*tap)).collect())
                .collect::<Result<_, _>>()?,
            vsock: config
                .vsock
                .as_ref()
                .map(|vsock| self.stream_listener(&vsock.socket))
                .transpose()?,
            console: config
                .console
                .as_ref()
                .map(|console| self.created(&console.file, "console"))
                .transpose()?,
            control: config
                .control
                .as_ref()
                .map(|source| self.control_listener(source))
                .transpose()?,
        })
    }

    fn named(&mut self, source: &FileSource, what: &'static str) -> Result<NamedFile, MachineError> {
        let file = self.readable(source, DiskAccess::ReadOnly, what)?;
        let name = match source {
            FileSource::Path(_) => source.to_string(),
            FileSource::Fd(_) => path_of(&file).unwrap_or_else(|| source.to_string()),
        };
        Ok(NamedFile { file, name })
    }

    fn readable(
        &mut self,
        source: &FileSource,
        access: DiskAccess,
        what: &'static str,
    ) -> Result<File, MachineError> {
        match source {
            FileSource::Fd(number) => Ok(self.inherited.take(*number)?.into()),
            FileSource::Path(path) => OpenOptions::new()
                .read(true)
                .write(access == DiskAccess::ReadWrite)
                .open(path)
                .map_err(|source| file_error(what, path, source)),
        }
    }

    /// A file that is made if it is not there, readable by its owner only: guests may write secrets to their consoles.
    fn created(&mut self, source: &FileSource, what: &'static str) -> Result<File, MachineError> {
        match source {
            FileSource::Fd(number) => Ok(self.inherited.take(*number)?.into()),
            FileSource::Path(path) => OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(path)
                .map_err(|source| file_error(what, path, source)),
        }
    }

    fn stream_listener(&mut self, source: &FileSource) -> Result<UnixListener, MachineError> {
        match source {
            FileSource::Fd(number) => Ok(self.inherited.take(*number)?.into()),
            FileSource::Path(path) => {
                UnixListener::bind(path).map_err(|source| file_error("vsock socket", path, source))
            }
        }
    }

    fn control_listener(&mut self, source: &FileSource) -> Result<OwnedFd, MachineError> {
        match source {
            FileSource::Fd(number) => self.inherited.take(*number),
            FileSource::Path(path) => {
                listen_for_packets(path).map_err(|source| file_error("control socket", path, source))
            }
        }
    }
}

/// Builds a disk from the files that `open` gives for its segments.
///
/// # Errors
///
/// Those of `open`, and [`MachineError::Disk`].
pub(super) fn open_disk(
    disk: &DiskConfig,
    mut open: impl FnMut(&FileSource) -> Result<File, MachineError>,
) -> Result<OpenDisk, MachineError> {
    let mut segments = Vec::with_capacity(disk.segments.len());
    for segment in &disk.segments {
        let file = open(&segment.file)?;
        let length = match segment.length {
            Some(length) => length,
            None => whole(&file).map_err(|source| MachineError::File {
                what: "disk",
                name: segment.file.to_string(),
                source,
            })?,
        };
        segments.push(Segment { file, length });
    }
    Ok(OpenDisk {
        serial: disk.serial.clone(),
        block: Block::new(&disk.serial, disk.access, segments)?,
    })
}

/// Length of a file or block device, in whole sectors.
fn whole(file: &File) -> io::Result<u64> {
    let bytes = seek(file, SeekFrom::End(0))?;
    Ok(bytes / 512 * 512)
}

/// The path under which an inherited file was opened, for messages: a number would tell the operator nothing.
fn path_of(file: &File) -> Option<String> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    Some(path.display().to_string())
}

fn listen_for_packets(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn file_error(what: &'static str, path: &Path, source: io::Error) -> MachineError {
    MachineError::File {
        what,
        name: path.display().to_string(),
        source,
    }
}
