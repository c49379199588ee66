//! Compares two trees of files in everything a container could see of them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::Digest as _;

/// Everything about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: &'static str,
    pub permissions: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: (i64, i64),
    pub links: u64,
    pub device: u64,
    /// Digest of a file's content, target of a link.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The first path with the same inode.
    pub same_as: PathBuf,
}

/// Reads the tree below `root`, by path relative to it.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, Node> {
    let mut nodes = BTreeMap::new();
    let mut first_names = HashMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let path = root.join(&relative);
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            pending.extend(names.into_iter().rev().map(|name| relative.join(name)));
        }
        // Overlayfs repeats inode numbers of its layers, so only files that say they have more names are looked up.
        let same_as = match metadata.nlink() {
            1 => relative.clone(),
            _ => first_names
                .entry((metadata.dev(), metadata.ino()))
                .or_insert_with(|| relative.clone())
                .clone(),
        };
        nodes.insert(relative, node(&path, &metadata, same_as));
    }
    // Which name is the first depends on the order of reading, so take the least.
    let mut least: HashMap<PathBuf, PathBuf> = HashMap::new();
    for (path, node) in &nodes {
        least
            .entry(node.same_as.clone())
            .and_modify(|old| *old = old.clone().min(path.clone()))
            .or_insert(path.clone());
    }
    for node in nodes.values_mut() {
        node.same_as = least[&node.same_as].clone();
    }
    nodes
}

fn node(path: &Path, metadata: &fs::Metadata, same_as: PathBuf) -> Node {
    let file_type = metadata.file_type();
    let (kind, content) = if file_type.is_file() {
        let mut hasher = sha2::Sha256::new();
        std::io::copy(&mut fs::File::open(path).unwrap(), &mut Writer(&mut hasher)).unwrap();
        ("file", hasher.finalize().to_vec())
    } else if file_type.is_symlink() {
        (
            "symlink",
            fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(),
        )
    } else if file_type.is_dir() {
        ("directory", Vec::new())
    } else if file_type.is_char_device() {
        ("character device", Vec::new())
    } else if file_type.is_block_device() {
        ("block device", Vec::new())
    } else {
        assert!(file_type.is_fifo(), "{} is a socket", path.display());
        ("pipe", Vec::new())
    };
    Node {
        kind,
        permissions: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        // What a directory's size means is the file system's own business.
        size: if metadata.is_dir() { 0 } else { metadata.len() },
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        links: metadata.nlink(),
        device: metadata.rdev(),
        content,
        xattrs: xattrs(path),
        same_as,
    }
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = OsString::from_vec(name.to_vec());
            let mut value = vec![0; 65_536];
            let length = rustix::fs::lgetxattr(path, &name, &mut value[..]).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect()
}

/// Panics with the differences, if there are any.
pub fn assert_same(expected: &BTreeMap<PathBuf, Node>, actual: &BTreeMap<PathBuf, Node>) {
    let mut differences = Vec::new();
    for path in expected
        .keys()
        .chain(actual.keys().filter(|path| !expected.contains_key(*path)))
    {
        let (expected, actual) = (expected.get(path), actual.get(path));
        if expected != actual {
            differences.push(format!(
                "{}\n  expected {expected:?}\n  actual   {actual:?}",
                path.display()
            ));
        }
    }
    let shown = differences
        .iter()
        .take(20)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        differences.is_empty(),
        "{} files differ, among them\n{shown}",
        differences.len()
    );
}

struct Writer<'a>(&'a mut sha2::Sha256);

impl std::io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
