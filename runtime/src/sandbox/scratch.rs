//! Scratch disks: what a pod's containers write goes to a sparse file with an ext4 file system in it.
//!
//! The file system is made once for each size, when the daemon starts or first needs it; a pod's disk is a copy of the
//! blocks that are in use.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek},
    io::Errno,
};

/// Changes when templates are made differently, so that an older daemon's are not used.
const TEMPLATE_VERSION: u32 = 1;

/// How the names of templates begin that are not finished.
const UNFINISHED: &str = ".making-";

/// Why there is no scratch disk.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// mkfs.ext4 is not there.
    #[error("mkfs.ext4 cannot be started: {0}; install e2fsprogs")]
    NoMkfs(#[source] io::Error),
    /// mkfs.ext4 failed.
    #[error("mkfs.ext4 could not make the scratch template {path}: {output}")]
    Mkfs {
        /// The file.
        path: PathBuf,
        /// What it said.
        output: String,
    },
    /// The file cannot be made, read or written.
    #[error("cannot make the scratch disk {path}: {source}; {}", advice(.source))]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free space under `root`",
        io::ErrorKind::FileTooLarge => "its file system does not hold files of `vm.scratch_mib`",
        _ => "see that `root` is on a healthy, writable file system",
    }
}

/// The templates of scratch disks.
#[derive(Clone, Debug)]
pub struct ScratchTemplates {
    directory: PathBuf,
}

impl ScratchTemplates {
    /// Those in `directory`, which is made if need be.
    ///
    /// # Errors
    ///
    /// [`ScratchError::File`].
    pub fn open(directory: PathBuf) -> Result<Self, ScratchError> {
        fs::create_dir_all(&directory).map_err(|source| ScratchError::File {
            path: directory.clone(),
            source,
        })?;
        // What a daemon was making when it was killed.
        for entry in fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
        {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self { directory })
    }

    /// The template of disks of `mib` MiB, made if need be. Blocking.
    ///
    /// # Errors
    ///
    /// [`ScratchError`].
    pub fn prepare(&self, mib: u64) -> Result<PathBuf, ScratchError> {
        let template = self
            .directory
            .join(format!("ext4-v{TEMPLATE_VERSION}-{mib}mib.img"));
        if template.exists() {
            return Ok(template);
        }
        let at = |source| ScratchError::File {
            path: template.clone(),
            source,
        };
        let unfinished = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(&self.directory)
            .map_err(at)?;
        unfinished.as_file().set_len(mib << 20).map_err(at)?;
        make_file_system(unfinished.path())?;
        unfinished.as_file().sync_all().map_err(at)?;
        unfinished.persist(&template).map_err(|error| at(error.error))?;
        Ok(template)
    }

    /// Makes the file `path` a disk of `mib` MiB with an empty file system. Blocking.
    ///
    /// # Errors
    ///
    /// [`ScratchError`]; then there is no file.
    pub fn copy(&self, mib: u64, path: &Path) -> Result<(), ScratchError> {
        let template = self.prepare(mib)?;
        let copied = copy_sparse(&template, path);
        copied.map_err(|source| {
            let _ = fs::remove_file(path);
            ScratchError::File {
                path: path.to_owned(),
                source,
            }
        })
    }
}

/// A pod's scratch disk dies with its machine, so nothing in it need survive a crash: no journal.
fn make_file_system(path: &Path) -> Result<(), ScratchError> {
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-L", "scratch"])
        .args([
            "-O",
            "^has_journal,^resize_inode,^metadata_csum,extent,flex_bg,uninit_bg,64bit",
        ])
        .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"])
        .arg(path)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .env("MKE2FS_CONFIG", "/dev/null")
        .stdin(Stdio::null())
        .output()
        .map_err(ScratchError::NoMkfs)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(ScratchError::Mkfs {
            path: path.to_owned(),
            output: format!("{}: {}", output.status, said.trim()),
        });
    }
    Ok(())
}

/// Copies a file with its holes; where the file system can, the copy shares the blocks until they are written.
fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).create_new(true).open(to)?;
    if ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut position = 0;
    loop {
        let start = match seek(&source, SeekFrom::Data(position)) {
            Ok(start) => start,
            // ENXIO: there is no data behind this position.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(&source, SeekFrom::Hole(start))?;
        copy_range(&source, &target, start, end)?;
        position = end;
    }
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let wanted = usize::try_from(end - read_at).unwrap_or(usize::MAX);
        match copy_file_range(source, Some(&mut read_at), target, Some(&mut write_at), wanted) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 5000], 0).unwrap();
        file.write_all_at(&[2; 5000], 32 << 20).unwrap();
        drop(file);
        copy_sparse(&from, &to).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn a_disk_is_made_from_a_template_that_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let templates = ScratchTemplates::open(directory.path().join("scratch")).unwrap();
        let disk = directory.path().join("disk");
        fs::write(
            directory.path().join("scratch/.making-old"),
            "left by a killed daemon",
        )
        .unwrap();
        let templates = ScratchTemplates::open(templates.directory).unwrap();
        templates.copy(64, &disk).unwrap();
        let template = templates.prepare(64).unwrap();
        let made = fs::metadata(&template).unwrap().modified().unwrap();
        // The magic number of ext4's superblock.
        let mut magic = [0; 2];
        File::open(&disk)
            .unwrap()
            .read_exact_at(&mut magic, 1024 + 56)
            .unwrap();
        assert_eq!(magic, [0x53, 0xef]);
        assert_eq!(fs::metadata(&disk).unwrap().len(), 64 << 20);
        templates.prepare(64).unwrap();
        assert_eq!(fs::metadata(&template).unwrap().modified().unwrap(), made);
        assert!(
            templates.copy(64, &disk).is_err(),
            "a disk was written over another"
        );
        let left: Vec<_> = fs::read_dir(directory.path().join("scratch")).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
