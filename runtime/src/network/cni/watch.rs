//! Notices when something changes in the directory of configurations, also one that is not there yet.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};
use tokio::{
    io::unix::AsyncFd,
    time::{sleep, timeout},
};

/// How long must nothing have changed until what is there is taken for whole.
const QUIET: Duration = Duration::from_millis(100);

/// How long is waited for that at most.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often is looked whether or not something was noticed: a directory may be mounted over, and a file be a link to one that
/// changes elsewhere.
const INTERVAL: Duration = Duration::from_secs(30);

/// Calls `look` again and again: at once, whenever something has changed in `directory` or in the one that `look` named last,
/// and every now and then.
pub(crate) async fn watch(directory: &Path, mut look: impl FnMut() -> Option<PathBuf>) {
    let mut also = None;
    loop {
        // First the watch, then the look: what changes in between is noticed.
        let armed = arm(directory, also.as_deref());
        let next = look();
        if next != also {
            also = next;
            continue;
        }
        match armed {
            Ok(watched) => {
                let _ = timeout(INTERVAL, change(&watched)).await;
            }
            Err(error) => {
                tracing::warn!("cannot watch {} for changes: {error}", directory.display());
                sleep(INTERVAL).await;
            }
        }
    }
}

fn arm(directory: &Path, also: Option<&Path>) -> io::Result<AsyncFd<OwnedFd>> {
    let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let flags = WatchFlags::CREATE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    if let Some(also) = also {
        let _ = inotify::add_watch(&descriptor, also, flags);
    }
    // The nearest directory that is there: the next one on the way will appear in it, unless it has already.
    while let Some(nearest) = directory.ancestors().find(|ancestor| ancestor.is_dir()) {
        match inotify::add_watch(&descriptor, nearest, flags) {
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
        if directory.ancestors().find(|ancestor| ancestor.is_dir()) == Some(nearest) {
            break;
        }
    }
    register(descriptor)
}

#[expect(
    unsafe_code,
    reason = "tokio wants to know that the descriptor stays the same"
)]
fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and the same descriptor until it is dropped, which the AsyncFd that owns it does.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

/// Waits until something changed and then nothing for a moment.
async fn change(watched: &AsyncFd<OwnedFd>) {
    drain(watched).await;
    let _ = timeout(PATIENCE, async {
        while timeout(QUIET, drain(watched)).await.is_ok() {}
    })
    .await;
}

/// Waits for events and takes them.
async fn drain(watched: &AsyncFd<OwnedFd>) {
    let Ok(mut ready) = watched.readable().await else {
        return;
    };
    let mut events = [0; 4096];
    let _ = ready.try_io(|watched| {
        while rustix::io::read(watched.get_ref(), &mut events)? > 0 {}
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn changes_are_noticed_also_before_the_directory_is_there() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("etc/cni/net.d");
        let (report, mut looks) = mpsc::unbounded_channel();
        let watched = directory.clone();
        let task = tokio::spawn(async move {
            watch(&watched.clone(), move || -> Option<PathBuf> {
                let names = fs::read_dir(&watched).map(|entries| {
                    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
                    names.sort();
                    names
                });
                let _ = report.send(names.ok());
                None
            })
            .await;
        });
        let mut until = async |wanted: Option<Vec<&str>>| {
            let wanted = wanted.map(|names| {
                names
                    .into_iter()
                    .map(Into::into)
                    .collect::<Vec<std::ffi::OsString>>()
            });
            let found = timeout(Duration::from_secs(20), async {
                while looks.recv().await.unwrap() != wanted {}
            });
            found.await.expect("the change is noticed");
        };
        until(None).await;
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::create_dir_all(&directory).unwrap();
        until(Some(vec![])).await;
        fs::write(directory.join("a"), "1").unwrap();
        until(Some(vec!["a"])).await;
        fs::write(root.path().join("b"), "1").unwrap();
        fs::rename(root.path().join("b"), directory.join("b")).unwrap();
        until(Some(vec!["a", "b"])).await;
        fs::remove_dir_all(root.path().join("etc")).unwrap();
        until(None).await;
        fs::create_dir_all(&directory).unwrap();
        until(Some(vec![])).await;
        task.abort();
    }
}
