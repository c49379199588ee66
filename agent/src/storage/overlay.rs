//! Overlays: image layers and a writable layer, which are a container's root, and image layers alone, which are what else of
//! an image a container sees.

use std::{
    fmt::Write as _,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    mount::{MountAttrFlags, MountFlags, UnmountFlags, mount, unmount},
    process::{chdir, fchdir},
};

use super::{
    filesystem::{self, FilesystemError, MountOption},
    layers::{LAYERS, Layer},
    scratch::WritableLayer,
};
use crate::init::log;

/// Options beside the directories: no feature that would write names or numbers of this mount into an upper layer.
const OPTIONS: [MountOption<'_>; 3] = [
    ("index", Some("off")),
    ("metacopy", Some("off")),
    ("xino", Some("off")),
];

/// With a writable layer: no syncing of what does not outlive the machine.
const VOLATILE: MountOption<'_> = ("volatile", None);

/// The root cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The kernel does not take the overlay.
    #[error("cannot put {layers} layers of an image together")]
    Mount {
        /// How many are read-only.
        layers: usize,
        /// Why.
        #[source]
        source: FilesystemError,
    },
    /// An older kernel takes only so many.
    #[error(
        "{layers} layers are more than this kernel's overlay takes in one page of options; use a kernel from 6.8 on"
    )]
    TooMany {
        /// How many are read-only.
        layers: usize,
    },
    /// There is no place for it.
    #[error("cannot mount an image's file system on {}", path.display())]
    Place {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A mounted overlay, unmounted at its end.
#[derive(Debug)]
pub struct Overlay {
    path: PathBuf,
    unmounted: bool,
    /// In use as long as the overlay is; lowest first.
    _layers: Vec<Layer>,
}

impl Overlay {
    /// Mounts `layers`, lowest first, under `writable` at the directory `path`; without it, read-only and at least two of them.
    pub fn mount(
        layers: Vec<Layer>,
        writable: Option<&WritableLayer>,
        path: &Path,
    ) -> Result<Self, OverlayError> {
        match mount_appending(&layers, writable) {
            Ok(overlay) => {
                filesystem::attach(&overlay, &path.to_string_lossy()).map_err(|source| OverlayError::Place {
                    path: path.to_owned(),
                    source,
                })
            }
            // A kernel that does not know how to append a layer.
            Err(error) if error.errno() == Some(Errno::INVAL) => {
                mount_in_one_page(&layers, writable, path, error)
            }
            Err(source) => Err(OverlayError::Mount {
                layers: layers.len(),
                source,
            }),
        }?;
        Ok(Self {
            path: path.to_owned(),
            unmounted: false,
            _layers: layers,
        })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets go of the layers of one that was unmounted by somebody else.
    pub fn forget(mut self) {
        self.unmounted = true;
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if self.unmounted {
            return;
        }
        if let Err(error) = unmount(&self.path, UnmountFlags::DETACH) {
            log::error!("cannot unmount {}: {error}", self.path.display());
        }
    }
}

/// One option for each layer (Linux 6.8).
fn mount_appending(layers: &[Layer], writable: Option<&WritableLayer>) -> Result<OwnedFd, FilesystemError> {
    // The uppermost comes first.
    let lower: Vec<String> = layers
        .iter()
        .rev()
        .map(|layer| layer.path().to_string_lossy().into_owned())
        .collect();
    let upper = writable
        .map(|writable| [writable.upper(), writable.work()].map(|path| path.to_string_lossy().into_owned()));
    let mut options: Vec<MountOption<'_>> = vec![("source", Some("overlay"))];
    options.extend(lower.iter().map(|path| ("lowerdir+", Some(path.as_str()))));
    if let Some([upper, work]) = &upper {
        options.extend([
            ("upperdir", Some(upper.as_str())),
            ("workdir", Some(work.as_str())),
            VOLATILE,
        ]);
    }
    options.extend(OPTIONS);
    filesystem::create("overlay", &options, MountAttrFlags::empty())
}

/// All layers in one option of mount(2), by names relative to their directory.
fn mount_in_one_page(
    layers: &[Layer],
    writable: Option<&WritableLayer>,
    path: &Path,
    first_error: FilesystemError,
) -> Result<(), OverlayError> {
    let data = one_page(layers.iter().rev().map(Layer::name), writable)
        .ok_or(OverlayError::TooMany { layers: layers.len() })?;
    let attempt = || -> Result<(), Errno> {
        let here = openat(CWD, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        chdir(LAYERS)?;
        let result = mount("overlay", path, "overlay", MountFlags::empty(), data.as_c_str());
        fchdir(here)?;
        result
    };
    match attempt() {
        Ok(()) => Ok(()),
        // The new interface's error says more.
        Err(Errno::INVAL) => Err(OverlayError::Mount {
            layers: layers.len(),
            source: first_error,
        }),
        Err(errno) => Err(OverlayError::Place {
            path: path.to_owned(),
            source: errno.into(),
        }),
    }
}

fn one_page(
    lower: impl Iterator<Item = String>,
    writable: Option<&WritableLayer>,
) -> Option<std::ffi::CString> {
    /// What mount(2) reads of its options.
    const PAGE_BYTES: usize = 4096;
    let mut data = format!("lowerdir={}", lower.collect::<Vec<_>>().join(":"));
    let mut options = OPTIONS.to_vec();
    if let Some(writable) = writable {
        let (upper, work) = (writable.upper(), writable.work());
        let _ = write!(data, ",upperdir={},workdir={}", upper.display(), work.display());
        options.push(VOLATILE);
    }
    for (key, value) in options {
        data.push(',');
        data.push_str(key);
        if let Some(value) = value {
            data.push('=');
            data.push_str(value);
        }
    }
    if data.len() >= PAGE_BYTES {
        return None;
    }
    std::ffi::CString::new(data).ok()
}
