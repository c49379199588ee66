//! What there is on the node that a pod could leave behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Everything countable, by kind, each thing as a line that a person can search for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    things: BTreeSet<(&'static str, String)>,
}

impl Inventory {
    /// What the node has now: processes, mounts, network namespaces and devices, rules of the packet filter, loop devices,
    /// control groups, and the files below `directories`.
    pub fn take(directories: &[PathBuf]) -> Self {
        let mut inventory = Self::default();
        inventory.add_processes();
        inventory.add_mounts();
        inventory.add("interface", names_in(Path::new("/sys/class/net")));
        inventory.add("named network namespace", names_in(Path::new("/run/netns")));
        inventory.add("packet filter rule", packet_filter_rules());
        inventory.add("loop device", loop_devices());
        inventory.add("control group", directories_below(Path::new("/sys/fs/cgroup")));
        for directory in directories {
            inventory.add("file", paths_below(directory));
        }
        inventory
    }

    /// What is here and was not in `before`, one thing a line; empty when nothing was left behind.
    pub fn added_since(&self, before: &Self) -> Vec<String> {
        self.things
            .difference(&before.things)
            .map(|(kind, name)| format!("{kind} {name}"))
            .collect()
    }

    fn add(&mut self, kind: &'static str, names: impl IntoIterator<Item = String>) {
        self.things.extend(names.into_iter().map(|name| (kind, name)));
    }

    /// Processes by what they run and how many of each, since other programs of the node come and go; and the network
    /// namespaces they are in.
    fn add_processes(&mut self) {
        let mut running = BTreeMap::<String, usize>::new();
        for pid in names_in(Path::new("/proc")).filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
            let process = Path::new("/proc").join(&pid);
            // A kernel thread has no executable, and a zombie none any more; but a zombie is something left behind.
            let zombie = fs::read_to_string(process.join("stat")).is_ok_and(|stat| stat.contains(") Z "));
            let Ok(command) = fs::read_to_string(process.join("comm")) else {
                continue;
            };
            let command = command.trim();
            if zombie {
                *running.entry(format!("{command} (zombie)")).or_default() += 1;
            } else if let Ok(program) = fs::read_link(process.join("exe")) {
                *running
                    .entry(format!("{command} ({})", program.display()))
                    .or_default() += 1;
                if let Ok(namespace) = fs::metadata(process.join("ns/net")) {
                    self.add(
                        "network namespace of a process",
                        [format!("net:[{}]", namespace.ino())],
                    );
                }
            }
        }
        for (command, count) in running {
            self.add(
                "process",
                (1..=count).map(|number| format!("{command}, number {number}")),
            );
        }
    }

    /// Mount points of every mount namespace there is, each namespace by its number.
    fn add_mounts(&mut self) {
        let mut seen = BTreeSet::new();
        for pid in names_in(Path::new("/proc")).filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
            let process = Path::new("/proc").join(&pid);
            let Ok(namespace) = fs::metadata(process.join("ns/mnt")) else {
                continue;
            };
            if !seen.insert(namespace.ino()) {
                continue;
            }
            let Ok(mounts) = fs::read_to_string(process.join("mountinfo")) else {
                continue;
            };
            let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
            let mut count = BTreeMap::<&str, usize>::new();
            for point in points {
                let number = count.entry(point).or_default();
                *number += 1;
                self.add(
                    "mount",
                    [format!("{point}, number {number}, in mnt:[{}]", namespace.ino())],
                );
            }
        }
    }
}

/// Rules and chains of both families, without what they have counted.
fn packet_filter_rules() -> Vec<String> {
    let mut rules = Vec::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let output = Command::new(program)
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        rules.extend(lines.map(|line| {
            let rule = line.split(" [").next().unwrap_or_default();
            format!("{rule} ({program})")
        }));
    }
    rules
}

fn loop_devices() -> Vec<String> {
    let devices = names_in(Path::new("/sys/block")).filter(|name| name.starts_with("loop"));
    devices
        .filter(|name| {
            Path::new("/sys/block")
                .join(name)
                .join("loop/backing_file")
                .exists()
        })
        .collect()
}

/// Names in a directory; none where there is no directory.
fn names_in(directory: &Path) -> impl Iterator<Item = String> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => panic!("{}: {error}", directory.display()),
    };
    entries
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn paths_below(directory: &Path) -> Vec<String> {
    walk(directory, true)
}

fn directories_below(directory: &Path) -> Vec<String> {
    walk(directory, false)
}

/// Paths below `directory`, which may vanish while they are listed.
fn walk(directory: &Path, files_too: bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        let Ok(entries) = fs::read_dir(&next) else {
            continue;
        };
        for entry in entries.filter_map(Result::ok) {
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_directory {
                pending.push(entry.path());
            }
            if is_directory || files_too {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_left_behind_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let files = || {
            let mut inventory = Inventory::default();
            inventory.add("file", paths_below(directory.path()));
            inventory
        };
        let before = files();
        fs::create_dir(directory.path().join("pod")).unwrap();
        fs::write(directory.path().join("pod/scratch"), "").unwrap();
        let added = files().added_since(&before);
        assert_eq!(added.len(), 2, "{added:?}");
        assert!(added[1].ends_with("pod/scratch"), "{added:?}");
        fs::remove_dir_all(directory.path().join("pod")).unwrap();
        assert!(files().added_since(&before).is_empty());
    }
}
