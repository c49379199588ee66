//! Makes what a machine is made of, and starts its process.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, OpenOptionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    process::Child,
    time::Duration,
};

use bulkhead_vmm::config::{
    ConsoleConfig, DiskAccess, DiskConfig, FileSource, SegmentConfig, VmConfig, VsockConfig,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use super::{MachineError, SCRATCH_SERIAL};
use crate::{
    config::VmDefaults,
    sandbox::{
        paths::{PodPaths, SocketPath},
        size::MachineSize,
        spawn::{Inheritance, spawn},
    },
};

/// Context id of every guest: it is seen by that guest alone, since the device ends in its VMM.
const GUEST_CID: u32 = 3;

/// What is needed to start a machine.
#[derive(Debug)]
pub struct MachinePlan {
    /// Its name: the pod's id.
    pub name: String,
    /// Where its files are. The directories are made here; the scratch disk must be there.
    pub paths: PodPaths,
    /// Its size.
    pub size: MachineSize,
    /// Programs and files of the configuration.
    pub defaults: VmDefaults,
    /// `cgroup.procs` of its control group.
    pub cgroup: Option<File>,
    /// For each request to it or its agent.
    pub timeout: Duration,
}

/// Makes the pod's directories, which only the daemon's user can enter.
pub(in crate::sandbox) fn make_directories(paths: &PodPaths) -> Result<(), MachineError> {
    for directory in [&paths.root, &paths.state] {
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(directory)
            .map_err(|source| file_error("make the directory", directory, source))?;
    }
    Ok(())
}

/// Starts the process. Blocking.
pub(super) fn launch(plan: MachinePlan) -> Result<Child, MachineError> {
    let MachinePlan {
        name,
        paths,
        size,
        defaults,
        cgroup,
        timeout: _,
    } = plan;
    let mut handed = HandedOver::default();
    let config = VmConfig {
        name,
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        kernel: handed.over(open(
            "open the guest's kernel",
            &defaults.kernel,
            OpenOptions::new().read(true),
        )?),
        initramfs: Some(handed.over(open(
            "open the guest's initramfs",
            &defaults.initramfs,
            OpenOptions::new().read(true),
        )?)),
        cmdline: defaults.cmdline,
        control: Some(handed.over(listen_for_packets(&paths.control())?)),
        disks: vec![DiskConfig {
            serial: SCRATCH_SERIAL.to_owned(),
            access: DiskAccess::ReadWrite,
            segments: vec![SegmentConfig {
                file: handed.over(open(
                    "open the scratch disk",
                    &paths.scratch(),
                    OpenOptions::new().read(true).write(true),
                )?),
                length: None,
            }],
        }],
        // They come when it runs: CNI is run while it boots.
        nets: Vec::new(),
        vsock: Some(VsockConfig {
            cid: GUEST_CID,
            socket: handed.over(listen_for_streams(&paths.vsock())?),
        }),
        console: Some(ConsoleConfig {
            file: handed.over(new_file(&paths.console())?),
            max_bytes: defaults.console_bytes,
            early: false,
        }),
        exit_report: Some(handed.over(new_file(&paths.exit_report())?)),
    };
    let input = serde_json::to_vec(&config)
        .map_err(|error| MachineError::Process(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    let inheritance = Inheritance {
        descriptors: handed.descriptors,
        cgroup,
        log: new_file(&paths.vmm_log())?,
        input,
    };
    spawn(&defaults.vmm, inheritance).map_err(|source| file_error("start", &defaults.vmm, source))
}

/// Open files that the process inherits.
#[derive(Default)]
struct HandedOver {
    descriptors: Vec<OwnedFd>,
}

impl HandedOver {
    fn over(&mut self, file: impl Into<OwnedFd>) -> FileSource {
        let descriptor = file.into();
        let number = descriptor.as_raw_fd();
        self.descriptors.push(descriptor);
        FileSource::Fd(number)
    }
}

fn open(action: &'static str, path: &Path, options: &OpenOptions) -> Result<File, MachineError> {
    options
        .open(path)
        .map_err(|source| file_error(action, path, source))
}

fn new_file(path: &Path) -> Result<File, MachineError> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600);
    open("make", path, &options)
}

fn listen_for_streams(path: &Path) -> Result<UnixListener, MachineError> {
    let listener = SocketPath::new(path).and_then(|short| UnixListener::bind(short.get()));
    listener.map_err(|source| file_error("make the socket", path, source))
}

fn listen_for_packets(path: &Path) -> Result<OwnedFd, MachineError> {
    let listener = || -> io::Result<OwnedFd> {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        bind(&socket, &SocketAddrUnix::new(SocketPath::new(path)?.get())?)?;
        listen(&socket, 16)?;
        Ok(socket)
    };
    listener().map_err(|source| file_error("make the socket", path, source))
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> MachineError {
    MachineError::File {
        action,
        path: PathBuf::from(path),
        source,
    }
}
