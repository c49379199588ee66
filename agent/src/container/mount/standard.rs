//! The mounts that every container has, as the OCI runtime specification has them for Linux (config-linux.md, "Default
//! Filesystems" and "Default Devices").

use std::path::PathBuf;

use crate::{
    container::mount::options::{self, MountOptions},
    storage::disks::DiskPart,
};

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A new instance of a file system type, from this device or name.
    Filesystem {
        /// Its type.
        kind: String,
        /// Device or name.
        source: String,
    },
    /// A file or directory of the guest.
    Bind(String),
    /// A file or directory of an image: a path in what its layers, lowest first, are together.
    Image {
        /// Its layers.
        layers: Vec<DiskPart>,
        /// The path; empty for the root.
        path: String,
    },
    /// A file or directory in a tree of the guest that somebody else has made: links are followed within that tree.
    Within {
        /// The tree's root.
        root: PathBuf,
        /// The path; empty for the root.
        path: String,
    },
    /// The container's devpts, which the agent made so that it can take terminals from it.
    Devpts,
}

/// A mount of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What.
    pub source: Source,
    /// Where: an absolute path in the container.
    pub destination: String,
    /// How.
    pub options: MountOptions,
    /// Whether a symbolic link on the way to the destination is followed, within the root. The file systems of the
    /// kernel are put where they belong or nowhere: a link must not place them elsewhere.
    pub follow_links: bool,
}

/// The files of the pod that its containers see in /etc.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFiles {
    /// Path in the guest and in the container.
    pub files: Vec<(String, &'static str)>,
}

/// The standard mounts of a container, in order, but those that `given` replaces: a mount at the same place or above.
pub fn mounts(
    privileged: bool,
    readonly_rootfs: bool,
    shm: &str,
    pod: &PodFiles,
    given: &[Mount],
) -> Vec<Mount> {
    let plain: &[&str] = &["nosuid", "noexec", "nodev"];
    let guarded: &[&str] = if privileged {
        plain
    } else {
        &["nosuid", "noexec", "nodev", "ro"]
    };
    let mut mounts = vec![
        filesystem("proc", "/proc", plain),
        filesystem(
            "tmpfs",
            "/dev",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        Mount {
            source: Source::Devpts,
            destination: "/dev/pts".to_owned(),
            options: parsed(&["nosuid", "noexec"], false),
            follow_links: false,
        },
        bind(shm, "/dev/shm", &[]),
        filesystem("mqueue", "/dev/mqueue", plain),
        filesystem("sysfs", "/sys", guarded),
        filesystem("cgroup2", "/sys/fs/cgroup", guarded),
    ];
    let of_files: &[&str] = if readonly_rootfs { &["ro"] } else { &[] };
    mounts.extend(pod.files.iter().map(|(file, destination)| Mount {
        follow_links: true,
        ..bind(file, destination, of_files)
    }));
    mounts.retain(|mount| {
        !given
            .iter()
            .any(|given| covers(&given.destination, &mount.destination))
    });
    mounts
}

/// Whether a mount at `upper` hides one at `lower`.
pub fn covers(upper: &str, lower: &str) -> bool {
    let names = |path: &'_ str| -> Vec<String> {
        path.split('/')
            .filter(|name| !name.is_empty() && *name != ".")
            .map(str::to_owned)
            .collect()
    };
    names(lower).starts_with(&names(upper))
}

fn filesystem(kind: &str, destination: &str, options: &[&str]) -> Mount {
    Mount {
        source: Source::Filesystem {
            kind: kind.to_owned(),
            source: kind.to_owned(),
        },
        destination: destination.to_owned(),
        options: parsed(options, false),
        follow_links: false,
    }
}

fn bind(source: &str, destination: &str, options: &[&str]) -> Mount {
    Mount {
        source: Source::Bind(source.to_owned()),
        destination: destination.to_owned(),
        options: parsed(options, true),
        follow_links: false,
    }
}

fn parsed(options: &[&str], is_bind: bool) -> MountOptions {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    options::parse(&options, is_bind).expect("the options of standard mounts are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destinations(given: &[&str]) -> Vec<String> {
        let given: Vec<Mount> = given.iter().map(|path| bind("/src", path, &[])).collect();
        let pod = PodFiles {
            files: vec![("/run/pod/etc/hosts".to_owned(), "/etc/hosts")],
        };
        mounts(false, false, "/run/pod/shm", &pod, &given)
            .into_iter()
            .map(|mount| mount.destination)
            .collect()
    }

    #[test]
    fn a_given_mount_replaces_the_standard_ones_at_and_below_it() {
        assert!(destinations(&[]).contains(&"/etc/hosts".to_owned()));
        assert!(!destinations(&["/etc/hosts"]).contains(&"/etc/hosts".to_owned()));
        assert!(!destinations(&["/etc"]).contains(&"/etc/hosts".to_owned()));
        assert!(destinations(&["/etc/hosts2", "/et"]).contains(&"/etc/hosts".to_owned()));
        let without_dev = destinations(&["//dev/"]);
        assert!(
            without_dev.iter().all(|path| !path.starts_with("/dev")),
            "{without_dev:?}"
        );
        assert!(without_dev.contains(&"/proc".to_owned()));
    }

    #[test]
    fn only_a_privileged_container_may_write_to_the_kernel() {
        use rustix::mount::MountAttrFlags;
        for (privileged, read_only) in [(false, true), (true, false)] {
            for mount in mounts(privileged, false, "/shm", &PodFiles::default(), &[]) {
                if mount.destination.starts_with("/sys") {
                    let is_read_only = mount
                        .options
                        .mount
                        .set
                        .contains(MountAttrFlags::MOUNT_ATTR_RDONLY);
                    assert_eq!(is_read_only, read_only, "{}", mount.destination);
                }
            }
        }
    }
}
