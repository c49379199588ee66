//! What the host asks for, parsed once into what cannot be wrong any more.

use std::ffi::CString;

use bulkhead_proto::agent;
use rustix::{
    process::{Resource, Rlimit},
    thread::CapabilitySet,
};

use super::{
    mount::{
        options::{self, OptionError},
        standard::{Mount, Source},
    },
    user::WantedUser,
};
use crate::io::streams::StreamSet;

/// A request that can never work.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A part that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Text that Linux takes as a C string.
    #[error("{0} contains a zero byte")]
    ZeroByte(&'static str),
    /// A path that would depend on a working directory.
    #[error("{what} {path:?} is not an absolute path")]
    NotAbsolute {
        /// Of what.
        what: &'static str,
        /// As given.
        path: String,
    },
    /// A mount that would hide the container from itself.
    #[error("a mount on {0:?} would hide the whole root file system")]
    MountOnRoot(String),
    /// An option of a mount.
    #[error("mount on {destination}")]
    MountOption {
        /// Where the mount goes.
        destination: String,
        /// Which option and why.
        #[source]
        source: OptionError,
    },
    /// An unknown name.
    #[error("there is no capability {0:?}; names are those of capabilities(7) without CAP_")]
    UnknownCapability(String),
    /// An unknown name.
    #[error("there is no resource limit {0:?}; names are those of setrlimit(2), such as RLIMIT_NOFILE")]
    UnknownLimit(String),
    /// A limit above its ceiling.
    #[error("{name}: the soft limit {soft} is above the hard limit {hard}")]
    SoftAboveHard {
        /// Which.
        name: String,
        /// As given.
        soft: u64,
        /// As given.
        hard: u64,
    },
    /// Out of the kernel's range.
    #[error("{what} is {value}, outside of {range}")]
    OutOfRange {
        /// Which.
        what: &'static str,
        /// As given.
        value: i64,
        /// What it may be.
        range: &'static str,
    },
    /// Entries of an environment have a name.
    #[error("environment entry {0:?} is not NAME=value")]
    BadEnvironment(String),
    /// A number that no message has.
    #[error("there is no {what} {value}")]
    UnknownValue {
        /// Of which kind.
        what: &'static str,
        /// As given.
        value: i32,
    },
    /// A name that is needed.
    #[error("a container that joins another's process namespace needs pid_target")]
    NoTarget,
    /// A control file outside of the group.
    #[error("{0:?} is not the name of a control file")]
    BadControlFile(String),
}

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

/// One image layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSource {
    /// Serial of the disk.
    pub disk: String,
    /// GPT partition, from 1.
    pub partition: u32,
}

/// A container.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Its name.
    pub id: String,
    /// Lowest first; at least one.
    pub layers: Vec<LayerSource>,
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

/// The sets of capabilities(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What can ever be had again.
    pub bounding: CapabilitySet,
    /// What may be made effective.
    pub permitted: CapabilitySet,
    /// What counts.
    pub effective: CapabilitySet,
    /// What an executed file may keep.
    pub inheritable: CapabilitySet,
    /// What an executed file keeps.
    pub ambient: CapabilitySet,
}

/// A process.
#[derive(Clone, Debug)]
pub struct ProcessSpec {
    /// Program and arguments; at least one.
    pub args: Vec<CString>,
    /// Environment, each name once.
    pub env: Vec<CString>,
    /// Working directory; `None` for "/" or what is inherited.
    pub cwd: Option<CString>,
    /// Who it is; `None` for root or what is inherited.
    pub user: Option<WantedUser>,
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// Which of its streams are connected.
    pub streams: StreamSet,
    /// What it may do; `None` for nothing or what is inherited.
    pub capabilities: Option<Capabilities>,
    /// Whether it can never gain more than it has.
    pub no_new_privileges: bool,
    /// Limits of setrlimit(2).
    pub limits: Vec<ResourceLimit>,
    /// How soon the kernel ends it for want of memory.
    pub oom_score_adj: Option<i32>,
}

/// One limit.
#[derive(Clone, Debug)]
pub struct ResourceLimit {
    /// Which.
    pub resource: Resource,
    /// Soft and hard.
    pub limit: Rlimit,
}

/// Limits of a control group: its files and what is written to them, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// File name and value.
    pub files: Vec<(String, String)>,
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
            layers: request
                .layers
                .into_iter()
                .map(|layer| match layer.partition {
                    0 => Err(SpecError::OutOfRange {
                        what: "the partition of a layer",
                        value: 0,
                        range: "1 to 128",
                    }),
                    partition => Ok(LayerSource {
                        disk: layer.disk,
                        partition,
                    }),
                })
                .collect::<Result<_, _>>()?,
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

fn parse_mount(mount: agent::MountSpec) -> Result<Mount, SpecError> {
    let destination = absolute_path("mount destination", mount.destination)?;
    if destination.split('/').all(|name| name.is_empty() || name == ".") {
        return Err(SpecError::MountOnRoot(destination));
    }
    let options =
        options::parse(&mount.options, mount.r#type == "bind").map_err(|source| SpecError::MountOption {
            destination: destination.clone(),
            source,
        })?;
    let source = if options.bind.is_some() {
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

impl ProcessSpec {
    /// Parses a message within its bounds.
    pub fn parse(process: agent::ProcessSpec) -> Result<Self, SpecError> {
        if process.args.first().is_none_or(String::is_empty) {
            return Err(SpecError::Missing("the program (args)"));
        }
        Ok(Self {
            args: process
                .args
                .into_iter()
                .map(|argument| c_string("an argument", argument))
                .collect::<Result<_, _>>()?,
            env: environment(process.env)?,
            cwd: match process.cwd.as_str() {
                "" => None,
                _ => Some(c_string("cwd", absolute_path("cwd", process.cwd)?)?),
            },
            user: process.user.map(|user| WantedUser {
                uid: user.uid,
                username: user.username,
                gid: user.gid,
                groupname: user.groupname,
                supplemental_groups: user.supplemental_groups,
                merge_image_groups: user.merge_image_groups,
            }),
            terminal: process.terminal,
            streams: StreamSet {
                stdin: process.stdin,
                stdout: process.stdout,
                stderr: process.stderr && !process.terminal,
            },
            capabilities: process.capabilities.as_ref().map(capabilities).transpose()?,
            no_new_privileges: process.no_new_privileges,
            limits: process
                .rlimits
                .into_iter()
                .map(resource_limit)
                .collect::<Result<_, _>>()?,
            oom_score_adj: match process.oom_score_adj {
                Some(value) if !(-1000..=1000).contains(&value) => {
                    return Err(SpecError::OutOfRange {
                        what: "oom_score_adj",
                        value: value.into(),
                        range: "-1000 to 1000",
                    });
                }
                value => value,
            },
        })
    }

    /// Fills in what is left out from the first process's own.
    pub fn inherit(&mut self, first: &Self) {
        let own = std::mem::take(&mut self.env);
        self.env = merge_environment(first.env.iter().cloned().chain(own));
        if self.cwd.is_none() {
            self.cwd.clone_from(&first.cwd);
        }
        if self.capabilities.is_none() {
            self.capabilities = first.capabilities;
        }
        if self.limits.is_empty() {
            self.limits.clone_from(&first.limits);
        }
        self.oom_score_adj = self.oom_score_adj.or(first.oom_score_adj);
        self.no_new_privileges |= first.no_new_privileges;
    }

    /// The value of an environment variable.
    pub fn variable(&self, name: &str) -> Option<&[u8]> {
        self.env
            .iter()
            .find_map(|entry| entry.to_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }
}

fn environment(entries: Vec<Vec<u8>>) -> Result<Vec<CString>, SpecError> {
    let mut environment = Vec::with_capacity(entries.len());
    for entry in entries {
        if entry
            .iter()
            .position(|byte| *byte == b'=')
            .is_none_or(|at| at == 0)
        {
            let text = String::from_utf8_lossy(&entry);
            return Err(SpecError::BadEnvironment(text.chars().take(64).collect()));
        }
        environment.push(CString::new(entry).map_err(|_| SpecError::ZeroByte("an environment entry"))?);
    }
    Ok(merge_environment(environment.into_iter()))
}

/// Keeps the last of entries with the same name, at the place of the first.
fn merge_environment(entries: impl Iterator<Item = CString>) -> Vec<CString> {
    let mut merged: Vec<CString> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for entry in entries {
        let bytes = entry.to_bytes();
        let end = bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len());
        let name = bytes.get(..end).unwrap_or_default().to_vec();
        if let Some(earlier) = places.get(&name).and_then(|place: &usize| merged.get_mut(*place)) {
            *earlier = entry;
        } else {
            places.insert(name, merged.len());
            merged.push(entry);
        }
    }
    merged
}

fn capabilities(names: &agent::Capabilities) -> Result<Capabilities, SpecError> {
    let set = |names: &[String]| {
        names.iter().try_fold(CapabilitySet::empty(), |set, name| {
            CapabilitySet::from_name(name)
                .map(|capability| set | capability)
                .ok_or_else(|| SpecError::UnknownCapability(name.clone()))
        })
    };
    Ok(Capabilities {
        bounding: set(&names.bounding)?,
        permitted: set(&names.permitted)?,
        effective: set(&names.effective)?,
        inheritable: set(&names.inheritable)?,
        ambient: set(&names.ambient)?,
    })
}

impl Default for Capabilities {
    /// None at all.
    fn default() -> Self {
        let none = CapabilitySet::empty();
        Self {
            bounding: none,
            permitted: none,
            effective: none,
            inheritable: none,
            ambient: none,
        }
    }
}

fn resource_limit(limit: agent::Rlimit) -> Result<ResourceLimit, SpecError> {
    let resource = match limit.name.as_str() {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        _ => return Err(SpecError::UnknownLimit(limit.name)),
    };
    if limit.soft > limit.hard {
        return Err(SpecError::SoftAboveHard {
            name: limit.name,
            soft: limit.soft,
            hard: limit.hard,
        });
    }
    let finite = |value: u64| (value != u64::MAX).then_some(value);
    Ok(ResourceLimit {
        resource,
        limit: Rlimit {
            current: finite(limit.soft),
            maximum: finite(limit.hard),
        },
    })
}

impl Resources {
    fn parse(resources: agent::Resources) -> Result<Self, SpecError> {
        let mut files = Vec::new();
        let mut set = |file: &str, value: String| files.push((file.to_owned(), value));
        if let Some(weight) = resources.cpu_weight {
            if !(1..=10_000).contains(&weight) {
                return Err(SpecError::OutOfRange {
                    what: "cpu_weight",
                    value: i64::try_from(weight).unwrap_or(i64::MAX),
                    range: "1 to 10000",
                });
            }
            set("cpu.weight", weight.to_string());
        }
        match (resources.cpu_quota_us, resources.cpu_period_us) {
            (None, None) => {}
            (Some(quota), None) => set("cpu.max", quota.to_string()),
            (Some(quota), Some(period)) => set("cpu.max", format!("{quota} {period}")),
            (None, Some(period)) => set("cpu.max", format!("max {period}")),
        }
        if let Some(bytes) = resources.memory_limit_bytes {
            set("memory.max", bytes.to_string());
        }
        if let Some(bytes) = resources.memory_swap_bytes {
            set("memory.swap.max", bytes.to_string());
        }
        if let Some(processes) = resources.pids_limit {
            set("pids.max", processes.to_string());
        }
        let mut unified: Vec<(String, String)> = resources.unified.into_iter().collect();
        unified.sort();
        for (file, value) in unified {
            // A plain name with a controller before the dot, and none of those that move or kill processes.
            let plain = file
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
            let of_controller = file.split_once('.').is_some_and(|(controller, rest)| {
                !controller.is_empty() && controller != "cgroup" && !rest.is_empty()
            });
            if !plain || !of_controller {
                return Err(SpecError::BadControlFile(file));
            }
            files.push((file, value));
        }
        Ok(Self { files })
    }
}

fn absolute_paths(what: &'static str, paths: Vec<String>) -> Result<Vec<String>, SpecError> {
    paths.into_iter().map(|path| absolute_path(what, path)).collect()
}

fn absolute_path(what: &'static str, path: String) -> Result<String, SpecError> {
    if !path.starts_with('/') {
        return Err(SpecError::NotAbsolute { what, path });
    }
    without_zero(what, path)
}

fn without_zero(what: &'static str, text: String) -> Result<String, SpecError> {
    if text.contains('\0') {
        return Err(SpecError::ZeroByte(what));
    }
    Ok(text)
}

fn c_string(what: &'static str, text: String) -> Result<CString, SpecError> {
    CString::new(text).map_err(|_| SpecError::ZeroByte(what))
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
                    options: Vec::new(),
                });
            })
        };
        assert!(matches!(mount("bind", "/a", "/"), SpecError::MountOnRoot(_)));
        assert!(matches!(mount("bind", "/a", "//./"), SpecError::MountOnRoot(_)));
        assert!(matches!(mount("bind", "a", "/b"), SpecError::NotAbsolute { .. }));
        assert!(matches!(mount("bind", "/a", "b"), SpecError::NotAbsolute { .. }));
        assert!(matches!(mount("", "tmpfs", "/b"), SpecError::Missing(_)));
    }

    #[test]
    fn capabilities_and_limits_are_known_by_name() {
        let mut spec = process();
        spec.capabilities = Some(agent::Capabilities {
            bounding: vec!["NET_ADMIN".to_owned(), "CHOWN".to_owned()],
            ..agent::Capabilities::default()
        });
        spec.rlimits = vec![agent::Rlimit {
            name: "RLIMIT_NOFILE".to_owned(),
            soft: 10,
            hard: u64::MAX,
        }];
        let parsed = ProcessSpec::parse(spec.clone()).unwrap();
        assert_eq!(
            parsed.capabilities.unwrap().bounding,
            CapabilitySet::NET_ADMIN | CapabilitySet::CHOWN
        );
        assert_eq!(parsed.limits[0].limit.current, Some(10));
        assert_eq!(parsed.limits[0].limit.maximum, None);

        spec.rlimits[0].soft = 11;
        spec.rlimits[0].hard = 10;
        assert!(matches!(
            ProcessSpec::parse(spec.clone()),
            Err(SpecError::SoftAboveHard { .. })
        ));
        spec.rlimits[0].name = "NOFILE".to_owned();
        assert!(matches!(
            ProcessSpec::parse(spec.clone()),
            Err(SpecError::UnknownLimit(_))
        ));
        spec.capabilities.as_mut().unwrap().ambient = vec!["CAP_CHOWN".to_owned()];
        assert!(matches!(
            ProcessSpec::parse(spec),
            Err(SpecError::UnknownCapability(name)) if name == "CAP_CHOWN"
        ));
    }

    #[test]
    fn the_last_entry_of_a_name_counts() {
        let mut spec = process();
        spec.env = env(&["A=1", "B=2", "A=3"]);
        let first = ProcessSpec::parse(spec.clone()).unwrap();
        assert_eq!(first.env, [c"A=3".to_owned(), c"B=2".to_owned()]);
        assert_eq!(first.variable("B"), Some(&b"2"[..]));
        assert_eq!(first.variable("BB"), None);

        spec.env = env(&["B=9", "C=x=y"]);
        spec.args = vec!["id".to_owned()];
        let mut second = ProcessSpec::parse(spec).unwrap();
        second.inherit(&first);
        assert_eq!(
            second.env,
            [c"A=3".to_owned(), c"B=9".to_owned(), c"C=x=y".to_owned()]
        );
    }

    #[test]
    fn resources_become_control_files_in_order() {
        let resources = |resources| Resources::parse(resources).map(|parsed| parsed.files);
        assert_eq!(
            resources(agent::Resources {
                cpu_weight: Some(79),
                cpu_quota_us: Some(50_000),
                cpu_period_us: Some(100_000),
                memory_limit_bytes: Some(1 << 20),
                memory_swap_bytes: Some(0),
                pids_limit: Some(7),
                unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
            })
            .unwrap(),
            [
                ("cpu.weight", "79"),
                ("cpu.max", "50000 100000"),
                ("memory.max", "1048576"),
                ("memory.swap.max", "0"),
                ("pids.max", "7"),
                ("memory.oom.group", "1")
            ]
            .map(|(file, value)| (file.to_owned(), value.to_owned()))
        );
        for bad in [
            "../memory.max",
            "memory/max",
            "cgroup.procs",
            "memory",
            "",
            ".max",
            "memory.",
        ] {
            assert_eq!(
                resources(agent::Resources {
                    unified: [(bad.to_owned(), "1".to_owned())].into(),
                    ..agent::Resources::default()
                }),
                Err(SpecError::BadControlFile(bad.to_owned())),
                "{bad}"
            );
        }
    }
}
