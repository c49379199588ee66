//! Disks for tests: an image of several layers as EROFS partitions, and an empty ext4 file system.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
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

/// Writes the blobs as the partitions of a disk with a GUID partition table (UEFI 2.10, 5.3), of which a read-only disk
/// needs no second copy.
fn partition(disk: &Path, blobs: &[PathBuf]) -> Vec<(u64, u64)> {
    const ENTRY_BYTES: usize = 128;
    const ENTRIES: usize = 128;
    let file = fs::File::create(disk).unwrap();
    let mut entries = vec![0; ENTRIES * ENTRY_BYTES];
    let mut places = Vec::new();
    let mut start = ALIGNMENT;
    for (blob, entry) in blobs.iter().zip(entries.chunks_mut(ENTRY_BYTES)) {
        let contents = fs::read(blob).unwrap();
        let sectors = (contents.len() as u64).div_ceil(SECTOR_BYTES);
        file.write_all_at(&contents, start * SECTOR_BYTES).unwrap();
        // Type and name of a partition may be any but zero.
        entry[..32].fill(places.len() as u8 + 1);
        entry[32..40].copy_from_slice(&start.to_le_bytes());
        entry[40..48].copy_from_slice(&(start + sectors - 1).to_le_bytes());
        places.push((start * SECTOR_BYTES, sectors * SECTOR_BYTES));
        start = (start + sectors).next_multiple_of(ALIGNMENT);
    }
    let last = start + ALIGNMENT - 1;
    file.set_len((last + 1) * SECTOR_BYTES).unwrap();

    let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0".to_vec();
    header.resize(24, 0);
    for number in [1, last, ALIGNMENT, last] {
        header.extend(number.to_le_bytes());
    }
    header.resize(72, 7);
    header.extend(2_u64.to_le_bytes());
    header.extend((ENTRIES as u32).to_le_bytes());
    header.extend((ENTRY_BYTES as u32).to_le_bytes());
    header.extend(crc32fast::hash(&entries).to_le_bytes());
    let checksum = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());

    // One entry of the old table covers the whole disk.
    let mut old = vec![0; 512];
    old[446..462].copy_from_slice(&[
        0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
    ]);
    old[510..].copy_from_slice(&[0x55, 0xaa]);
    for (sector, bytes) in [(0, &old), (1, &header), (2, &entries)] {
        file.write_all_at(bytes, sector * SECTOR_BYTES).unwrap();
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
