//! Kernel settings by their dotted names.

use std::{fs::File, io, io::Write, os::fd::AsFd};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};

/// A setting could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// It is no name.
    #[error("{0:?} is not the name of a kernel setting, such as net.core.somaxconn")]
    BadName(String),
    /// The kernel has none of that name.
    #[error("the guest's kernel has no setting {0}")]
    Unknown(String),
    /// It was not taken.
    #[error("the guest's kernel refuses to set {name} to {value:?}")]
    Refused {
        /// Which.
        name: String,
        /// To what.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Whether the setting belongs to one of the pod's own namespaces: System V IPC, POSIX message queues (which are of the
/// same namespace) and host name. All others are the guest's.
pub fn is_of_pod(name: &str) -> bool {
    let name = name.replace('/', ".");
    name.starts_with("kernel.shm")
        || name.starts_with("kernel.msg")
        || name == "kernel.sem"
        || name.starts_with("kernel.sem_")
        || name.starts_with("fs.mqueue.")
        || name == "kernel.hostname"
        || name == "kernel.domainname"
}

/// The path of a setting below /proc/sys. As in sysctl(8), the first separator says which of `.` and `/` separates; the
/// other is a character of a name, as in `net/ipv4/conf/eth0.1/forwarding`.
pub fn path_of(name: &str) -> Result<String, SysctlError> {
    let path = match name.find(['.', '/']) {
        Some(at) if name.get(at..).is_some_and(|rest| rest.starts_with('.')) => name
            .chars()
            .map(|character| match character {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    };
    let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('\0');
    if path.split('/').count() < 2 || path.split('/').any(bad) {
        return Err(SysctlError::BadName(name.to_owned()));
    }
    Ok(path)
}

/// Sets it in the namespaces of the calling process.
pub fn set(name: &str, value: &str) -> Result<(), SysctlError> {
    let path = path_of(name)?;
    let open = || {
        let settings = openat(
            CWD,
            "/proc/sys",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        openat2(
            settings.as_fd(),
            path.as_str(),
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
    };
    match open() {
        Ok(file) => File::from(file)
            .write_all(value.as_bytes())
            .map_err(|source| SysctlError::Refused {
                name: name.to_owned(),
                value: value.to_owned(),
                source,
            }),
        Err(Errno::NOENT) => Err(SysctlError::Unknown(name.to_owned())),
        Err(errno) => Err(SysctlError::Refused {
            name: name.to_owned(),
            value: value.to_owned(),
            source: errno.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_writing_a_name_lead_to_its_path() {
        assert_eq!(path_of("net.core.somaxconn").unwrap(), "net/core/somaxconn");
        assert_eq!(path_of("net/core/somaxconn").unwrap(), "net/core/somaxconn");
        assert_eq!(
            path_of("net/ipv4/conf/eth0.1/forwarding").unwrap(),
            "net/ipv4/conf/eth0.1/forwarding"
        );
        assert_eq!(
            path_of("net.ipv4.conf.eth0/1.forwarding").unwrap(),
            "net/ipv4/conf/eth0.1/forwarding"
        );
    }

    #[test]
    fn names_that_would_leave_the_settings_are_refused() {
        for bad in [
            "",
            "kernel",
            "../kernel/panic",
            "net/../../etc/passwd",
            "net..core",
            "/etc/passwd",
            ".kernel.panic",
            "kernel.panic\0",
            "net/./core",
        ] {
            assert!(matches!(path_of(bad), Err(SysctlError::BadName(_))), "{bad:?}");
        }
    }

    #[test]
    fn settings_of_the_pods_namespaces_are_known() {
        for name in [
            "kernel.shm_rmid_forced",
            "kernel.msgmax",
            "kernel.sem",
            "fs.mqueue.msg_max",
            "kernel/shmall",
        ] {
            assert!(is_of_pod(name), "{name}");
        }
        for name in [
            "kernel.panic",
            "net.core.somaxconn",
            "fs.file-max",
            "kernel.seccomp.actions_logged",
        ] {
            assert!(!is_of_pod(name), "{name}");
        }
    }
}
