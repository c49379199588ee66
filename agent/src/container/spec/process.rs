//! A process as it was asked for.

use std::{collections::HashMap, ffi::CString};

use bulkhead_proto::agent;
use rustix::{
    process::{Resource, Rlimit},
    thread::CapabilitySet,
};

use super::{SpecError, absolute_path, c_string};
use crate::{container::user::WantedUser, io::streams::StreamSet};

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

/// One limit.
#[derive(Clone, Debug)]
pub struct ResourceLimit {
    /// Which.
    pub resource: Resource,
    /// Soft and hard.
    pub limit: Rlimit,
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
    let mut places = HashMap::new();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> agent::ProcessSpec {
        agent::ProcessSpec {
            args: vec!["sh".to_owned()],
            ..agent::ProcessSpec::default()
        }
    }

    fn env(entries: &[&str]) -> Vec<Vec<u8>> {
        entries.iter().map(|entry| entry.as_bytes().to_vec()).collect()
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
}
