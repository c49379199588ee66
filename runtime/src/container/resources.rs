//! Limits of a container, from CRI's fields to control group files of the guest, at its start and later.

use bulkhead_proto::{agent, cri::LinuxContainerResources};

use crate::refusal::Refusal;

/// The kernel's default period, in microseconds.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// The limits that `field` of a request asks for, in the agent's terms. Zero means "not said" everywhere, as CRI has it.
///
/// # Errors
///
/// [`Refusal`] for what a guest cannot have, and for numbers that mean nothing.
pub(super) fn resources(field: &str, asked: &LinuxContainerResources) -> Result<agent::Resources, Refusal> {
    for (name, value) in [
        ("cpuset_cpus", &asked.cpuset_cpus),
        ("cpuset_mems", &asked.cpuset_mems),
    ] {
        if !value.is_empty() {
            return Err(Refusal::not_yet(
                format!("{field}.{name}"),
                format!(
                    "{value:?} names processors or memory nodes of the host, to which a pod is not pinned"
                ),
            ));
        }
    }
    if let Some(pages) = asked.hugepage_limits.iter().find(|pages| pages.limit > 0) {
        return Err(Refusal::not_yet(
            format!("{field}.hugepage_limits"),
            format!("{} pages of {} bytes cannot be had", pages.page_size, pages.limit),
        ));
    }
    for (name, value, least) in [
        ("cpu_period", asked.cpu_period, 0),
        ("cpu_quota", asked.cpu_quota, -1),
        ("cpu_shares", asked.cpu_shares, 0),
        ("memory_limit_in_bytes", asked.memory_limit_in_bytes, -1),
        ("memory_swap_limit_in_bytes", asked.memory_swap_limit_in_bytes, -1),
    ] {
        if value < least {
            return Err(Refusal::invalid(
                format!("{field}.{name}"),
                format!("{value} is less than {least}, the least that means something"),
            ));
        }
    }
    if !(-1000..=1000).contains(&asked.oom_score_adj) {
        return Err(Refusal::invalid(
            format!("{field}.oom_score_adj"),
            format!("{} is not between -1000 and 1000", asked.oom_score_adj),
        ));
    }
    for name in asked.unified.keys() {
        let good = name.contains('.')
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && !name.starts_with("cgroup.");
        if !good {
            return Err(Refusal::invalid(
                format!("{field}.unified"),
                format!("{name:?} is no limit of a control group, such as \"memory.high\""),
            ));
        }
    }
    let memory_limit = positive(asked.memory_limit_in_bytes);
    Ok(agent::Resources {
        cpu_weight: positive(asked.cpu_shares).map(cpu_weight),
        cpu_quota_us: positive(asked.cpu_quota),
        cpu_period_us: positive(asked.cpu_quota)
            .map(|_| positive(asked.cpu_period).unwrap_or(DEFAULT_PERIOD_US)),
        memory_limit_bytes: memory_limit,
        memory_swap_bytes: swap(field, memory_limit, asked.memory_swap_limit_in_bytes)?,
        pids_limit: None,
        unified: asked.unified.clone(),
    })
}

/// What is in force after an update: what it says, and where it says nothing (0, empty) what was before.
pub(super) fn merged(
    before: &LinuxContainerResources,
    update: &LinuxContainerResources,
) -> LinuxContainerResources {
    let either = |new: i64, old: i64| if new == 0 { old } else { new };
    let memory_limit_in_bytes = either(update.memory_limit_in_bytes, before.memory_limit_in_bytes);
    // The limit of both moves with that of memory, so that there is as much swap as before.
    let swap = before.memory_swap_limit_in_bytes;
    let moved = match (before.memory_limit_in_bytes, memory_limit_in_bytes) {
        (old @ 1.., new @ 1..) if swap > 0 => swap.saturating_sub(old).saturating_add(new),
        (_, -1) if swap > 0 => -1,
        _ => swap,
    };
    let mut unified = before.unified.clone();
    unified.extend(update.unified.clone());
    LinuxContainerResources {
        cpu_period: either(update.cpu_period, before.cpu_period),
        cpu_quota: either(update.cpu_quota, before.cpu_quota),
        cpu_shares: either(update.cpu_shares, before.cpu_shares),
        memory_limit_in_bytes,
        memory_swap_limit_in_bytes: either(update.memory_swap_limit_in_bytes, moved),
        oom_score_adj: if update.oom_score_adj == 0 {
            before.oom_score_adj
        } else {
            update.oom_score_adj
        },
        cpuset_cpus: update.cpuset_cpus.clone(),
        cpuset_mems: update.cpuset_mems.clone(),
        hugepage_limits: update.hugepage_limits.clone(),
        unified,
    }
}

/// The limits in the agent's terms for a container that has some already: what is unlimited is said, so that a limit before
/// goes.
///
/// # Errors
///
/// As [`resources`].
pub(super) fn changed(field: &str, wanted: &LinuxContainerResources) -> Result<agent::Resources, Refusal> {
    let mut limits = resources(field, wanted)?;
    if wanted.cpu_quota == -1 {
        limits.cpu_period_us = Some(positive(wanted.cpu_period).unwrap_or(DEFAULT_PERIOD_US));
    }
    if wanted.memory_limit_in_bytes == -1 {
        limits.memory_limit_bytes = Some(u64::MAX);
    }
    if wanted.memory_swap_limit_in_bytes == -1 {
        limits.memory_swap_bytes = Some(u64::MAX);
    }
    Ok(limits)
}

fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|value| *value > 0)
}

/// CRI's limit is of memory and swap together, cgroup v2's of swap alone. Memory limited and nothing said of swap means
/// none.
fn swap(field: &str, memory: Option<u64>, both: i64) -> Result<Option<u64>, Refusal> {
    match (memory, both) {
        (_, -1) | (None, 0) => Ok(None),
        (Some(_), 0) => Ok(Some(0)),
        (memory, both) => {
            let swap = u64::try_from(both)
                .ok()
                .and_then(|both| both.checked_sub(memory.unwrap_or(0)));
            swap.map(Some).ok_or_else(|| {
                Refusal::invalid(
                    format!("{field}.memory_swap_limit_in_bytes"),
                    format!("{both} is less than memory_limit_in_bytes; it is the limit of both together"),
                )
            })
        }
    }
}

/// `cpu.weight` of CPU shares: 2 → 1, 1024 → 100, 262144 → 10000, and smooth between, so that what was the default stays
/// the default. The formula is that of the OCI runtimes: 10^((l² + 125 l) / 612 − 7 / 34) with l = log2(shares).
fn cpu_weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    #[expect(clippy::cast_precision_loss, reason = "at most 2^18")]
    let l = (shares as f64).log2();
    let weight = 10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the clamp keeps it in 1 to 10000"
    )]
    let weight = weight.ceil().clamp(1.0, 10_000.0) as u64;
    weight
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::cri::HugepageLimit;

    use super::*;

    fn of(change: impl FnOnce(&mut LinuxContainerResources)) -> Result<agent::Resources, Refusal> {
        let mut asked = LinuxContainerResources::default();
        change(&mut asked);
        resources("resources", &asked)
    }

    #[test]
    fn nothing_said_is_nothing_set() {
        assert_eq!(of(|_| {}).unwrap(), agent::Resources::default());
        assert_eq!(
            of(|asked| asked.cpu_quota = -1).unwrap(),
            agent::Resources::default()
        );
    }

    #[test]
    fn shares_become_a_weight() {
        for (shares, weight) in [(1, 1), (2, 1), (1024, 100), (262_144, 10_000), (1 << 40, 10_000)] {
            assert_eq!(
                of(|asked| asked.cpu_shares = shares).unwrap().cpu_weight,
                Some(weight),
                "{shares}"
            );
        }
        let weights: Vec<_> = [2, 10, 100, 512, 2048, 100_000]
            .iter()
            .map(|shares| cpu_weight(*shares))
            .collect();
        assert!(weights.is_sorted(), "{weights:?}");
    }

    #[test]
    fn an_update_changes_what_it_says_and_nothing_else() {
        let before = LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            memory_limit_in_bytes: 100,
            memory_swap_limit_in_bytes: 130,
            oom_score_adj: 5,
            unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
            ..LinuxContainerResources::default()
        };
        assert_eq!(merged(&before, &LinuxContainerResources::default()), before);
        let memory = |limit, both| {
            let update = LinuxContainerResources {
                memory_limit_in_bytes: limit,
                memory_swap_limit_in_bytes: both,
                ..LinuxContainerResources::default()
            };
            let limits = changed("linux", &merged(&before, &update)).unwrap();
            (limits.memory_limit_bytes, limits.memory_swap_bytes)
        };
        assert_eq!(memory(200, 0), (Some(200), Some(30)));
        assert_eq!(memory(200, 200), (Some(200), Some(0)));
        assert_eq!(memory(-1, 0), (Some(u64::MAX), Some(u64::MAX)));
        assert_eq!(memory(0, -1), (Some(100), Some(u64::MAX)));
        let unlimited = LinuxContainerResources {
            cpu_quota: -1,
            ..LinuxContainerResources::default()
        };
        let limits = changed("linux", &merged(&before, &unlimited)).unwrap();
        assert_eq!((limits.cpu_quota_us, limits.cpu_period_us), (None, Some(100_000)));
        assert_eq!(limits.unified["memory.oom.group"], "1");
    }

    #[test]
    fn a_quota_has_a_period() {
        let limits = of(|asked| asked.cpu_quota = 50_000).unwrap();
        assert_eq!(
            (limits.cpu_quota_us, limits.cpu_period_us),
            (Some(50_000), Some(100_000))
        );
        let limits = of(|asked| (asked.cpu_quota, asked.cpu_period) = (5_000, 10_000)).unwrap();
        assert_eq!(
            (limits.cpu_quota_us, limits.cpu_period_us),
            (Some(5_000), Some(10_000))
        );
    }

    #[test]
    fn swap_is_what_the_limit_of_both_leaves() {
        let of = |memory, both| {
            of(|asked| (asked.memory_limit_in_bytes, asked.memory_swap_limit_in_bytes) = (memory, both))
                .map(|limits| limits.memory_swap_bytes)
        };
        assert_eq!(of(100, 0).unwrap(), Some(0));
        assert_eq!(of(100, 100).unwrap(), Some(0));
        assert_eq!(of(100, 150).unwrap(), Some(50));
        assert_eq!(of(100, -1).unwrap(), None);
        assert_eq!(of(0, 0).unwrap(), None);
        assert!(of(100, 50).is_err());
    }

    #[test]
    fn numbers_below_what_means_something_are_refused() {
        let refused = of(|asked| asked.memory_limit_in_bytes = -5)
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("memory_limit_in_bytes") && refused.contains("-5"),
            "{refused}"
        );
        assert!(of(|asked| asked.cpu_shares = -1).is_err());
        assert!(of(|asked| asked.cpu_quota = -2).is_err());
        of(|asked| asked.memory_limit_in_bytes = -1).unwrap();
    }

    #[test]
    fn what_a_guest_cannot_have_is_refused_by_name() {
        for (change, field) in [
            (
                Box::new(|asked: &mut LinuxContainerResources| asked.cpuset_cpus = "0-1".into())
                    as Box<dyn FnOnce(&mut _)>,
                "cpuset_cpus",
            ),
            (
                Box::new(|asked: &mut LinuxContainerResources| {
                    asked.hugepage_limits = vec![HugepageLimit {
                        page_size: "2MB".into(),
                        limit: 1,
                    }];
                }),
                "hugepage_limits",
            ),
            (
                Box::new(|asked: &mut LinuxContainerResources| asked.oom_score_adj = 1001),
                "oom_score_adj",
            ),
            (
                Box::new(|asked: &mut LinuxContainerResources| {
                    asked.unified.insert("../memory.max".into(), "1".into());
                }),
                "unified",
            ),
            (
                Box::new(|asked: &mut LinuxContainerResources| {
                    asked.unified.insert("cgroup.kill".into(), "1".into());
                }),
                "unified",
            ),
        ] {
            let message = of(change).unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
        let kubelet = |asked: &mut LinuxContainerResources| {
            asked.hugepage_limits = vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            }];
            asked.unified.insert("memory.oom.group".into(), "1".into());
        };
        assert_eq!(of(kubelet).unwrap().unified["memory.oom.group"], "1");
    }
}
