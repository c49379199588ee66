//! A file tree as GNU find, stat, sha256sum and getfattr describe it, in or outside of a container.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use crate::{Container, Probe};

/// All that is told about one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Find's letter: f, d, l, b, c, p, s.
    pub kind: String,
    /// Permission bits with setuid, setgid and sticky, in octal.
    pub mode: String,
    /// Owner and group, as numbers.
    pub owner: (String, String),
    /// Bytes; of regular files and links.
    pub size: String,
    /// Last change of the contents, in whole seconds since the epoch.
    pub modified: String,
    /// Target of a symbolic link.
    pub target: String,
    /// Every name of the same file, where it is not a directory.
    pub names: BTreeSet<String>,
    /// Number of links as the file itself says; of anything but directories.
    pub links: String,
    /// Major and minor number of a device, in hexadecimal.
    pub device: String,
    /// SHA-256 of a regular file.
    pub sha256: String,
    /// Extended attributes with their values in hexadecimal.
    pub xattrs: BTreeMap<String, String>,
}

/// A tree by path, relative to its root.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// The entries; the root itself is `""`.
    pub entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// The tree at `root` on the node.
    pub fn on_the_node(root: &str) -> Self {
        let probe = Probe::on_the_node();
        Self::read(root, &probe, |command| {
            let (program, arguments) = command.split_first().expect("a command has a program");
            let output = Command::new(program)
                .args(arguments)
                .output()
                .expect("a tool of the node starts");
            assert!(output.status.success(), "{command:?}: {output:?}");
            output.stdout
        })
    }

    /// The root file system of a container whose image has the layer of `probe`.
    pub fn in_container(container: &Container<'_>, probe: &Probe) -> Self {
        Self::read("/", probe, |command| {
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            let output = container.exec(&words);
            assert!(output.code == 0, "{command:?}: {}", output.error_text());
            output.stdout
        })
    }

    fn read(root: &str, probe: &Probe, run: impl Fn(&[String]) -> Vec<u8>) -> Self {
        let find = |arguments: &[&str]| {
            let mut command = probe.tool("find");
            command.extend([root, "-xdev", "-path"].map(String::from));
            command.push(format!("{}/{}", root.trim_end_matches('/'), Probe::directory()));
            command.extend(["-prune", "-o"].map(String::from));
            command.extend(arguments.iter().map(ToString::to_string));
            command
        };
        let on_each = |test: &[&str], tool: &str, arguments: &[&str]| {
            let mut command = find(test);
            command.push("-exec".into());
            command.extend(probe.tool(tool));
            command.extend(arguments.iter().map(ToString::to_string));
            command.extend(["{}", "+"].map(String::from));
            run(&command)
        };
        let relative = |path: &str| {
            path.strip_prefix(root)
                .unwrap_or(path)
                .trim_start_matches('/')
                .to_owned()
        };

        let mut tree = Self::default();
        let mut inodes = BTreeMap::<String, BTreeSet<String>>::new();
        let listed = run(&find(&[
            "-printf",
            r"%P\0%y\0%m\0%U\0%G\0%s\0%T@\0%l\0%n\0%D:%i\0",
        ]));
        for fields in nul_separated(&listed).chunks_exact(10) {
            let [path, kind, mode, uid, gid, size, modified, target, links, inode] = fields else {
                unreachable!("chunks of ten have ten fields");
            };
            let is_directory = kind == "d";
            if !is_directory {
                inodes.entry(inode.clone()).or_default().insert(path.clone());
            }
            let entry = Entry {
                kind: kind.clone(),
                mode: mode.clone(),
                owner: (uid.clone(), gid.clone()),
                size: if matches!(kind.as_str(), "f" | "l") {
                    size.clone()
                } else {
                    String::new()
                },
                modified: modified.split('.').next().unwrap_or_default().to_owned(),
                target: target.clone(),
                links: if is_directory {
                    String::new()
                } else {
                    links.clone()
                },
                device: inode.clone(),
                ..Entry::default()
            };
            tree.entries.insert(path.clone(), entry);
        }
        for entry in tree.entries.values_mut() {
            entry.names = inodes.get(&entry.device).cloned().unwrap_or_default();
            entry.device = String::new();
        }

        for field in nul_separated(&on_each(&["-type", "f"], "sha256sum", &["--zero"])) {
            let (sum, path) = field.split_once("  ").expect("sha256sum prints a sum and a name");
            tree.entry(&relative(path)).sha256 = sum.into();
        }
        let devices = ["(", "-type", "b", "-o", "-type", "c", ")"];
        for fields in nul_separated(&on_each(&devices, "stat", &["--printf", r"%n\0%t:%T\0"])).chunks_exact(2)
        {
            let [path, device] = fields else {
                unreachable!("chunks of two have two fields")
            };
            tree.entry(&relative(path)).device.clone_from(device);
        }
        let getfattr = [
            "--no-dereference",
            "--dump",
            "--match=-",
            "--encoding=hex",
            "--absolute-names",
        ];
        let mut path = String::new();
        for line in String::from_utf8_lossy(&on_each(&["-true"], "getfattr", &getfattr)).lines() {
            if let Some(name) = line.strip_prefix("# file: ") {
                path = relative(&unescaped(name));
            } else if let Some((name, value)) = line.split_once('=') {
                tree.entry(&path).xattrs.insert(name.into(), value.into());
            }
        }
        tree
    }

    #[track_caller]
    fn entry(&mut self, path: &str) -> &mut Entry {
        self.entries
            .get_mut(path)
            .unwrap_or_else(|| panic!("{path:?} appeared while the tree was read"))
    }

    /// Takes out a path and all below it.
    pub fn prune(&mut self, path: &str) {
        let below = format!("{path}/");
        self.entries
            .retain(|name, _| name != path && !name.starts_with(&below));
    }

    /// What differs, one line for each difference, `self` on the left.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let paths: BTreeSet<&String> = self.entries.keys().chain(other.entries.keys()).collect();
        paths
            .into_iter()
            .filter_map(|path| match (self.entries.get(path), other.entries.get(path)) {
                (Some(one), Some(two)) if one == two => None,
                (Some(one), Some(two)) => Some(format!("/{path}:\n    {one:?}\n    {two:?}")),
                (Some(_), None) => Some(format!("/{path} is only on the left")),
                (None, _) => Some(format!("/{path} is only on the right")),
            })
            .collect()
    }
}

fn nul_separated(bytes: &[u8]) -> Vec<String> {
    let mut fields: Vec<String> = bytes
        .split(|byte| *byte == 0)
        .map(|field| String::from_utf8_lossy(field).into_owned())
        .collect();
    fields.pop();
    fields
}

/// Undoes getfattr's quoting: a backslash and three octal digits.
fn unescaped(name: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        if let Some(byte) = octal {
            bytes.push(byte);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_difference_in_any_property_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        for root in [&one, &two] {
            fs::create_dir(root).unwrap();
            fs::write(root.join("file"), "same").unwrap();
            fs::hard_link(root.join("file"), root.join("link")).unwrap();
            symlink("file", root.join("soft\nlink")).unwrap();
        }
        let read = |root: &std::path::Path| {
            let mut tree = Tree::on_the_node(root.to_str().unwrap());
            for entry in tree.entries.values_mut() {
                entry.modified.clear();
            }
            tree
        };
        assert_eq!(read(&one).differences(&read(&two)), Vec::<String>::new());
        assert_eq!(read(&one).entries.len(), 4);
        assert_eq!(read(&one).entries["file"].names.len(), 2);

        fs::write(two.join("file"), "SAME").unwrap();
        assert_eq!(
            read(&one).differences(&read(&two)).len(),
            2,
            "two names of one changed file"
        );
        fs::write(two.join("file"), "same").unwrap();
        fs::remove_file(two.join("link")).unwrap();
        fs::write(two.join("link"), "same").unwrap();
        assert_eq!(
            read(&one).differences(&read(&two)).len(),
            2,
            "a copy is not a hard link"
        );
        fs::remove_file(two.join("soft\nlink")).unwrap();
        assert!(
            read(&one)
                .differences(&read(&two))
                .contains(&"/soft\nlink is only on the left".to_owned())
        );
    }

    #[test]
    fn names_are_unescaped() {
        assert_eq!(unescaped(r"a\012b\134c"), "a\nb\\c");
        assert_eq!(unescaped(r"end\01"), r"end\01");
    }
}
