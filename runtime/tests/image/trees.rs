//! Trees from a seed, archived by GNU tar and by umoci, against what the kernel mounts of our blobs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use bulkhead_runtime::image::LayerLimits;
use bulkhead_runtime::image::layer::convert_archive;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, mknodat, utimensat,
};

use crate::compare::{Node, assert_same, tree};
use crate::tools::{Mounted, fsck_erofs, run, text};

const LIMITS: LayerLimits = LayerLimits {
    bytes: 16 << 30,
    entries: 1_000_000,
};

/// Numbers that look like chance and are the same for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }

    /// A name of any bytes that a name may have.
    fn name(&mut self) -> OsString {
        let length = match self.below(10) {
            0 => 255,
            1 => 100,
            _ => 1 + self.below(20),
        };
        let odd = self.one_in(3);
        let name = (0..length).map(|_| {
            loop {
                let byte = if odd {
                    self.below(256) as u8
                } else {
                    b'a' + self.below(26) as u8
                };
                if byte != 0 && byte != b'/' {
                    break byte;
                }
            }
        });
        let name: Vec<u8> = name.collect();
        // These are no names, or mean something else to layers.
        if name == b"." || name == b".." || name.starts_with(b".wh.") {
            return "dots".into();
        }
        OsString::from_vec(name)
    }
}

/// Builds a tree of about `files` files below `root`, which it makes.
fn grow(root: &Path, seed: u64, files: usize) {
    let mut chance = Chance(seed);
    fs::create_dir(root).unwrap();
    let mut directories = vec![(root.to_owned(), 0)];
    let mut plain: Vec<PathBuf> = Vec::new();
    let mut made = Vec::new();
    for _ in 0..files {
        let (parent, depth) = directories[chance.below(directories.len())].clone();
        let path = parent.join(chance.name());
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        match chance.below(12) {
            0 | 1 if depth < 12 => {
                fs::create_dir(&path).unwrap();
                directories.push((path.clone(), depth + 1));
            }
            2 => symlink(OsString::from_vec(chance.name().into_vec()), &path).unwrap(),
            3 if !plain.is_empty() => {
                fs::hard_link(&plain[chance.below(plain.len())], &path).unwrap();
                continue;
            }
            4 => sparse(&path, &mut chance),
            5 => {
                let (kind, device) = chance.of(&[
                    (FileType::CharacterDevice, (1, 3)),
                    (FileType::BlockDevice, (4095, 1_048_575)),
                    (FileType::Fifo, (0, 0)),
                ]);
                let device = rustix::fs::makedev(device.0, device.1);
                mknodat(CWD, &path, kind, Mode::from(0o600), device).unwrap();
            }
            _ => {
                let length = match chance.below(4) {
                    0 => 0,
                    1 => chance.of(&[1, 4031, 4032, 4033, 4095, 4096, 4097, 65_537]),
                    _ => chance.below(9000),
                };
                fs::write(&path, chance.bytes(length)).unwrap();
                plain.push(path.clone());
            }
        }
        made.push(path);
    }
    // Attributes last: what is made in a directory changes its time.
    for path in made.iter().rev() {
        adorn(path, &mut chance);
    }
}

fn sparse(path: &Path, chance: &mut Chance) {
    let file = File::create(path).unwrap();
    for _ in 0..chance.below(4) {
        let (length, offset) = (1 + chance.below(5000), chance.below(1 << 22) as u64);
        file.write_all_at(&chance.bytes(length), offset).unwrap();
    }
    let end = file.metadata().unwrap().len() + chance.below(1 << 20) as u64;
    file.set_len(end).unwrap();
}

/// Gives a file an owner, permissions, attributes and a time of its own.
fn adorn(path: &Path, chance: &mut Chance) {
    let metadata = fs::symlink_metadata(path).unwrap();
    // Owners beyond what a header's octal digits hold, and beyond 2^31.
    let owners = [0, 1000, 2_097_151, 2_097_152, 2_147_483_648, 4_294_967_294];
    lchown(path, Some(chance.of(&owners)), Some(chance.of(&owners))).unwrap();
    if !metadata.is_symlink() {
        let modes = [0o644, 0o000, 0o4755, 0o2755, 0o1777, 0o7777, 0o600];
        fs::set_permissions(path, fs::Permissions::from_mode(chance.of(&modes))).unwrap();
    }
    if metadata.is_file() || metadata.is_dir() {
        let set = |name: &str, value: &[u8]| lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
        if chance.one_in(4) {
            let length = chance.below(200);
            set("user.some", &chance.bytes(length));
            // No '=' in the name: GNU tar writes it as "%3D", Go's archive/tar not at all.
            set("user.with space and \u{fc}", b"a=b\n");
        }
        if chance.one_in(12) {
            set("user.large", &vec![b'x'; 2500]);
        }
        if chance.one_in(10) {
            set("trusted.of-root", b"\0");
        }
        if chance.one_in(8) {
            set("system.posix_acl_access", &acl(chance.below(1 << 31) as u32));
        }
        if metadata.is_dir() && chance.one_in(4) {
            set("system.posix_acl_default", &acl(4_294_967_290));
        }
        if metadata.is_file() && chance.one_in(6) {
            // cap_net_bind_service+ep, for any user, and for the root of a namespace.
            set(
                "security.capability",
                b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            );
            if chance.one_in(2) {
                set(
                    "security.capability",
                    b"\x01\0\0\x03\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xe8\x03\0\0",
                );
            }
        }
    }
    let time = Timespec {
        tv_sec: chance.of(&[-1, -2_000_000_000, 0, 1_700_000_000, 1 << 31, 1 << 33]),
        tv_nsec: chance.of(&[0, 1, 999_999_999, 123_456_000]),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A user's and a mask's entry besides the three that every file has.
fn acl(user: u32) -> Vec<u8> {
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 5, user),
        (4, 4, u32::MAX),
        (16, 5, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// What the kernel shows of the archive when it has become a blob.
fn converted(archive: &Path, work: &Path) -> BTreeMap<PathBuf, Node> {
    let blob = work.join("blob");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&blob)
        .unwrap();
    convert_archive(BufReader::new(File::open(archive).unwrap()), file, LIMITS).unwrap();
    fsck_erofs(&blob);
    let mounted = Mounted::at(&blob, work.join("mounted"));
    let found = tree(&mounted.path);
    drop(mounted);
    fs::remove_file(blob).unwrap();
    found
}

fn archive(root: &Path, path: &Path, options: &[&str]) {
    let posix = [
        "--format=posix",
        "--xattrs",
        "--xattrs-include=*",
        "--create",
        "--file",
    ];
    let arguments = [
        &posix[..],
        &[text(path), "--directory", text(root)],
        options,
        &["."],
    ]
    .concat();
    run("tar", "tar", &arguments);
}

#[test]
fn grown_trees_are_mounted_as_tar_archived_and_unpacks_them() {
    for seed in 1..=6 {
        let work = tempfile::tempdir().unwrap();
        let at = |name: &str| work.path().join(name);
        grow(&at("tree"), seed, 250);
        let expected = tree(&at("tree"));
        for options in [&[][..], &["--sparse"]] {
            archive(&at("tree"), &at("tar"), options);
            assert_same(&expected, &converted(&at("tar"), work.path()));
        }
        // The second tool: what it unpacks of the same archive is the same again.
        fs::create_dir(at("unpacked")).unwrap();
        let unpacking = [
            "--extract",
            "--same-permissions",
            "--same-owner",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
        ];
        let from = ["--directory", text(&at("unpacked")), "--file", text(&at("tar"))].map(str::to_owned);
        let from: Vec<_> = from.iter().map(String::as_str).collect();
        run("tar", "tar", &[&unpacking[..], &from].concat());
        assert_same(&tree(&at("unpacked")), &expected);
    }
}

#[test]
fn grown_trees_are_mounted_as_umoci_unpacks_them() {
    for seed in 11..=13 {
        let work = tempfile::tempdir().unwrap();
        let at = |name: &str| work.path().join(name);
        let image = format!("{}:app", text(&at("layout")));
        let umoci = |arguments: &[&str]| run("umoci", "umoci", arguments);
        umoci(&["init", "--layout", text(&at("layout"))]);
        umoci(&["new", "--image", &image]);
        umoci(&["unpack", "--image", &image, text(&at("bundle"))]);
        grow(&at("bundle/rootfs/tree"), seed, 150);
        umoci(&["repack", "--image", &image, text(&at("bundle"))]);
        umoci(&["unpack", "--image", &image, text(&at("again"))]);
        let blobs = fs::read_dir(at("layout/blobs/sha256"))
            .unwrap()
            .map(|blob| blob.unwrap().path());
        let layer = blobs
            .max_by_key(|blob| fs::metadata(blob).unwrap().len())
            .unwrap();
        run(
            "gzip",
            "sh",
            &["-c", &format!("gzip -dc {} > {}", text(&layer), text(&at("tar")))],
        );
        // The root is in no archive that umoci makes of a tree below it.
        let without_root = |mut nodes: BTreeMap<PathBuf, Node>| {
            nodes.remove(Path::new(""));
            nodes
        };
        let expected = without_root(tree(&at("again/rootfs")));
        assert!(expected.len() > 50, "{} files", expected.len());
        assert_same(&expected, &without_root(converted(&at("tar"), work.path())));
    }
}

#[test]
fn a_directory_of_a_hundred_thousand_files_is_whole() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    let mut chance = Chance(3);
    for index in 0..100_000 {
        let name = format!("{index:05}{}", "x".repeat(chance.below(40)));
        File::create(at("tree").join(name)).unwrap();
    }
    File::open(at("tree"))
        .unwrap()
        .set_modified(UNIX_EPOCH + Duration::from_secs(5))
        .unwrap();
    let expected = tree(&at("tree"));
    assert_eq!(expected.len(), 100_001);
    archive(&at("tree"), &at("tar"), &[]);
    assert_same(&expected, &converted(&at("tar"), work.path()));
}
