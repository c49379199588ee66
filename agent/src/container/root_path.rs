//! Paths in a container's root, which the image made: symlinks that point anywhere, files where directories should be.
//!
//! Nothing here leaves the root: a path is walked one name at a time by descriptors, `..` goes back along the
//! descriptors that led here, and a link's target is walked the same way, absolute ones from the root.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat},
    io::Errno,
};

/// Most links that one path may go through, as Linux has it.
const LINKS: usize = 40;

/// Longest path, in bytes, links resolved.
const PATH_BYTES: usize = 16 * 1024;

/// The root directory of a container.
#[derive(Debug)]
pub struct RootDirectory {
    fd: OwnedFd,
}

/// What to do about the last name of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Directory,
    File,
}

impl RootDirectory {
    /// Opens the directory `path` of the agent's own tree as a root.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self { fd })
    }

    /// The root itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens what is at `path`, links followed within the root.
    pub fn open_existing(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        self.resolve(path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    /// Opens what is at `path` where no part of it is a link.
    pub fn open_without_links(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        self.resolve(path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
    }

    /// Opens the directory `path`; what is missing of it is made.
    pub fn make_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.walk(path, Last::Directory)
    }

    /// Opens the file `path`; an empty one is made where it is missing, and the directories to it.
    pub fn make_file(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.walk(path, Last::File)
    }

    fn resolve(&self, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        openat2(
            &self.fd,
            OsStr::from_bytes(path),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    }

    fn walk(&self, path: &[u8], last: Last) -> Result<OwnedFd, Errno> {
        // Names still to be walked, the next one last.
        let mut names: Vec<Vec<u8>> = names_of(path).rev().map(<[u8]>::to_vec).collect();
        // The directories that led here, without the root.
        let mut trail: Vec<OwnedFd> = Vec::new();
        let mut links = 0;
        while let Some(name) = names.pop() {
            if name == b".." {
                trail.pop();
                continue;
            }
            let here = trail.last().unwrap_or(&self.fd);
            let is_last = names.is_empty();
            let next = match open_name(here, &name) {
                Err(Errno::NOENT) => {
                    make_name(here, &name, if is_last { last } else { Last::Directory })?;
                    open_name(here, &name)?
                }
                other => other?,
            };
            match FileType::from_raw_mode(fstat(&next)?.st_mode) {
                FileType::Directory => trail.push(next),
                FileType::Symlink => {
                    links += 1;
                    if links > LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = readlinkat(&next, "", Vec::new())?;
                    if target.to_bytes().starts_with(b"/") {
                        trail.clear();
                    }
                    names.extend(names_of(target.to_bytes()).rev().map(<[u8]>::to_vec));
                    if names.iter().map(|name| name.len() + 1).sum::<usize>() > PATH_BYTES {
                        return Err(Errno::NAMETOOLONG);
                    }
                }
                _ if is_last && last == Last::File => return Ok(next),
                _ => return Err(Errno::NOTDIR),
            }
        }
        if last == Last::File {
            return Err(Errno::ISDIR);
        }
        match trail.pop() {
            Some(directory) => Ok(directory),
            None => self.resolve(b".", OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::IN_ROOT),
        }
    }
}

fn names_of(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}

fn open_name(at: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(
        at,
        OsStr::from_bytes(name),
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn make_name(at: &OwnedFd, name: &[u8], kind: Last) -> Result<(), Errno> {
    let name = OsStr::from_bytes(name);
    let made = match kind {
        Last::Directory => mkdirat(at, name, Mode::from_raw_mode(0o755)),
        Last::File => openat(
            at,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o644),
        )
        .map(drop),
    };
    match made {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::symlink,
        path::{Path, PathBuf},
    };

    use super::*;

    struct Image {
        _directory: tempfile::TempDir,
        outside: PathBuf,
        inside: PathBuf,
        root: RootDirectory,
    }

    fn image() -> Image {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        let inside = directory.path().join("root");
        fs::create_dir(&outside).unwrap();
        fs::create_dir(&inside).unwrap();
        let root = RootDirectory::open(&inside).unwrap();
        Image {
            _directory: directory,
            outside,
            inside,
            root,
        }
    }

    fn path_of(fd: &OwnedFd) -> PathBuf {
        use std::os::fd::AsRawFd;
        fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn missing_directories_are_made() {
        let image = image();
        let made = image.root.make_directory(b"/a/b//./c").unwrap();
        assert_eq!(path_of(&made), image.inside.join("a/b/c"));
        assert!(image.inside.join("a/b/c").is_dir());
        let again = image.root.make_directory(b"a/b/c").unwrap();
        assert_eq!(path_of(&again), image.inside.join("a/b/c"));
    }

    #[test]
    fn missing_files_are_made_and_present_ones_kept() {
        let image = image();
        image.root.make_file(b"/etc/hosts").unwrap();
        assert_eq!(fs::read(image.inside.join("etc/hosts")).unwrap(), b"");
        fs::write(image.inside.join("etc/hosts"), "kept").unwrap();
        image.root.make_file(b"/etc/hosts").unwrap();
        assert_eq!(fs::read(image.inside.join("etc/hosts")).unwrap(), b"kept");
    }

    #[test]
    fn links_and_dots_lead_nowhere_but_into_the_root() {
        let image = image();
        symlink(&image.outside, image.inside.join("absolute")).unwrap();
        symlink("../../../outside", image.inside.join("relative")).unwrap();
        for path in [
            "absolute/x",
            "relative/x",
            "../../outside/x",
            "a/../../../outside/x",
        ] {
            let made = image.root.make_directory(path.as_bytes()).unwrap();
            assert!(path_of(&made).starts_with(&image.inside), "{path}: {made:?}");
        }
        assert_eq!(fs::read_dir(&image.outside).unwrap().count(), 0);
    }

    #[test]
    fn a_dangling_link_is_followed_and_its_target_made() {
        let image = image();
        symlink("/run", image.inside.join("varrun")).unwrap();
        let made = image.root.make_directory(b"/varrun/secrets").unwrap();
        assert_eq!(path_of(&made), image.inside.join("run/secrets"));
        symlink("../run/resolv.conf", image.inside.join("resolv.conf")).unwrap();
        let made = image.root.make_file(b"/resolv.conf").unwrap();
        assert_eq!(path_of(&made), image.inside.join("run/resolv.conf"));
    }

    #[test]
    fn circles_and_files_in_the_way_are_errors() {
        let image = image();
        symlink("b", image.inside.join("a")).unwrap();
        symlink("a", image.inside.join("b")).unwrap();
        assert_eq!(image.root.make_directory(b"a/x").unwrap_err(), Errno::LOOP);
        symlink("grow/x", image.inside.join("grow")).unwrap();
        assert_eq!(image.root.make_directory(b"grow").unwrap_err(), Errno::LOOP);
        fs::write(image.inside.join("file"), "").unwrap();
        assert_eq!(image.root.make_directory(b"file/x").unwrap_err(), Errno::NOTDIR);
        assert_eq!(image.root.make_directory(b"file").unwrap_err(), Errno::NOTDIR);
        fs::create_dir(image.inside.join("directory")).unwrap();
        assert_eq!(image.root.make_file(b"directory").unwrap_err(), Errno::ISDIR);
    }

    #[test]
    fn what_exists_is_opened_within_the_root_or_without_links() {
        let image = image();
        fs::write(image.outside.join("passwd"), "outside").unwrap();
        fs::create_dir(image.inside.join("etc")).unwrap();
        symlink(image.outside.join("passwd"), image.inside.join("etc/passwd")).unwrap();
        assert_eq!(
            image
                .root
                .open_existing(b"etc/passwd", OFlags::RDONLY)
                .unwrap_err(),
            Errno::NOENT
        );
        symlink("etc", image.inside.join("link")).unwrap();
        assert!(image.root.open_existing(b"link", OFlags::PATH).is_ok());
        assert_eq!(
            image.root.open_without_links(b"link", OFlags::PATH).unwrap_err(),
            Errno::LOOP
        );
    }

    #[test]
    fn the_root_itself_is_a_directory_of_it() {
        let image = image();
        for path in ["/", ".", "..", "a/.."] {
            let fd = image.root.make_directory(path.as_bytes()).unwrap();
            assert_eq!(path_of(&fd), Path::new(&image.inside), "{path}");
        }
    }
}
