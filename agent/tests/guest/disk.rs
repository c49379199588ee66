//! Disks for tests: an image of several layers as EROFS partitions, and an empty ext4 file system.

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use tempfile::TempDir;

/// How many layers the image has.
pub const LAYERS: u32 = 3;

const SECTOR_BYTES: u64 = 512;
/// Where partitions begin: a multiple of 1 MiB.
const ALIGNMENT: u64 = 2048;

/// A disk with the layers of an image.
#[derive(Debug)]
pub struct Image {
    pub path: PathBuf,
    /// Where each begins and how long it is, in bytes.
    pub partitions: Vec<(u64, u64)>,
    _directory: TempDir,
}

/// The image of all tests, made once: a busybox with users, a layer that changes it, and a hostile one on top.
pub fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let blobs: Vec<PathBuf> = [base as fn(&Path), changes, hostile]
            .iter()
            .enumerate()
            .map(|(number, make)| {
                let tree = directory.path().join(format!("layer{number}"));
                fs::create_dir(&tree).unwrap();
                fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)).unwrap();
                make(&tree);
                let blob = directory.path().join(format!("layer{number}.erofs"));
                run("mkfs.erofs", &["-x1", path_str(&blob), path_str(&tree)]);
                blob
            })
            .collect();
        let path = directory.path().join("image.disk");
        let partitions = partition(&path, &blobs);
        Image {
            path,
            partitions,
            _directory: directory,
        }
    })
}

/// A new, sparse scratch disk at `path`.
pub fn scratch(path: &Path) {
    fs::File::create(path).unwrap().set_len(256 << 20).unwrap();
    run("mkfs.ext4", &["-q", path_str(path)]);
}

fn base(root: &Path) {
    for directory in ["bin", "etc", "tmp", "proc", "dir", "opaque", "home"] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .expect("a static busybox at /bin/busybox; install the package busybox-static");
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines() {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n",
    )
    .unwrap();
    fs::write(
        root.join("etc/group"),
        "root:x:0:\napp:x:1001:\nvideo:x:44:app\naudio:x:63:root,app\n",
    )
    .unwrap();
    fs::write(root.join("etc/hosts"), "the image's own\n").unwrap();
    fs::write(root.join("lower"), "lower\n").unwrap();
    fs::write(root.join("changed"), "before\n").unwrap();
    fs::write(root.join("removed"), "gone\n").unwrap();
    fs::write(root.join("opaque/hidden"), "hidden\n").unwrap();
    fs::write(root.join("text"), "no program\n").unwrap();
    let script = root.join("script");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
}

fn changes(root: &Path) {
    fs::write(root.join("changed"), "after\n").unwrap();
    // A whiteout, as overlayfs has it: a character device 0:0.
    run("mknod", &[path_str(&root.join("removed")), "c", "0", "0"]);
    let opaque = root.join("opaque");
    fs::create_dir(&opaque).unwrap();
    fs::write(opaque.join("shown"), "shown\n").unwrap();
    rustix::fs::setxattr(
        &opaque,
        "trusted.overlay.opaque",
        b"y",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
}

/// Links that would lead a careless mount out of the root.
fn hostile(root: &Path) {
    symlink("/../../../../../../run/containers", root.join("escape")).unwrap();
    symlink("../../../../../../../../etc", root.join("climb")).unwrap();
    symlink("/loop/x", root.join("loop")).unwrap();
    symlink("/var/made", root.join("dangling")).unwrap();
    fs::create_dir(root.join("badproc")).unwrap();
}

fn partition(disk: &Path, blobs: &[PathBuf]) -> Vec<(u64, u64)> {
    let sectors = |path: &PathBuf| fs::metadata(path).unwrap().len().div_ceil(SECTOR_BYTES);
    let mut start = ALIGNMENT;
    let mut table = b"label: gpt\n".to_vec();
    let mut places = Vec::new();
    for blob in blobs {
        writeln!(table, "start={start}, size={}", sectors(blob)).unwrap();
        places.push((start * SECTOR_BYTES, sectors(blob) * SECTOR_BYTES));
        start = (start + sectors(blob)).next_multiple_of(ALIGNMENT);
    }
    let file = fs::File::create(disk).unwrap();
    file.set_len((start + ALIGNMENT) * SECTOR_BYTES).unwrap();
    let mut sfdisk = Command::new("sfdisk")
        .args(["--quiet", path_str(disk)])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("sfdisk; install the package fdisk");
    sfdisk.stdin.take().unwrap().write_all(&table).unwrap();
    assert!(sfdisk.wait().unwrap().success(), "sfdisk failed");
    for (blob, (place, _)) in blobs.iter().zip(&places) {
        use std::os::unix::fs::FileExt;
        file.write_all_at(&fs::read(blob).unwrap(), *place).unwrap();
    }
    places
}

/// Runs a program of the machine that must succeed, and gives what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be run: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn path_str(path: &Path) -> &str {
    path.to_str().unwrap()
}
