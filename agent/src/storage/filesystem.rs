//! Makes mounts with fsopen(2) and its kin: a mount is a descriptor first and gets its place afterwards, and where it
//! cannot be made the kernel's own words say why.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::CWD,
    io::{Errno, read},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, move_mount,
    },
};

/// A file system could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {what}{}", reason(.kernel))]
pub struct FilesystemError {
    /// What it was to be.
    what: String,
    /// What the kernel said about it.
    kernel: String,
    #[source]
    source: io::Error,
}

fn reason(kernel: &str) -> String {
    if kernel.is_empty() {
        String::new()
    } else {
        format!(" ({kernel})")
    }
}

impl FilesystemError {
    /// The error number.
    pub fn errno(&self) -> Option<Errno> {
        Errno::from_io_error(&self.source)
    }
}

/// An option: a flag where there is no value.
pub type MountOption<'a> = (&'a str, Option<&'a str>);

/// A new instance of file system `kind`, mounted nowhere yet.
pub fn create(
    kind: &str,
    options: &[MountOption<'_>],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, FilesystemError> {
    let what = || match options.iter().find(|(key, _)| *key == "source") {
        Some((_, Some(source))) => format!("{kind} of {source}"),
        _ => kind.to_owned(),
    };
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| FilesystemError {
        what: what(),
        kernel: match errno {
            Errno::NODEV => format!("the kernel has no file system {kind}"),
            _ => String::new(),
        },
        source: errno.into(),
    })?;
    let configure = || {
        for (key, value) in options {
            match value {
                Some(value) => fsconfig_set_string(&context, *key, *value),
                None => fsconfig_set_flag(&context, *key),
            }?;
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    configure().map_err(|errno| FilesystemError {
        what: what(),
        kernel: kernel_words(&context),
        source: errno.into(),
    })
}

/// Puts a mount at `path` of the agent's own tree.
pub fn attach(mount: impl AsFd, path: &str) -> io::Result<()> {
    move_mount(
        mount.as_fd(),
        "",
        CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Puts a mount upon the file or directory `target`.
pub fn attach_to(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    move_mount(
        mount.as_fd(),
        "",
        target.as_fd(),
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )?;
    Ok(())
}

/// The messages that the kernel queued on a file system context, each behind a letter for its weight.
fn kernel_words(context: impl AsFd) -> String {
    let mut words = Vec::new();
    let mut message = [0; 512];
    // Bounded although the kernel keeps no more than eight.
    for _ in 0..16 {
        match read(&context, &mut message) {
            Ok(length @ 1..) => {
                let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
                let text = text.trim();
                words.push(text.get(2..).unwrap_or(text).to_owned());
            }
            _ => break,
        }
    }
    words.join("; ")
}
