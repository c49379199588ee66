//! Puts the mounts of a container into its root. Runs in the container's first process, in its namespaces, before the
//! root is changed: sources are named in the agent's tree, destinations in the container's.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{CWD, FileType, OFlags, fstat},
    io::Errno,
    mount::{MountAttrFlags, MountPropagationFlags, OpenTreeFlags, open_tree},
};

use super::{
    options::Bind,
    standard::{Mount, Source},
};
use crate::{
    container::root_path::RootDirectory,
    storage::filesystem::{self, FilesystemError, MountOption},
    sys::mount_attributes::{self, MountChange, Reach},
};

/// A mount is not where it should be.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {destination}")]
pub struct AttachError {
    destination: String,
    #[source]
    source: AttachCause,
}

/// Why.
#[derive(Debug, thiserror::Error)]
pub enum AttachCause {
    /// The file system.
    #[error(transparent)]
    Filesystem(#[from] FilesystemError),
    /// What is bound.
    #[error("source {path} cannot be bound")]
    Bind {
        /// Path in the guest.
        path: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// There is nothing of that name in the tree.
    #[error("there is no such path")]
    Absent(#[source] Errno),
    /// The image was not put together before.
    #[error("its image is not mounted")]
    NotMounted,
    /// Its place in the image.
    #[error("the image has no usable place for it")]
    Place(#[source] Errno),
    /// Its place in the image leads elsewhere.
    #[error("a part of that path is a symbolic link in the image, or no directory")]
    Link,
    /// The last steps.
    #[error("the kernel refused it")]
    Kernel(#[from] std::io::Error),
}

/// Mounts `mount` in `root`; `devpts` is the container's own.
pub fn attach(mount: &Mount, root: &RootDirectory, devpts: BorrowedFd<'_>) -> Result<(), AttachError> {
    attempt(mount, root, devpts).map_err(|source| AttachError {
        destination: mount.destination.clone(),
        source,
    })
}

fn attempt(mount: &Mount, root: &RootDirectory, devpts: BorrowedFd<'_>) -> Result<(), AttachCause> {
    let made;
    let tree = match &mount.source {
        Source::Devpts => devpts,
        Source::Filesystem { kind, source } => {
            made = instance(kind, source, mount)?;
            made.as_fd()
        }
        Source::Bind(path) => {
            made = clone_of(CWD, path, mount.options.bind).map_err(|source| AttachCause::Bind {
                path: path.clone(),
                source,
            })?;
            made.as_fd()
        }
        Source::Within { root, path } => {
            made = clone_within(root, path, mount.options.bind)?;
            made.as_fd()
        }
        Source::Image { .. } => return Err(AttachCause::NotMounted),
    };
    change_attributes(tree, mount)?;
    let target = place(mount, root, tree)?;
    filesystem::attach_to(tree, target)?;
    Ok(())
}

fn instance(kind: &str, source: &str, mount: &Mount) -> Result<OwnedFd, FilesystemError> {
    let mut options: Vec<MountOption<'_>> = vec![("source", Some(source))];
    options.extend(
        mount
            .options
            .data
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_deref())),
    );
    filesystem::create(kind, &options, MountAttrFlags::empty())
}

fn clone_of(directory: BorrowedFd<'_>, path: &str, bind: Option<Bind>) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if bind == Some(Bind::Tree) {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    open_tree(directory, path, flags)
}

/// A clone of what is at `path` in the tree at `root`, out of which no link leads.
fn clone_within(root: &Path, path: &str, bind: Option<Bind>) -> Result<OwnedFd, AttachCause> {
    let tree = RootDirectory::open(root)?;
    let found = open_within(&tree, path).map_err(AttachCause::Absent)?;
    clone_of(found.as_fd(), "", bind).map_err(|source| AttachCause::Bind {
        path: path.to_owned(),
        source,
    })
}

/// Opens what is at `path` in a tree, or its root.
pub fn open_within(tree: &RootDirectory, path: &str) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { "." } else { path };
    tree.open_existing(path.as_bytes(), OFlags::PATH)
}

fn change_attributes(tree: BorrowedFd<'_>, mount: &Mount) -> std::io::Result<()> {
    let options = &mount.options;
    // A clone shares mounts with its source unless it is told otherwise.
    if options.tree.propagation.is_empty() && options.mount.propagation.is_empty() {
        let private = MountChange {
            propagation: MountPropagationFlags::PRIVATE,
            ..MountChange::default()
        };
        mount_attributes::change(tree, &private, Reach::Tree)?;
    }
    if !options.tree.is_empty() {
        mount_attributes::change(tree, &options.tree, Reach::Tree)?;
    }
    if !options.mount.is_empty() {
        mount_attributes::change(tree, &options.mount, Reach::Mount)?;
    }
    Ok(())
}

/// Opens the mount point; where the image has none it is made, of the kind that the mount's root is.
fn place(mount: &Mount, root: &RootDirectory, tree: BorrowedFd<'_>) -> Result<OwnedFd, AttachCause> {
    let path = mount.destination.as_bytes();
    let is_directory =
        fstat(tree).is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Directory);
    let place = if is_directory {
        root.make_directory(path)
    } else {
        root.make_file(path)
    }
    .map_err(AttachCause::Place)?;
    if mount.follow_links {
        return Ok(place);
    }
    root.open_without_links(path, OFlags::PATH)
        .map_err(|errno| match errno {
            Errno::LOOP | Errno::NOTDIR => AttachCause::Link,
            other => AttachCause::Place(other),
        })
}
