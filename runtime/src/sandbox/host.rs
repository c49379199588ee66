//! What the host's kernel gives to a pod beside its machine: a network namespace and a control group.
//!
//! Behind a trait, so that what is built on it can be tested without the rights of root.

use std::{
    fmt::Debug,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::cgroup;
use crate::network::namespace;

/// The host's kernel.
pub trait Host: Debug + Send + Sync + 'static {
    /// Makes a network namespace with loopback up and keeps it at `path`. Blocking.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn create_network_namespace(&self, path: &Path) -> io::Result<()>;

    /// Lets the namespace at `path` go. One that is not there is not an error. Blocking.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn remove_network_namespace(&self, path: &Path) -> io::Result<()>;

    /// Makes the control group `path` (from the hierarchy's root) and opens its `cgroup.procs`. Blocking.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn create_cgroup(&self, path: &str) -> io::Result<Option<File>>;

    /// Kills every process in the control group and removes it. One that is not there is not an error. Blocking.
    ///
    /// # Errors
    ///
    /// What the kernel says, or that its processes do not end.
    fn remove_cgroup(&self, path: &str) -> io::Result<()>;

    /// The contents of a file of the control group, such as `cpu.stat`. Blocking, shortly.
    ///
    /// # Errors
    ///
    /// What the kernel says; `NotFound` also where the file's controller does not count the group.
    fn read_cgroup(&self, path: &str, file: &str) -> io::Result<String>;
}

/// Linux with a unified control group hierarchy.
#[derive(Debug)]
pub struct Linux {
    cgroup_root: PathBuf,
}

impl Default for Linux {
    fn default() -> Self {
        Self {
            cgroup_root: "/sys/fs/cgroup".into(),
        }
    }
}

impl Host for Linux {
    fn create_network_namespace(&self, path: &Path) -> io::Result<()> {
        namespace::create(path)
    }

    fn remove_network_namespace(&self, path: &Path) -> io::Result<()> {
        namespace::remove(path)
    }

    fn create_cgroup(&self, path: &str) -> io::Result<Option<File>> {
        cgroup::create(&self.cgroup_root, path).map(Some)
    }

    fn remove_cgroup(&self, path: &str) -> io::Result<()> {
        cgroup::remove(&self.cgroup_root, path)
    }

    fn read_cgroup(&self, path: &str, file: &str) -> io::Result<String> {
        std::fs::read_to_string(self.cgroup_root.join(path.trim_start_matches('/')).join(file))
    }
}
