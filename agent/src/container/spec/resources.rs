//! Limits of a container.

use bulkhead_proto::agent;

use super::SpecError;

/// Limits of a control group: its files and what is written to them, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// File name and value.
    pub files: Vec<(String, String)>,
}

impl Resources {
    /// Parses a message within its bounds.
    pub fn parse(resources: agent::Resources) -> Result<Self, SpecError> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
