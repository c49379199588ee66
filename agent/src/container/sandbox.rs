//! What the containers of the pod share: host name and System V IPC namespaces, /dev/shm, files of /etc, the scratch
//! disk. The network is the guest's own.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use bulkhead_proto::agent::ConfigureSandboxRequest;
use rustix::{
    fs::{Mode, OFlags, open},
    mount::{MountAttrFlags, UnmountFlags, unmount},
    system::sethostname,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{
    cgroup::{Cgroup, CgroupError},
    mount::standard::PodFiles,
    sysctl::{self, SysctlError},
};
use crate::{
    init::{clock, log, reaper::Reaper},
    storage::{
        filesystem::{self, FilesystemError},
        scratch::{Scratch, ScratchError},
    },
    sys::namespaces,
};

/// The pod's /dev/shm.
pub const SHM: &str = "/run/pod/shm";

/// The pod's files of /etc, on a file system of their own: containers may write them, and so fill it.
const ETC: &str = "/run/pod/etc";

/// What those files may come to.
const ETC_SIZE: &str = "4m";

/// Bytes of /dev/shm where none are asked for.
const SHM_BYTES: u64 = 64 * 1024 * 1024;

/// Longest host name, in bytes (uname(2)).
const HOSTNAME_BYTES: usize = 64;

/// The pod cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// It is too long for Linux.
    #[error("host name {0:?} is longer than {HOSTNAME_BYTES} bytes")]
    LongHostname(String),
    /// A kernel setting.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The scratch disk.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The control group.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A file system of the pod.
    #[error("cannot mount {0}")]
    Mount(&'static str, #[source] FilesystemError),
    /// A step of its own.
    #[error("cannot {what}")]
    Step {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The prepared pod. Its end unmounts what it mounted.
#[derive(Debug)]
pub struct Sandbox {
    uts: OwnedFd,
    ipc: OwnedFd,
    files: PodFiles,
    _mounts: Vec<Mounted>,
    _scratch: Scratch,
}

/// A mount of the pod's.
#[derive(Debug)]
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            log::error!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

impl Sandbox {
    /// Prepares the pod. Where it fails nothing of it stays.
    pub async fn configure(request: &ConfigureSandboxRequest, reaper: &Reaper) -> Result<Self, SandboxError> {
        if request.hostname.len() > HOSTNAME_BYTES {
            return Err(SandboxError::LongHostname(request.hostname.clone()));
        }
        for name in request.sysctls.keys() {
            sysctl::path_of(name)?;
        }
        clock::set_realtime_ns(request.realtime_ns).map_err(step("set the clock"))?;
        Cgroup::prepare_pod()?;
        let scratch = Scratch::mount(&request.scratch_disk, reaper).await?;

        let shm_bytes = match request.shm_size {
            0 => SHM_BYTES,
            bytes => bytes,
        };
        let shm = tmpfs(SHM, &shm_bytes.to_string(), "1777")?;
        let etc = tmpfs(ETC, ETC_SIZE, "755")?;
        let files = write_files(request).map_err(step("write the pod's files of /etc"))?;
        let (uts, ipc) = namespaces_of_pod(request)?;
        for (name, value) in request
            .sysctls
            .iter()
            .filter(|(name, _)| !sysctl::is_of_pod(name))
        {
            sysctl::set(name, value)?;
        }
        Ok(Self {
            uts,
            ipc,
            files,
            _mounts: vec![shm, etc],
            _scratch: scratch,
        })
    }

    /// The host name namespace.
    pub fn uts(&self) -> BorrowedFd<'_> {
        self.uts.as_fd()
    }

    /// The System V IPC namespace.
    pub fn ipc(&self) -> BorrowedFd<'_> {
        self.ipc.as_fd()
    }

    /// The files of /etc.
    pub fn files(&self) -> &PodFiles {
        &self.files
    }
}

fn step(what: &'static str) -> impl FnOnce(io::Error) -> SandboxError {
    move |source| SandboxError::Step { what, source }
}

fn tmpfs(path: &'static str, size: &str, mode: &str) -> Result<Mounted, SandboxError> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let options = [
        ("source", Some("tmpfs")),
        ("size", Some(size)),
        ("mode", Some(mode)),
    ];
    let mount = filesystem::create("tmpfs", &options, attributes)
        .map_err(|source| SandboxError::Mount(path, source))?;
    fs::create_dir_all(path)
        .and_then(|()| filesystem::attach(&mount, path))
        .map_err(step("place the pod's file systems"))?;
    Ok(Mounted(path.into()))
}

fn write_files(request: &ConfigureSandboxRequest) -> io::Result<PodFiles> {
    let mut pod = PodFiles::default();
    for (contents, name, destination) in [
        (&request.resolv_conf, "resolv.conf", "/etc/resolv.conf"),
        (&request.hosts, "hosts", "/etc/hosts"),
        (&request.etc_hostname, "hostname", "/etc/hostname"),
    ] {
        if let Some(contents) = contents {
            let path = Path::new(ETC).join(name);
            fs::write(&path, contents)?;
            pod.files.push((path.to_string_lossy().into_owned(), destination));
        }
    }
    Ok(pod)
}

/// Makes the pod's two namespaces: the agent steps into new ones, sets them up, keeps hold of them and steps back. It
/// has one thread and awaits nothing here, so nothing else of it runs meanwhile.
fn namespaces_of_pod(request: &ConfigureSandboxRequest) -> Result<(OwnedFd, OwnedFd), SandboxError> {
    let own = (
        namespace("uts").map_err(step("open the agent's namespaces"))?,
        namespace("ipc").map_err(step("open the agent's namespaces"))?,
    );
    namespaces::unshare_uts_and_ipc().map_err(step("make the pod's namespaces"))?;
    let result = set_up_namespaces(request);
    for (fd, kind) in [
        (&own.0, LinkNameSpaceType::HostNameAndNISDomainName),
        (&own.1, LinkNameSpaceType::InterProcessCommunication),
    ] {
        move_into_link_name_space(fd.as_fd(), Some(kind))
            .map_err(io::Error::from)
            .map_err(step("return to the agent's namespaces"))?;
    }
    result
}

fn set_up_namespaces(request: &ConfigureSandboxRequest) -> Result<(OwnedFd, OwnedFd), SandboxError> {
    if !request.hostname.is_empty() {
        sethostname(request.hostname.as_bytes())
            .map_err(io::Error::from)
            .map_err(step("set the host name"))?;
    }
    for (name, value) in request.sysctls.iter().filter(|(name, _)| sysctl::is_of_pod(name)) {
        sysctl::set(name, value)?;
    }
    Ok((
        namespace("uts").map_err(step("keep the pod's namespaces"))?,
        namespace("ipc").map_err(step("keep the pod's namespaces"))?,
    ))
}

fn namespace(kind: &str) -> io::Result<OwnedFd> {
    Ok(open(
        format!("/proc/self/ns/{kind}"),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}
