//! Paths of the kernel that a container shall not read, or not write. Those that do not exist are passed over.

use std::{
    error::Error,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{CWD, FileType, OFlags, fstat},
    io::Errno,
    mount::{MountAttrFlags, OpenTreeFlags, open_tree},
};

use crate::{
    container::root_path::RootDirectory,
    storage::filesystem,
    sys::mount_attributes::{self, MountChange, Reach},
};

/// A path could not be restricted.
#[derive(Debug, thiserror::Error)]
#[error("cannot make {path} {how}")]
pub struct RestrictError {
    path: String,
    how: &'static str,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

/// Makes `path` unreadable: a file becomes /dev/null, a directory an empty one.
pub fn mask(root: &RootDirectory, path: &str) -> Result<(), RestrictError> {
    let attempt = || -> Result<(), Box<dyn Error + Send + Sync>> {
        let Some((place, kind)) = existing(root, path)? else {
            return Ok(());
        };
        let cover = if kind == FileType::Directory {
            filesystem::create(
                "tmpfs",
                &[("source", Some("tmpfs")), ("nr_inodes", Some("1"))],
                MountAttrFlags::MOUNT_ATTR_RDONLY,
            )?
        } else {
            open_tree(
                CWD,
                "/dev/null",
                OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
            )?
        };
        Ok(filesystem::attach_to(cover, place)?)
    };
    attempt().map_err(|source| RestrictError {
        path: path.to_owned(),
        how: "unreadable",
        source,
    })
}

/// Makes `path` and all below it read-only.
pub fn make_read_only(root: &RootDirectory, path: &str) -> Result<(), RestrictError> {
    let attempt = || -> io::Result<()> {
        let Some((place, _)) = existing(root, path)? else {
            return Ok(());
        };
        // A mount of its own, where it is not one already.
        let tree = open_tree(
            &place,
            "",
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH
                | OpenTreeFlags::AT_RECURSIVE,
        )?;
        let read_only = MountChange {
            set: MountAttrFlags::MOUNT_ATTR_RDONLY,
            ..MountChange::default()
        };
        mount_attributes::change(tree.as_fd(), &read_only, Reach::Tree)?;
        filesystem::attach_to(tree, place)
    };
    attempt().map_err(|source| RestrictError {
        path: path.to_owned(),
        how: "read-only",
        source: source.into(),
    })
}

fn existing(root: &RootDirectory, path: &str) -> Result<Option<(OwnedFd, FileType)>, Errno> {
    match root.open_existing(path.as_bytes(), OFlags::PATH) {
        Ok(place) => {
            let kind = FileType::from_raw_mode(fstat(&place)?.st_mode);
            Ok(Some((place, kind)))
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}
