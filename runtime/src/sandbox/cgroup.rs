//! The control group of a pod's machine on the host (cgroup v2).

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    process::{Pid, Signal, kill_process},
};

/// Controllers that a machine's resource use is counted by.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "io", "pids"];

/// How long killed processes may take to leave the group.
const END: Duration = Duration::from_secs(10);

/// Where the control group of the pod with `id` is, below `parent`.
pub(super) fn path(parent: &str, id: &str) -> String {
    format!("{}/bulkhead-{id}", parent.trim_end_matches('/'))
}

/// Makes the group `path` and those above it, and opens its `cgroup.procs` for writing.
pub(super) fn create(root: &Path, path: &str) -> io::Result<File> {
    let mut group = root.to_owned();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        enable_controllers(&group);
        group.push(part);
        match fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(&group, &error)),
            _ => {}
        }
    }
    let procs = group.join("cgroup.procs");
    OpenOptions::new()
        .write(true)
        .open(&procs)
        .map_err(|error| at(&procs, &error))
}

/// Kills what runs in the group and removes it with the groups in it.
pub(super) fn remove(root: &Path, path: &str) -> io::Result<()> {
    let group = root.join(path.trim_start_matches('/'));
    if !group.exists() {
        return Ok(());
    }
    kill(&group)?;
    wait_until_empty(&group)?;
    remove_tree(&group).map_err(|error| at(&group, &error))
}

/// Which controllers there are is the host's business: one that cannot be had only means that it does not count.
fn enable_controllers(group: &Path) {
    for controller in CONTROLLERS {
        let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn kill(group: &Path) -> io::Result<()> {
    match fs::write(group.join("cgroup.kill"), "1") {
        // Before Linux 5.14 there is no cgroup.kill.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            for pid in processes(group)? {
                let _ = kill_process(pid, Signal::KILL);
            }
            Ok(())
        }
        other => other,
    }
}

fn processes(group: &Path) -> io::Result<Vec<Pid>> {
    let text = fs::read_to_string(group.join("cgroup.procs"))?;
    Ok(text
        .lines()
        .filter_map(|line| line.parse().ok().and_then(Pid::from_raw))
        .collect())
}

/// Waits by the notification that the kernel gives when `populated` in `cgroup.events` changes.
fn wait_until_empty(group: &Path) -> io::Result<()> {
    let events = group.join("cgroup.events");
    let watch = inotify::init(CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, &events, WatchFlags::MODIFY)?;
    let deadline = Instant::now() + END;
    loop {
        let populated = match fs::read_to_string(&events) {
            Ok(text) => text.lines().any(|line| line == "populated 1"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if !populated {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let left = processes(group).unwrap_or_default();
            return Err(io::Error::other(format!(
                "processes of {} do not end though they were killed: {left:?}",
                group.display()
            )));
        }
        let mut wanted = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
        let timeout = rustix::time::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        rustix::event::poll(&mut wanted, Some(&timeout))?;
        let mut told = [0u8; 4096];
        rustix::io::read(&watch, &mut told)?;
    }
}

fn remove_tree(group: &Path) -> io::Result<()> {
    let inner: Vec<PathBuf> = fs::read_dir(group)?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    for path in inner {
        remove_tree(&path)?;
    }
    for pause_ms in [0, 1, 10, 100] {
        // A process that is being reaped still counts for a moment after the group has said that it is empty.
        thread::sleep(Duration::from_millis(pause_ms));
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
    fs::remove_dir(group)
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_group_is_below_the_parent_it_was_given() {
        assert_eq!(
            path("/kubepods/burstable/pod1", "abc"),
            "/kubepods/burstable/pod1/bulkhead-abc"
        );
        assert_eq!(path("/bulkhead/", "abc"), "/bulkhead/bulkhead-abc");
    }

    #[test]
    fn a_group_that_is_not_there_is_removed_already() {
        let root = tempfile::tempdir().unwrap();
        remove(root.path(), "/bulkhead/bulkhead-abc").unwrap();
    }

    #[test]
    fn what_cannot_be_made_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let message = create(root.path(), "/file/pod").unwrap_err().to_string();
        assert!(message.contains("/file"), "{message}");
    }
}
