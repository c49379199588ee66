//! mount_setattr(2).

#![allow(unsafe_code, reason = "mount_setattr(2) has no safe wrapper")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use rustix::mount::{MountAttrFlags, MountPropagationFlags};

/// A change of a mount's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountChange {
    /// Attributes set.
    pub set: MountAttrFlags,
    /// Attributes cleared before.
    pub clear: MountAttrFlags,
    /// Propagation type; empty leaves it.
    pub propagation: MountPropagationFlags,
}

impl Default for MountChange {
    fn default() -> Self {
        Self {
            set: MountAttrFlags::empty(),
            clear: MountAttrFlags::empty(),
            propagation: MountPropagationFlags::empty(),
        }
    }
}

impl MountChange {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Which mounts a change applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The mount alone.
    Mount,
    /// The mount and all below it.
    Tree,
}

/// Changes the mount whose root `mount` is.
///
/// # Errors
///
/// What mount_setattr(2) gives.
pub fn change(mount: BorrowedFd<'_>, change: &MountChange, reach: Reach) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: u64::from(change.set.bits()),
        attr_clr: u64::from(change.clear.bits()),
        propagation: u64::from(change.propagation.bits()),
        userns_fd: 0,
    };
    let flags = match reach {
        Reach::Mount => libc::AT_EMPTY_PATH,
        Reach::Tree => libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
    };
    // SAFETY: the path is an empty C string and the structure is as long as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
