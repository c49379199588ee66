//! Archives that no honest builder writes, and the marks that layers have for each other.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use bulkhead_runtime::image::layer::{Converted, convert_archive};
use bulkhead_runtime::image::{LayerError, LayerLimits};
use tar::EntryType;

use crate::build::Archive;
use crate::tools::{Mounted, fsck_erofs};

pub fn convert(archive: &[u8], blob: &Path) -> Result<Converted, LayerError> {
    let limits = LayerLimits {
        bytes: 1 << 40,
        entries: 100_000,
    };
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(blob)
        .unwrap();
    convert_archive(archive, file, limits).map(|(converted, _)| converted)
}

/// The blob of `archive`, mounted.
fn mounted(archive: Archive) -> (tempfile::TempDir, Mounted, Converted) {
    let directory = tempfile::tempdir().unwrap();
    let blob = directory.path().join("blob");
    let converted = convert(&archive.finish(), &blob).unwrap();
    fsck_erofs(&blob);
    let mounted = Mounted::at(&blob, directory.path().join("mounted"));
    (directory, mounted, converted)
}

pub fn refusal(archive: Archive) -> String {
    refusal_of(&archive.finish())
}

pub fn refusal_of(archive: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    convert(archive, &directory.path().join("blob"))
        .expect_err("the archive must be refused")
        .to_string()
}

fn is_whiteout(path: &Path) -> bool {
    let metadata = fs::symlink_metadata(path).unwrap();
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 8];
    matches!(rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value[..]), Ok(1) if value[0] == b'y')
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for path in ["../a", "a/../../b", "a/..", "..", "/../a", "./../a"] {
        let message = refusal(Archive::new().file(path, ""));
        assert!(
            message.contains("leads upwards") && message.contains(path),
            "{message}"
        );
    }
    let up = Archive::new().file("f", "").hard_link("a", "../f");
    assert!(refusal(up).contains("hard link to \"../f\", which leads upwards"));
    for (path, reason) in [
        ("f/g", "not a directory"),
        ("null/g", "not a directory"),
        ("loop/x", "loop of symbolic links"),
    ] {
        let archive = Archive::new()
            .file("f", "")
            .raw(EntryType::Char, "null", "", b"")
            .symlink("loop", "again")
            .symlink("again", "./loop")
            .file(path, "");
        let message = refusal(archive);
        assert!(message.contains(reason), "{path}: {message}");
    }
    let root = Archive::new().symlink("./", "/etc");
    assert!(refusal(root).contains("is the root directory"));
}

#[test]
fn absolute_names_and_links_stay_inside() {
    let (_directory, mounted, _) = mounted(
        Archive::new()
            .file("/etc/absolute", "1")
            .directory("usr/lib/")
            .symlink("lib", "usr/lib")
            .symlink("usr/up", "../../../../../usr")
            .symlink("out", "/../../srv")
            .file("lib/through", "2")
            .file("usr/up/lib/climbed", "3")
            .file("out/made", "4")
            .hard_link("hard", "lib/through")
            .hard_link("/hard-absolute", "/usr/up/lib/climbed"),
    );
    let read = |path: &str| fs::read_to_string(mounted.path.join(path)).unwrap();
    assert_eq!(read("etc/absolute"), "1");
    assert_eq!((read("usr/lib/through"), read("hard")), ("2".into(), "2".into()));
    assert_eq!(
        (read("usr/lib/climbed"), read("hard-absolute")),
        ("3".into(), "3".into())
    );
    assert_eq!(read("srv/made"), "4");
    assert_eq!(
        fs::read_link(mounted.path.join("lib")).unwrap(),
        Path::new("usr/lib")
    );
    assert_eq!(fs::metadata(mounted.path.join("hard")).unwrap().nlink(), 2);
    let implied = fs::metadata(mounted.path.join("etc")).unwrap();
    assert_eq!(
        (implied.mode() & 0o7777, implied.uid(), implied.mtime()),
        (0o755, 0, 0)
    );
}

#[test]
fn hard_links_need_a_target_before_them_in_the_layer() {
    let cases = [
        (
            Archive::new().hard_link("a", "missing"),
            "does not have before it",
        ),
        (
            Archive::new().hard_link("a", "b").file("b", ""),
            "does not have before it",
        ),
        (
            Archive::new().hard_link("a", "no/such/b"),
            "does not have before it",
        ),
        (Archive::new().directory("d").hard_link("a", "d"), "a directory"),
        (Archive::new().hard_link("a", "/"), "a directory"),
        (
            Archive::new().file(".wh.x", "").hard_link("a", "x"),
            "which its layer removes",
        ),
    ];
    for (archive, reason) in cases {
        let message = refusal(archive);
        assert!(message.contains(reason) && message.contains("\"a\""), "{message}");
    }
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let (_directory, mounted, _) = mounted(
        Archive::new()
            .file("file", "old")
            .hard_link("other", "file")
            .file("file", "new")
            .directory("directory")
            .file("directory/kept", "k")
            .directory("directory")
            .directory("doomed")
            .file("doomed/x", "x")
            .hard_link("saved", "doomed/x")
            .symlink("doomed", "saved")
            .symlink("link", "file")
            .directory("link")
            .hard_link("self", "other")
            .hard_link("self", "self"),
    );
    let at = |path: &str| mounted.path.join(path);
    let read = |path: &str| fs::read_to_string(at(path)).unwrap();
    assert_eq!(
        (read("file"), read("other"), read("directory/kept")),
        ("new".into(), "old".into(), "k".into())
    );
    assert_eq!(
        (read("saved"), fs::read_link(at("doomed")).unwrap()),
        ("x".into(), "saved".into())
    );
    assert!(fs::symlink_metadata(at("link")).unwrap().is_dir());
    let links = |path: &str| fs::symlink_metadata(at(path)).unwrap().nlink();
    assert_eq!((links("file"), links("other"), links("saved")), (1, 2, 1));
}

#[test]
fn whiteouts_hide_lower_layers_and_never_their_own() {
    let (_directory, mounted, converted) = mounted(
        Archive::new()
            .file(".wh.gone", "")
            .file("d/.wh.gone-too", "")
            .file(".wh.replaced", "")
            .file("replaced", "by this")
            .file("own", "kept")
            .file(".wh.own", "")
            .directory("renewed")
            .file("renewed/own", "")
            .file(".wh.renewed", "")
            .file(".wh.fresh", "")
            .file("fresh/own", "")
            .file("opaque/own", "")
            .file("opaque/.wh..wh..opq", "")
            .file(".wh..wh.plnk/1.2", "")
            .file(".wh..wh.aufs", "")
            .raw(EntryType::Regular, "with-data/.wh.x", "", &[1; 5000]),
    );
    let at = |path: &str| mounted.path.join(path);
    assert!(is_whiteout(&at("gone")) && is_whiteout(&at("d/gone-too")) && is_whiteout(&at("with-data/x")));
    assert_eq!(fs::read_to_string(at("replaced")).unwrap(), "by this");
    assert_eq!(fs::read_to_string(at("own")).unwrap(), "kept");
    assert!(
        is_opaque(&at("renewed"))
            && is_opaque(&at("fresh"))
            && is_opaque(&at("opaque"))
            && !is_opaque(&at("d"))
    );
    assert!(at("renewed/own").exists() && at("fresh/own").exists() && at("opaque/own").exists());
    let mut names: Vec<_> = fs::read_dir(&mounted.path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    let expected = [
        "d",
        "fresh",
        "gone",
        "opaque",
        "own",
        "renewed",
        "replaced",
        "with-data",
    ];
    assert_eq!(names, expected.map(std::ffi::OsString::from));
    assert!(!converted.hides_lower);

    for path in [".wh.", ".wh..", ".wh...", "d/.wh..."] {
        assert!(
            refusal(Archive::new().file(path, "")).contains("whiteout of no name"),
            "{path}"
        );
    }
    assert!(refusal(Archive::new().file(".wh.d/x", "")).contains("lies in a whiteout"));
    let directory = tempfile::tempdir().unwrap();
    let root = Archive::new().file(".wh..wh..opq", "").finish();
    assert!(
        convert(&root, &directory.path().join("blob"))
            .unwrap()
            .hides_lower
    );
}

#[test]
fn attributes_cannot_give_orders_to_overlayfs() {
    let records: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.system.nfs4_acl", b"?"),
        ("SCHILY.xattr.user.fine", b"1"),
    ];
    let (_directory, mounted, _) = mounted(Archive::new().pax(records).directory("d"));
    let mut names = [0; 1000];
    let length = rustix::fs::llistxattr(mounted.path.join("d"), &mut names[..]).unwrap();
    assert_eq!(&names[..length], b"user.fine\0");

    let long = format!("SCHILY.xattr.user.{}", "x".repeat(256));
    assert!(refusal(Archive::new().pax(&[(&long, b"1")]).file("f", "")).contains("no file system can hold"));
    let huge = vec![b'x'; 70_000];
    assert!(
        refusal(
            Archive::new()
                .pax(&[("SCHILY.xattr.user.a", &huge)])
                .file("f", "")
        )
        .contains("more than")
    );
}

#[test]
fn names_and_numbers_beyond_bounds_are_refused() {
    let long = "n".repeat(256);
    let deep = "d/".repeat(2100);
    let cases: [(&str, &[u8], &str); 9] = [
        ("path", long.as_bytes(), "more than 255"),
        ("path", deep.as_bytes(), "more than 4095"),
        ("path", b"a\0b", "NUL"),
        ("uid", b"4294967296", "32 bits"),
        ("uid", b"-1", "32 bits"),
        ("size", b"99999999999999999999", "not a size"),
        ("size", b"9223372036854775807", "not a size"),
        ("mtime", b"yesterday", "not a number"),
        ("GNU.sparse.map", b"5,1", "sparse"),
    ];
    for (key, value, reason) in cases {
        let message = refusal(Archive::new().pax(&[(key, value)]).file("f", "x"));
        assert!(message.contains(reason), "{key}: {message}");
    }
    assert!(
        refusal(
            Archive::new()
                .pax(&[("linkpath", &[b'x'; 4096])])
                .symlink("l", "t")
        )
        .contains("4095")
    );
    assert!(refusal(Archive::new().symlink("l", "")).contains("no bytes"));
    assert!(
        refusal(Archive::new().raw(EntryType::new(b'M'), "volume", "", b"")).contains("which no image has")
    );

    // A long name of 4 GiB, of which nothing follows.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(4 << 30);
    header.set_cksum();
    assert!(refusal_of(header.as_bytes()).contains("long name of 4294967296 bytes is over 1048576"));
    // A file that claims more than any file system holds.
    header.set_entry_type(EntryType::Regular);
    header.as_mut_bytes()[124..136]
        .copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    header.set_cksum();
    assert!(refusal_of(header.as_bytes()).contains("over what any file system holds"));
}

#[test]
fn deep_paths_are_taken_as_far_as_linux_goes() {
    // 4095 bytes, 2047 directories and a file.
    let deep = format!("{}f", "d/".repeat(2047));
    let directory = tempfile::tempdir().unwrap();
    let blob = directory.path().join("blob");
    let archive = Archive::new()
        .pax(&[("path", deep.as_bytes())])
        .file("f", "deep")
        .finish();
    convert(&archive, &blob).unwrap();
    // Without fsck.erofs, whose stack this overflows.
    let mounted = Mounted::at(&blob, directory.path().join("mounted"));
    // No path reaches it from here: half of the way, and then the rest.
    let half = File::open(mounted.path.join("d/".repeat(1000))).unwrap();
    let file = rustix::fs::openat(
        half,
        format!("{}f", "d/".repeat(1047)),
        rustix::fs::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    );
    assert_eq!(
        std::io::read_to_string(File::from(file.unwrap())).unwrap(),
        "deep"
    );
    let limits = LayerLimits {
        bytes: 1 << 20,
        entries: 2000,
    };
    let file = tempfile::tempfile().unwrap();
    let error = convert_archive(archive.as_slice(), file, limits)
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("more than 2000 entries"), "{error}");
}

#[test]
fn opaque_marks_in_odd_places_mean_what_they_can() {
    let (_directory, mounted, converted) = mounted(
        Archive::new()
            .file("early/.wh..wh..opq", "")
            .directory("early")
            .file("early/own", "")
            .directory("twice")
            .file("twice/.wh..wh..opq", "")
            .file("twice/.wh..wh..opq", "data")
            .directory("as-directory/.wh..wh..opq")
            .symlink("as-link/.wh..wh..opq", "/etc")
            .directory("real")
            .symlink("link", "real")
            .file("link/.wh..wh..opq", "")
            .file("deep/.wh..wh..opq/ignored", ""),
    );
    let at = |path: &str| mounted.path.join(path);
    for opaque in ["early", "twice", "as-directory", "as-link", "real"] {
        assert!(is_opaque(&at(opaque)), "{opaque}");
    }
    assert!(at("early/own").exists() && !is_opaque(&mounted.path) && !converted.hides_lower);
    for hidden in ["early", "twice", "as-directory", "as-link", "real"] {
        assert!(!at(hidden).join(".wh..wh..opq").exists(), "{hidden}");
    }
    let below_file = Archive::new().file("f", "").file("f/.wh..wh..opq", "");
    assert!(refusal(below_file).contains("not a directory"));
    let outside = Archive::new().file("../.wh..wh..opq", "");
    assert!(refusal(outside).contains("leads upwards"));
}

#[test]
fn devices_are_kept_for_the_guest_and_nothing_else() {
    let device = |kind: EntryType, major, minor| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path("device").unwrap();
        header.set_mode(0o4666);
        header.set_size(1 << 30);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        let mut archive = header.as_bytes().to_vec();
        archive.extend(Archive::new().file("behind", "it").finish());
        archive
    };
    let directory = tempfile::tempdir().unwrap();
    let blob = directory.path().join("blob");
    // No data follows a device, whatever its size says.
    convert(&device(EntryType::Block, 8, 0), &blob).unwrap();
    {
        let mounted = Mounted::at(&blob, directory.path().join("mounted"));
        let metadata = fs::symlink_metadata(mounted.path.join("device")).unwrap();
        assert!(metadata.file_type().is_block_device());
        assert_eq!((metadata.rdev(), metadata.len()), (rustix::fs::makedev(8, 0), 0));
        assert_eq!(fs::read_to_string(mounted.path.join("behind")).unwrap(), "it");
    }
    for (major, minor) in [(4096, 0), (0, 1 << 20)] {
        let message = refusal_of(&device(EntryType::Char, major, minor));
        assert!(message.contains("beyond what Linux has"), "{message}");
    }
    // What overlayfs takes for a whiteout, an archive may bring as what it is.
    convert(&device(EntryType::Char, 0, 0), &blob).unwrap();
}

#[test]
fn archives_cut_or_changed_anywhere_end_in_an_error_or_a_blob() {
    let archive = Archive::new()
        .pax(&[("SCHILY.xattr.user.a", b"1"), ("mtime", b"1.5")])
        .file("dir/file", vec![7; 5000])
        .hard_link("hard", "dir/file")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"9000"),
        ])
        .file("sparse", [&b"1\n4096\n5\n"[..], &[0; 503], b"12345"].concat())
        .file("dir/.wh.x", "")
        .finish();
    let directory = tempfile::tempdir().unwrap();
    let blob = directory.path().join("blob");
    convert(&archive, &blob).unwrap();
    for length in (0..archive.len()).step_by(61) {
        let _ = convert(&archive[..length], &blob);
    }
    let mut random = 1_u64;
    for _ in 0..3000 {
        let mut changed = archive.clone();
        for _ in 0..3 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let at = usize::try_from(random >> 33).unwrap() % changed.len();
            changed[at] = (random >> 20) as u8;
        }
        // Headers must pass their checksum to get anywhere.
        for block in changed
            .chunks_mut(512)
            .filter(|block| block[257..262] == *b"ustar")
        {
            let mut header = tar::Header::new_old();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        let _ = convert(&changed, &blob);
    }
}
