//! What the host's system must give.

use std::{fs, path::Path};

use rustix::fs::{statfs, statvfs};

use super::Outcome;
use crate::network::{NetworkConfig, tap::TUN};

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Less room than this and even small images do not fit.
const LEAST_FREE_BYTES: u64 = 1 << 30;

pub(super) fn rights() -> Outcome {
    if rustix::process::geteuid().is_root() {
        Outcome::Good("root".to_owned())
    } else {
        Outcome::bad(
            "not root",
            "run bulkheadd and this command as root: they make namespaces and control groups",
        )
    }
}

pub(super) fn cgroups() -> Outcome {
    let remedy = "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 on /sys/fs/cgroup";
    match statfs("/sys/fs/cgroup") {
        Ok(found) if u64::try_from(found.f_type) == Ok(CGROUP2_MAGIC) => {}
        Ok(_) => return Outcome::bad("/sys/fs/cgroup is not a unified hierarchy (cgroup v2)", remedy),
        Err(error) => return Outcome::bad(format!("/sys/fs/cgroup cannot be looked at: {error}"), remedy),
    }
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|name| !controllers.split_whitespace().any(|c| c == *name))
        .collect();
    if missing.is_empty() {
        Outcome::Good(format!("unified hierarchy with {}", controllers.trim()))
    } else {
        Outcome::warning(
            format!("the hierarchy lacks {}", missing.join(", ")),
            "pods run, but their use of it is neither counted nor limited on the host",
        )
    }
}

pub(super) fn network(config: &NetworkConfig) -> Outcome {
    if !config.enabled {
        return Outcome::Good("loopback alone, since network.enabled is false".to_owned());
    }
    if !Path::new(TUN).exists() {
        return Outcome::bad(
            format!("there is no {TUN}, so machines have no network"),
            "load the module `tun`",
        );
    }
    let directory = config.conf_dir.display();
    let is_configuration = |name: &Path| {
        let extension = name.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("conflist" | "conf" | "json"))
    };
    let found = fs::read_dir(&config.conf_dir)
        .is_ok_and(|entries| entries.flatten().any(|entry| is_configuration(&entry.path())));
    if found {
        Outcome::Good(format!("taps, and CNI configurations in {directory}"))
    } else {
        Outcome::warning(
            format!("no CNI configuration is in {directory}"),
            "no pod runs before there is one; install the cluster's network add-on, or set network.enabled = false",
        )
    }
}

pub(super) fn mkfs() -> Outcome {
    let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .into_iter()
        .map(|directory| Path::new(directory).join("mkfs.ext4"))
        .find(|path| path.exists());
    match found {
        Some(path) => Outcome::Good(path.display().to_string()),
        None => Outcome::bad("there is no mkfs.ext4", "install e2fsprogs"),
    }
}

pub(super) fn storage(root: &Path, scratch_mib: u64) -> Outcome {
    // The daemon makes the directory; what counts is the file system it will be on.
    let Some(existing) = root.ancestors().find(|path| path.exists()) else {
        return Outcome::bad(
            format!("{} cannot be looked at", root.display()),
            "set `root` to another directory",
        );
    };
    let found = match statvfs(existing) {
        Ok(found) => found,
        Err(error) => {
            return Outcome::bad(
                format!(
                    "the file system of {} cannot be looked at: {error}",
                    root.display()
                ),
                "set `root` to another directory",
            );
        }
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let shown = format!("{} with {} MiB free", root.display(), free >> 20);
    if free < LEAST_FREE_BYTES {
        Outcome::warning(
            shown,
            format!("each pod may write up to {scratch_mib} MiB there, beside the images"),
        )
    } else {
        Outcome::Good(shown)
    }
}
