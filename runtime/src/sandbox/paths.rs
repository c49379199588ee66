//! Where the files of pods are.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// Longest path of a unix socket, in bytes, without the closing zero (unix(7)).
const SOCKET_PATH_BYTES: usize = 107;

/// The directories of all pods.
#[derive(Clone, Debug)]
pub struct PodDirectories {
    root: PathBuf,
    state: PathBuf,
    namespaces: PathBuf,
}

/// The files of one pod.
#[derive(Clone, Debug)]
pub struct PodPaths {
    /// What must not be on a tmpfs: the scratch disk and the machine's logs.
    pub root: PathBuf,
    /// Sockets, and logs in progress.
    pub state: PathBuf,
    /// Its network namespace.
    pub namespace: PathBuf,
}

impl PodDirectories {
    /// Those below the daemon's two directories.
    pub fn new(root: &Path, state: &Path) -> Self {
        Self {
            root: root.join("pods"),
            state: state.join("pods"),
            namespaces: state.join("netns"),
        }
    }

    /// The directories, for making them and for finding what is left in them.
    pub fn all(&self) -> [&Path; 3] {
        [&self.root, &self.state, &self.namespaces]
    }

    /// The files of the pod with `id`.
    pub fn pod(&self, id: &str) -> PodPaths {
        PodPaths {
            root: self.root.join(id),
            state: self.state.join(id),
            namespace: self.namespaces.join(id),
        }
    }
}

impl PodPaths {
    /// The scratch disk.
    pub fn scratch(&self) -> PathBuf {
        self.root.join("scratch.img")
    }

    /// The guest's kernel log.
    pub fn console(&self) -> PathBuf {
        self.root.join("console.log")
    }

    /// What the VMM says.
    pub fn vmm_log(&self) -> PathBuf {
        self.root.join("vmm.log")
    }

    /// How the machine ended.
    pub fn exit_report(&self) -> PathBuf {
        self.root.join("exit.json")
    }

    /// The virtual socket device.
    pub fn vsock(&self) -> PathBuf {
        self.state.join("vsock")
    }

    /// The VMM's control socket.
    pub fn control(&self) -> PathBuf {
        self.state.join("control")
    }

    /// The pod's control group, for a daemon that has lost its store.
    pub fn cgroup_note(&self) -> PathBuf {
        self.state.join("cgroup")
    }

    /// How far the log of a container has been written.
    pub fn log_position(&self, container: &str) -> PathBuf {
        self.state.join(format!("{container}.log-position"))
    }
}

/// A socket's path in a form that is short enough for the kernel, valid as long as this lives.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    _directory: Option<File>,
}

impl SocketPath {
    /// For the socket at `path`, whose directory exists.
    ///
    /// # Errors
    ///
    /// When the directory cannot be opened.
    pub fn new(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= SOCKET_PATH_BYTES {
            return Ok(Self {
                path: path.to_owned(),
                _directory: None,
            });
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let directory = File::open(parent)?;
        let path = Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(name);
        Ok(Self {
            path,
            _directory: Some(directory),
        })
    }

    /// The short form.
    pub fn get(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_socket_may_be_deep_in_the_file_system() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let long = deep.join("vsock");
        let path = SocketPath::new(&long).unwrap();
        let _listener = UnixListener::bind(path.get()).unwrap();
        assert!(long.exists());
        UnixStream::connect(SocketPath::new(&long).unwrap().get()).unwrap();
    }
}
