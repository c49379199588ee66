//! Layers converted to EROFS, against what the kernel mounts.

use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use bulkhead_runtime::image::LayerLimits;
use bulkhead_runtime::image::layer::convert_archive;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

use crate::compare::{assert_same, tree};
use crate::tools::{Mounted, fsck_erofs, run, text};

const LIMITS: LayerLimits = LayerLimits {
    bytes: 16 << 30,
    entries: 1_000_000,
};

fn convert(archive: &Path, blob: &Path) {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(blob)
        .unwrap();
    let reader = BufReader::with_capacity(1000, File::open(archive).unwrap());
    let (converted, _) = convert_archive(reader, file, LIMITS).unwrap();
    assert_eq!(converted.blob_bytes, fs::metadata(blob).unwrap().len());
    assert_eq!(converted.blob_bytes % 4096, 0);
}

/// Files of every kind, in sizes around every border of the format.
pub fn build_tree(root: &Path) {
    fs::create_dir(root).unwrap();
    let sizes = [
        0, 1, 31, 32, 33, 4000, 4031, 4032, 4033, 4095, 4096, 4097, 8127, 8128, 8129, 65_536, 1_048_577,
    ];
    for size in sizes {
        let content: Vec<u8> = (0..size).map(|i: u32| (i * 31 + i / 251) as u8).collect();
        fs::write(root.join(format!("size-{size}")), content).unwrap();
    }
    for length in [1, 59, 60, 1000, 4031, 4032, 4033, 4095] {
        symlink(
            "x/".repeat(length)[..length].trim_end_matches('/'),
            root.join(format!("link-{length}")),
        )
        .unwrap();
    }
    fs::hard_link(root.join("size-33"), root.join("hard")).unwrap();
    fs::hard_link(root.join("size-33"), root.join("hard-too")).unwrap();
    fs::hard_link(root.join("link-60"), root.join("hard-link-to-symlink")).unwrap();

    let zeros = File::create(root.join("sparse")).unwrap();
    zeros.write_all_at(b"in the middle", 3 << 20).unwrap();
    zeros.write_all_at(b"and behind", (7 << 20) + 77).unwrap();
    zeros.set_len((9 << 20) + 5).unwrap();
    File::create(root.join("all-hole"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    fs::write(root.join("zeros"), vec![0; 300_000]).unwrap();

    for (name, kind, device) in [
        ("null", FileType::CharacterDevice, (1, 3)),
        ("large-numbers", FileType::CharacterDevice, (4095, 1_048_575)),
        ("disk", FileType::BlockDevice, (8, 300)),
        ("pipe", FileType::Fifo, (0, 0)),
    ] {
        mknodat(
            CWD,
            root.join(name),
            kind,
            Mode::from(0o640),
            rustix::fs::makedev(device.0, device.1),
        )
        .unwrap();
    }

    let long = "n".repeat(255);
    let deep = (0..12).fold(root.to_path_buf(), |path, _| path.join(&long[..200]));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join(&long), "deep").unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for i in 0..3000 {
        fs::write(
            root.join(format!("many/{}{i}", "f".repeat(i % 90))),
            format!("{i}"),
        )
        .unwrap();
    }
    for name in [
        "-dash",
        "!bang",
        ".hidden",
        ".-",
        "...",
        "ünïcode",
        "new\nline",
        "sp ace",
        "\u{7f}",
    ] {
        fs::write(root.join("many").join(name), name).unwrap();
    }
    fs::create_dir(root.join("empty")).unwrap();

    fs::create_dir(root.join("attributes")).unwrap();
    let set =
        |path: &Path, name: &str, value: &[u8]| lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
    let file = root.join("attributes/file");
    fs::write(&file, "with attributes").unwrap();
    set(&file, "user.empty", b"");
    set(&file, "user.binary", b"\0\n=\xff");
    set(&file, "trusted.admin", b"t");
    // cap_net_raw+ep, as file systems store it.
    set(
        &file,
        "security.capability",
        b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    );
    let large = root.join("attributes/large");
    fs::write(&large, vec![7; 5000]).unwrap();
    set(&large, "user.large", &vec![b'v'; 3000]);
    set(&root.join("attributes"), "user.on-a-directory", b"d");
    // user:1000:r--, mask, in the format of system.posix_acl_access.
    let acl: Vec<u8> = [
        &2_u32.to_le_bytes()[..],
        &[1, 0, 6, 0],
        &u32::MAX.to_le_bytes(),
        &[2, 0, 4, 0],
        &1000_u32.to_le_bytes(),
        &[4, 0, 4, 0],
        &u32::MAX.to_le_bytes(),
        &[16, 0, 4, 0],
        &u32::MAX.to_le_bytes(),
        &[32, 0, 4, 0],
        &u32::MAX.to_le_bytes(),
    ]
    .concat();
    set(&file, "system.posix_acl_access", &acl);
    set(&root.join("attributes"), "system.posix_acl_default", &acl);

    for (name, mode) in [("suid", 0o4755), ("sgid", 0o2755), ("none", 0o000)] {
        let path = root.join(name);
        fs::write(&path, name).unwrap();
        std::os::unix::fs::chown(&path, Some(70_000), Some(4_294_967_294)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    let times = [
        ("suid", UNIX_EPOCH - Duration::from_nanos(1)),
        ("none", UNIX_EPOCH + Duration::new(1 << 33, 7)),
    ];
    for (name, time) in times {
        File::open(root.join(name)).unwrap().set_modified(time).unwrap();
    }
}

fn archive(root: &Path, archive: &Path, options: &[&str]) {
    let mut arguments = vec![
        "--create",
        "--file",
        text(archive),
        "--directory",
        text(root),
        "--sort=name",
    ];
    arguments.extend(options);
    arguments.push(".");
    run("tar", "tar", &arguments);
}

const POSIX: &[&str] = &["--format=posix", "--xattrs", "--xattrs-include=*"];

#[test]
fn what_the_kernel_mounts_is_what_was_archived() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    build_tree(&at("tree"));
    let expected = tree(&at("tree"));
    for (name, options) in [
        ("plain", &[][..]),
        ("sparse 1.0", &["--sparse", "--sparse-version=1.0"]),
        ("sparse 0.1", &["--sparse", "--sparse-version=0.1"]),
        ("sparse 0.0", &["--sparse", "--sparse-version=0.0"]),
    ] {
        let (tar, blob) = (at(&format!("{name}.tar")), at(&format!("{name}.erofs")));
        archive(&at("tree"), &tar, &[POSIX, options].concat());
        convert(&tar, &blob);
        fsck_erofs(&blob);
        let mounted = Mounted::at(&blob, at("mounted"));
        assert_same(&expected, &tree(&mounted.path));
    }
    let disk = fs::metadata(at("plain.erofs")).unwrap();
    let holes = disk.len() - std::os::unix::fs::MetadataExt::blocks(&disk) * 512;
    assert!(
        holes > 8 << 20,
        "the sparse file takes room: only {holes} bytes of the blob are holes"
    );
}

#[test]
fn gnu_archives_are_read_too() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    build_tree(&at("tree"));
    archive(&at("tree"), &at("a.tar"), &["--format=gnu", "--sparse"]);
    convert(&at("a.tar"), &at("a.erofs"));
    fsck_erofs(&at("a.erofs"));
    let mut expected = tree(&at("tree"));
    for node in expected.values_mut() {
        // The format has neither.
        node.xattrs.clear();
        node.mtime.1 = 0;
    }
    let mounted = Mounted::at(&at("a.erofs"), at("mounted"));
    assert_same(&expected, &tree(&mounted.path));
}

#[test]
fn the_same_archive_is_the_same_blob() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    build_tree(&at("tree"));
    archive(&at("tree"), &at("a.tar"), POSIX);
    convert(&at("a.tar"), &at("1.erofs"));
    convert(&at("a.tar"), &at("2.erofs"));
    assert!(fs::read(at("1.erofs")).unwrap() == fs::read(at("2.erofs")).unwrap());
}
