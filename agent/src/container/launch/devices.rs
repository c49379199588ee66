//! The container's /dev.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
};

use rustix::{
    fs::{Dev, FileType, Mode, OFlags, makedev, mkdirat, mknodat, symlinkat},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};

use crate::{container::root_path::RootDirectory, storage::filesystem, sys::device_filter::CharacterDevice};

/// The devices of every container, by name (config-linux.md of the OCI runtime specification, "Default Devices").
const DEVICES: [(&str, u16, u16); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links of every container: name and target.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// The device could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make /dev/{name}")]
pub struct DeviceError {
    name: String,
    #[source]
    source: io::Error,
}

/// The character devices that a container may open which is not privileged: those above, and terminals.
pub fn allowed() -> Vec<CharacterDevice> {
    let terminals = [
        // /dev/pts/ptmx
        CharacterDevice {
            major: 5,
            minor: Some(2),
        },
        // /dev/pts/*
        CharacterDevice {
            major: 136,
            minor: None,
        },
    ];
    DEVICES
        .iter()
        .map(|(_, major, minor)| CharacterDevice {
            major: *major,
            minor: Some(*minor),
        })
        .chain(terminals)
        .collect()
}

/// Fills `dev`, the container's own tmpfs. A privileged container gets every device that the guest has.
pub fn fill(dev: BorrowedFd<'_>, privileged: bool) -> Result<(), DeviceError> {
    for (name, major, minor) in DEVICES {
        make(
            dev,
            name,
            FileType::CharacterDevice,
            0o666,
            makedev(major.into(), minor.into()),
        )?;
    }
    for (name, target) in LINKS {
        symlinkat(target, dev, name).map_err(failed(name))?;
    }
    if privileged {
        copy_all(dev)?;
    }
    Ok(())
}

/// Puts the terminal `name` of the container's devpts at /dev/console.
pub fn bind_console(root: &RootDirectory, name: &str) -> Result<(), DeviceError> {
    let bind = || -> io::Result<()> {
        let place = root.make_file(b"/dev/console")?;
        let terminal = root.open_without_links(format!("/dev/pts/{name}").as_bytes(), OFlags::PATH)?;
        let mount = open_tree(
            terminal,
            "",
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH,
        )?;
        filesystem::attach_to(mount, place)
    };
    bind().map_err(|source| DeviceError {
        name: "console".to_owned(),
        source,
    })
}

/// Makes every device of the guest's /dev, those in its directories included.
fn copy_all(dev: BorrowedFd<'_>) -> Result<(), DeviceError> {
    let mut directories = vec![String::new()];
    while let Some(directory) = directories.pop() {
        let list = fs::read_dir(format!("/dev/{directory}")).map_err(|source| DeviceError {
            name: directory.clone(),
            source,
        })?;
        for entry in list.flatten() {
            let (Ok(name), Ok(status)) = (entry.file_name().into_string(), entry.metadata()) else {
                continue;
            };
            let path = format!("{directory}{name}");
            // Those of the guest's own terminals, or file systems that the container has itself.
            if ["ptmx", "console", "pts", "shm", "mqueue"].contains(&path.as_str()) {
                continue;
            }
            let kind = match status.file_type() {
                kind if kind.is_char_device() => FileType::CharacterDevice,
                kind if kind.is_block_device() => FileType::BlockDevice,
                kind if kind.is_dir() => {
                    match mkdirat(dev, &path, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(failed(&path)(errno)),
                    }
                    directories.push(format!("{path}/"));
                    continue;
                }
                _ => continue,
            };
            make(dev, &path, kind, status.mode() & 0o777, status.rdev())?;
        }
    }
    Ok(())
}

fn make(dev: BorrowedFd<'_>, name: &str, kind: FileType, mode: u32, number: Dev) -> Result<(), DeviceError> {
    match mknodat(dev.as_fd(), name, kind, Mode::from_raw_mode(mode), number) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(failed(name)(errno)),
    }
}

fn failed(name: &str) -> impl FnOnce(Errno) -> DeviceError {
    move |errno| DeviceError {
        name: name.to_owned(),
        source: errno.into(),
    }
}
