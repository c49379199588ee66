//! Runs other programs and mounts what we made.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs `program`, from Debian's `package`, and gives its output; panics with all of it when it fails.
pub fn run(package: &str, program: &str, arguments: &[&str]) -> String {
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) => panic!("{program} cannot be run ({error}): install the package {package}"),
    };
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{text}",
        output.status
    );
    text
}

/// `path` as text for a command line.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// An EROFS blob that the kernel has mounted; unmounted when dropped.
pub struct Mounted {
    pub path: PathBuf,
}

impl Mounted {
    pub fn at(blob: &Path, path: PathBuf) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount file systems: run them as root"
        );
        std::fs::create_dir_all(&path).unwrap();
        run(
            "mount",
            "mount",
            &["-t", "erofs", "-o", "ro,loop,noatime", text(blob), text(&path)],
        );
        Self { path }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("mount", "umount", &[text(&self.path)]);
    }
}

/// Has erofs-utils read the whole blob, the files' content too.
pub fn fsck_erofs(blob: &Path) {
    let output = run("erofs-utils", "fsck.erofs", &["-d3", "--extract", text(blob)]);
    assert!(output.contains("No errors found"), "{output}");
}
