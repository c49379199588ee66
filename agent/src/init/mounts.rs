//! The file systems that the agent itself needs.
//!
//! The kernel leaves process 1 on the initial ramfs. That is the root of the mount namespace, and pivot_root(2) refuses
//! to replace such a root, so the agent first moves itself onto a bind mount of it; containers can then pivot.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, StatxAttributes, StatxFlags, statfs, statx},
    io::Errno,
    mount::{MountFlags, mount, mount_bind, mount_move},
    process::{Resource, Rlimit, chdir, chroot, setrlimit},
};

use super::log;

/// Where the cgroup2 file system is.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// Soft and hard limit of descriptors: the kernel's own ceiling (fs.nr_open).
const DESCRIPTORS: u64 = 1024 * 1024;

/// The kernel's numbers of ramfs and tmpfs, either of which the initial root may be (statfs(2)).
const RAMFS_MAGIC: i64 = 0x8584_58f6;
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// What could not be prepared; without it no container can run.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {what} on {target}")]
pub struct MountError {
    what: &'static str,
    target: &'static str,
    #[source]
    source: io::Error,
}

/// Mounts everything and raises the agent's own limits. What is mounted already is left as it is.
pub fn prepare() -> Result<(), MountError> {
    leave_initial_root().map_err(|source| MountError {
        what: "the root file system",
        target: "/",
        source,
    })?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_unless_there("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755")?;
    log::open();
    mount_unless_there("proc", "/proc", plain, c"")?;
    mount_unless_there("sysfs", "/sys", plain, c"")?;
    mount_unless_there("cgroup2", CGROUPS, plain, c"")?;
    mount_unless_there(
        "tmpfs",
        "/run",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=0755",
    )?;
    enable_controllers(Path::new(CGROUPS));
    raise_limits();
    Ok(())
}

/// Lets the children of control group `group` have limits of every kind that the kernel offers.
///
/// One controller at a time, since one that is refused would take the others with it.
pub fn enable_controllers(group: &Path) {
    let Ok(available) = fs::read_to_string(group.join("cgroup.controllers")) else {
        return;
    };
    for controller in available.split_whitespace() {
        if let Err(error) = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}")) {
            log::warning!(
                "cannot enable the {controller} controller in {}: {error}",
                group.display()
            );
        }
    }
}

fn leave_initial_root() -> io::Result<()> {
    let kind = statfs("/")?.f_type;
    if kind != RAMFS_MAGIC && kind != TMPFS_MAGIC {
        return Ok(());
    }
    make_directory("/run")?;
    mount_bind("/", "/run")?;
    chdir("/run")?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

fn mount_unless_there(
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: &'static std::ffi::CStr,
) -> Result<(), MountError> {
    let attempt = || {
        make_directory(target)?;
        if is_mount_point(target)? {
            return Ok(());
        }
        mount(kind, target, kind, flags, data)?;
        Ok(())
    };
    attempt().map_err(|source| MountError {
        what: kind,
        target,
        source,
    })
}

fn make_directory(path: &str) -> io::Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_mount_point(path: &str) -> io::Result<bool> {
    let status = statx(CWD, path, AtFlags::empty(), StatxFlags::TYPE)?;
    Ok(status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn raise_limits() {
    let limit = Rlimit {
        current: Some(DESCRIPTORS),
        maximum: Some(DESCRIPTORS),
    };
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warning!("cannot raise the limit of descriptors to {DESCRIPTORS}: {error}");
    }
    // The last process that the kernel may pick when memory is short: without it the pod is gone.
    let spare = fs::File::options()
        .write(true)
        .open("/proc/self/oom_score_adj")
        .and_then(|mut file| file.write_all(b"-1000"));
    if let Err(error) = spare {
        log::warning!("cannot spare the agent from the kernel's OOM killer: {error}");
    }
}
