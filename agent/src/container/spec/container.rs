//! A container as it was asked for.

use bulkhead_proto::agent;

use super::{ProcessSpec, Resources, SpecError, absolute_path, absolute_paths, without_zero};
use crate::{
    container::mount::{
        options,
        standard::{Mount, Source},
    },
    storage::disks::DiskPart,
};

/// The container's process namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PidNamespace {
    /// Its own.
    Container,
    /// The pod's.
    Pod,
    /// That of this container.
    Target(String),
}

/// A container.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Its name.
    pub id: String,
    /// Lowest first; at least one.
    pub layers: Vec<DiskPart>,
    /// Its first process.
    pub process: ProcessSpec,
    /// Mounts beyond the standard ones.
    pub mounts: Vec<Mount>,
    /// Whether the root is read-only in the end.
    pub readonly_rootfs: bool,
    /// Paths made unreadable.
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    pub readonly_paths: Vec<String>,
    /// Whether the kernel's files are writable and all devices may be used.
    pub privileged: bool,
    /// Which processes it sees.
    pub pid_namespace: PidNamespace,
    /// Its limits.
    pub resources: Resources,
}

impl ContainerSpec {
    /// Parses a request within its bounds.
    pub fn parse(request: agent::CreateContainerRequest) -> Result<Self, SpecError> {
        let pid_namespace = match agent::PidNamespace::try_from(request.pid_namespace) {
            Ok(agent::PidNamespace::Container) => PidNamespace::Container,
            Ok(agent::PidNamespace::Pod) => PidNamespace::Pod,
            Ok(agent::PidNamespace::Target) if request.pid_target.is_empty() => {
                return Err(SpecError::NoTarget);
            }
            Ok(agent::PidNamespace::Target) => PidNamespace::Target(request.pid_target),
            Err(_) => {
                return Err(SpecError::UnknownValue {
                    what: "process namespace",
                    value: request.pid_namespace,
                });
            }
        };
        if request.layers.is_empty() {
            return Err(SpecError::Missing("a layer of the root file system"));
        }
        Ok(Self {
            id: request.container_id,
            layers: parse_layers(request.layers)?,
            process: ProcessSpec::parse(request.process.ok_or(SpecError::Missing("the process"))?)?,
            mounts: request
                .mounts
                .into_iter()
                .map(parse_mount)
                .collect::<Result<_, _>>()?,
            readonly_rootfs: request.readonly_rootfs,
            masked_paths: absolute_paths("masked path", request.masked_paths)?,
            readonly_paths: absolute_paths("read-only path", request.readonly_paths)?,
            privileged: request.privileged,
            pid_namespace,
            resources: Resources::parse(request.resources.unwrap_or_default())?,
        })
    }
}

fn parse_layers(layers: Vec<agent::Layer>) -> Result<Vec<DiskPart>, SpecError> {
    layers
        .into_iter()
        .map(|layer| match layer.partition {
            0 => Err(SpecError::OutOfRange {
                what: "the partition of a layer",
                value: 0,
                range: "1 to 128",
            }),
            partition => Ok(DiskPart {
                serial: layer.disk,
                partition: Some(partition),
            }),
        })
        .collect()
}

fn parse_mount(mount: agent::MountSpec) -> Result<Mount, SpecError> {
    let destination = absolute_path("mount destination", mount.destination)?;
    if destination.split('/').all(|name| name.is_empty() || name == ".") {
        return Err(SpecError::MountOnRoot(destination));
    }
    let is_image = mount.r#type == "image";
    let is_bind = is_image || mount.r#type == "bind";
    let options = options::parse(&mount.options, is_bind).map_err(|source| SpecError::MountOption {
        destination: destination.clone(),
        source,
    })?;
    let source = if is_image {
        if mount.layers.is_empty() {
            return Err(SpecError::Missing("a layer of an image that is mounted"));
        }
        Source::Image {
            layers: parse_layers(mount.layers)?,
            path: without_zero("path in an image", mount.source)?,
        }
    } else if options.bind.is_some() {
        Source::Bind(absolute_path("mount source", mount.source)?)
    } else if mount.r#type.is_empty() {
        return Err(SpecError::Missing("the type of a mount"));
    } else {
        Source::Filesystem {
            kind: without_zero("mount type", mount.r#type)?,
            source: without_zero("mount source", mount.source)?,
        }
    };
    Ok(Mount {
        source,
        destination,
        options,
        follow_links: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> agent::ProcessSpec {
        agent::ProcessSpec {
            args: vec!["sh".to_owned()],
            ..agent::ProcessSpec::default()
        }
    }

    fn request() -> agent::CreateContainerRequest {
        agent::CreateContainerRequest {
            container_id: "c1".to_owned(),
            layers: vec![agent::Layer {
                disk: "image".to_owned(),
                partition: 1,
            }],
            process: Some(process()),
            ..agent::CreateContainerRequest::default()
        }
    }

    fn env(entries: &[&str]) -> Vec<Vec<u8>> {
        entries.iter().map(|entry| entry.as_bytes().to_vec()).collect()
    }

    fn error(change: impl FnOnce(&mut agent::CreateContainerRequest)) -> SpecError {
        let mut request = request();
        change(&mut request);
        ContainerSpec::parse(request).unwrap_err()
    }

    #[test]
    fn a_plain_container_parses() {
        let spec = ContainerSpec::parse(request()).unwrap();
        assert_eq!(spec.pid_namespace, PidNamespace::Container);
        assert_eq!(spec.process.args, [c"sh".to_owned()]);
    }

    #[test]
    fn what_can_never_work_is_told() {
        assert_eq!(
            error(|request| request.layers.clear()),
            SpecError::Missing("a layer of the root file system")
        );
        assert_eq!(
            error(|request| request.process = None),
            SpecError::Missing("the process")
        );
        assert_eq!(
            error(|request| request.process.as_mut().unwrap().args.clear()),
            SpecError::Missing("the program (args)")
        );
        assert_eq!(
            error(|request| request.process.as_mut().unwrap().args.push("a\0b".to_owned())),
            SpecError::ZeroByte("an argument")
        );
        assert!(matches!(
            error(|request| request.process.as_mut().unwrap().cwd = "tmp".to_owned()),
            SpecError::NotAbsolute { what: "cwd", .. }
        ));
        assert!(matches!(
            error(|request| request.process.as_mut().unwrap().env = env(&["=x"])),
            SpecError::BadEnvironment(_)
        ));
        assert!(matches!(
            error(|request| request.layers[0].partition = 0),
            SpecError::OutOfRange { .. }
        ));
        assert_eq!(error(|request| request.pid_namespace = 2), SpecError::NoTarget);
        assert!(matches!(
            error(|request| request.pid_namespace = 9),
            SpecError::UnknownValue { value: 9, .. }
        ));
    }

    #[test]
    fn mounts_need_a_place_and_a_source() {
        let mount = |kind: &str, source: &str, destination: &str| {
            error(|request| {
                request.mounts.push(agent::MountSpec {
                    r#type: kind.to_owned(),
                    source: source.to_owned(),
                    destination: destination.to_owned(),
                    ..agent::MountSpec::default()
                });
            })
        };
        assert!(matches!(mount("bind", "/a", "/"), SpecError::MountOnRoot(_)));
        assert!(matches!(mount("bind", "/a", "//./"), SpecError::MountOnRoot(_)));
        assert!(matches!(mount("bind", "a", "/b"), SpecError::NotAbsolute { .. }));
        assert!(matches!(mount("bind", "/a", "b"), SpecError::NotAbsolute { .. }));
        assert!(matches!(mount("", "tmpfs", "/b"), SpecError::Missing(_)));
        assert!(matches!(mount("image", "", "/b"), SpecError::Missing(_)));
    }
}
