//! Control groups (v2): `/sys/fs/cgroup/pod/<container>`, and below it one for each exec, so that an exec and all it
//! started can be killed at once while its memory and time count for the container.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        CWD, Mode, OFlags, inotify,
        inotify::{CreateFlags, WatchFlags},
        openat,
    },
    io::Errno,
};

use crate::{
    error_text::with_causes,
    init::{
        log,
        mounts::{CGROUPS, enable_controllers},
    },
    io::pipe::read_part,
    sys::reactor,
};

/// What is looked at to count a container's processes.
const MOST_PROCESSES: usize = 64 * 1024;
const MOST_GROUPS: usize = 1024;

/// A control group could not be made or used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} of control group {}", path.display())]
pub struct CgroupError {
    what: String,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl CgroupError {
    /// The error number.
    pub fn errno(&self) -> Option<Errno> {
        Errno::from_io_error(&self.source)
    }
}

/// A control group.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl Cgroup {
    /// Makes the pod's group, from which containers get their limits.
    pub fn prepare_pod() -> Result<(), CgroupError> {
        let path = pod_path();
        match fs::create_dir(&path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError {
                what: "make the directory".to_owned(),
                path,
                source,
            }),
            _ => {
                enable_controllers(&path);
                Ok(())
            }
        }
    }

    /// Makes the group of a container.
    pub fn of_container(container: &str) -> Result<Self, CgroupError> {
        Self::create(pod_path().join(container))
    }

    /// Makes the group of an exec. One of the same name that still holds what an earlier exec left behind stays.
    pub fn of_exec(&self, exec: &str) -> Result<Self, CgroupError> {
        let mut path = self.path.join(format!("exec-{exec}"));
        let mut attempt = 0_u32;
        loop {
            let _busy_or_missing = fs::remove_dir(&path);
            match Self::create(path) {
                Err(error) if error.errno() == Some(Errno::EXIST) => {
                    attempt += 1;
                    path = self.path.join(format!("exec-{exec}.{attempt}"));
                }
                result => return result,
            }
        }
    }

    fn create(path: PathBuf) -> Result<Self, CgroupError> {
        let make = || {
            fs::create_dir(&path)?;
            let directory = openat(
                CWD,
                &path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            Ok(directory)
        };
        match make() {
            Ok(directory) => Ok(Self { path, directory }),
            Err(source) => Err(CgroupError {
                what: "make the directory".to_owned(),
                path,
                source,
            }),
        }
    }

    /// Its directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Writes one of its files.
    pub fn set(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        // Opened and not created: a file that is not there is a limit that this kernel does not have.
        let write = || {
            let mut file = File::options().write(true).open(self.path.join(file))?;
            file.write_all(value.as_bytes())
        };
        write().map_err(|source| CgroupError {
            what: format!("set {file} to {value:?}"),
            path: self.path.clone(),
            source,
        })
    }

    /// The contents of one of its files; `None` where its controller is not there.
    pub fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.path.join(file)).ok()
    }

    /// How many of its processes the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.read("memory.events")
            .and_then(|events| value_of(&events, "oom_kill"))
            .unwrap_or(0)
    }

    /// The processes in it and in the groups below. At most [`MOST_PROCESSES`] and those of [`MOST_GROUPS`] groups: a
    /// privileged container makes as many as it likes.
    pub fn processes(&self) -> Vec<u32> {
        let mut processes = Vec::new();
        let mut groups = vec![self.path.clone()];
        let mut left = MOST_GROUPS;
        while let Some(group) = groups.pop() {
            // A group that goes meanwhile has no process.
            let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            processes.extend(members.lines().filter_map(|line| line.parse::<u32>().ok()));
            if processes.len() >= MOST_PROCESSES {
                processes.truncate(MOST_PROCESSES);
                break;
            }
            let below = fs::read_dir(&group).into_iter().flatten().filter_map(Result::ok);
            let directories = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            for directory in directories.take(left) {
                groups.push(directory.path());
                left -= 1;
            }
        }
        processes
    }

    /// Kills every process in it and in the groups below.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match self.set("cgroup.kill", "1") {
            // It is gone, and with it every process that was in it.
            Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::NODEV)) => Ok(()),
            result => result,
        }
    }

    /// Waits until no process is left in it and below.
    pub async fn emptied(&self) -> io::Result<()> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        match inotify::add_watch(&events, self.path.join("cgroup.events"), WatchFlags::MODIFY) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        let events = reactor::register(events)?;
        loop {
            let populated = self
                .read("cgroup.events")
                .and_then(|events| value_of(&events, "populated"));
            if populated.unwrap_or(0) == 0 {
                return Ok(());
            }
            read_part(&events, &mut [0; 512]).await?;
        }
    }

    /// Removes it and the groups below, which must be empty of processes.
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove_tree(&self.path).map_err(|source| CgroupError {
            what: "remove the directory".to_owned(),
            path: self.path.clone(),
            source,
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        match self.remove() {
            // What an exec left behind in the background; it goes with the container.
            Err(error) if error.errno() == Some(Errno::BUSY) => {}
            Err(error) => log::warning!("{}", with_causes(&error)),
            Ok(()) => {}
        }
    }
}

fn pod_path() -> PathBuf {
    Path::new(CGROUPS).join("pod")
}

/// A privileged container makes groups of its own below its group.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// The number behind `key` in a "flat keyed" file (Documentation/admin-guide/cgroup-v2.rst).
pub fn value_of(file: &str, key: &str) -> Option<u64> {
    file.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name != key {
            return None;
        }
        value.trim().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_key() {
        let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(value_of(events, "oom_kill"), Some(2));
        assert_eq!(value_of(events, "oom"), Some(3));
        assert_eq!(value_of(events, "kill"), None);
        assert_eq!(value_of("populated x", "populated"), None);
    }
}
