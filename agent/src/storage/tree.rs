//! Walks a tree that a container made: removing it, and counting what it holds. Both block for as long as the tree is
//! large, so both are for a child process (see [`offload`](crate::init::offload)).

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, openat, renameat_with, statat, unlinkat},
    io::Errno,
};

/// Deepest directory that is entered from above. A tree may be deeper than descriptors and memory reach, so what lies
/// below is moved up before it is removed, and not counted.
const DEPTH: usize = 256;

/// Removes `path` and all below it. What is not there is removed already.
pub fn remove(path: &Path) -> io::Result<()> {
    let root = match open_directory(CWD, path) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // Again as long as something was moved up, which the reading of the root need not have met.
    let mut moved = 0;
    loop {
        let moved_before = moved;
        empty(&root, &mut moved)?;
        if moved == moved_before {
            break;
        }
    }
    fs::remove_dir(path)
}

/// Removes everything in `root`. What lies deeper than [`DEPTH`] becomes an entry of the root itself.
fn empty(root: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    let mut open: Vec<(CString, Dir)> = vec![(CString::default(), Dir::read_from(root)?)];
    loop {
        let depth = open.len();
        let Some((_, directory)) = open.last_mut() else {
            return Ok(());
        };
        let Some(entry) = directory.read() else {
            let done = open.pop();
            if let (Some((name, _)), Some((_, parent))) = (done, open.last()) {
                unlinkat(parent.fd()?, &name, AtFlags::REMOVEDIR)?;
            }
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let at = directory.fd()?;
        match unlinkat(at, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error),
        }
        let name = name.to_owned();
        let below = Dir::new(open_directory(at, &name)?)?;
        if depth < DEPTH {
            open.push((name, below));
            continue;
        }
        loop {
            let up = format!("moved-up-{moved}");
            *moved += 1;
            match renameat_with(at, &name, root, up, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                result => break result?,
            }
        }
    }
}

/// What a tree takes of its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Blocks in use, in bytes.
    pub bytes: u64,
    /// Files of every kind, each name counted: a tree with hard links counts more than it has.
    pub inodes: u64,
}

/// Counts the tree at `path` up to `most_entries`, without following links or leaving its file system.
pub fn usage(path: &Path, most_entries: u64) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let root = open_directory(CWD, path)?;
    let mut open = vec![Dir::new(root)?];
    while let Some(directory) = open.last_mut() {
        let Some(entry) = directory.read() else {
            open.pop();
            continue;
        };
        let entry = entry?;
        if [c".", c".."].contains(&entry.file_name()) {
            continue;
        }
        if usage.inodes >= most_entries {
            break;
        }
        let name: CString = entry.file_name().to_owned();
        let status = match statat(directory.fd()?, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => status,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        usage.inodes += 1;
        usage.bytes += u64::try_from(status.st_blocks).unwrap_or(0) * 512;
        if FileType::from_raw_mode(status.st_mode) == FileType::Directory && open.len() < DEPTH {
            let below = open
                .last()
                .ok_or(io::ErrorKind::NotFound)
                .and_then(|directory| directory.fd().map_err(|_| io::ErrorKind::NotFound))
                .map(|directory| open_directory(directory, &name));
            match below {
                Ok(Ok(below)) => open.push(Dir::new(below)?),
                // Removed meanwhile.
                Ok(Err(Errno::NOENT)) | Err(_) => {}
                Ok(Err(error)) => return Err(error.into()),
            }
        }
    }
    Ok(usage)
}

fn open_directory(at: impl AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(
        at,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_counted_and_links_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("big"), vec![1; 1 << 20]).unwrap();
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("a/b")).unwrap();
        fs::write(tree.path().join("a/b/file"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink(outside.path(), tree.path().join("a/link")).unwrap();
        let counted = usage(tree.path(), 1000).unwrap();
        assert_eq!(counted.inodes, 4);
        assert!((100_000..500_000).contains(&counted.bytes), "{counted:?}");
        assert_eq!(usage(tree.path(), 2).unwrap().inodes, 2);
        remove(tree.path()).unwrap();
        assert!(!tree.path().exists());
        assert!(outside.path().join("big").exists());
        remove(tree.path()).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_descriptors_reach_is_removed() {
        let outside = tempfile::tempdir().unwrap();
        let tree = outside.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut at = open_directory(CWD, &tree).unwrap();
        for _ in 0..5 * DEPTH {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o755)).unwrap();
            rustix::fs::mkdirat(&at, "moved-up-0", Mode::from_raw_mode(0o755)).unwrap();
            at = open_directory(&at, "d").unwrap();
        }
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }
}
