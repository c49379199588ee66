//! The use that one container makes of processor, memory and processes (Documentation/admin-guide/cgroup-v2.rst).

use bulkhead_proto::agent::ContainerStats;

use crate::{
    container::{
        cgroup::{Cgroup, value_of},
        state::Container,
    },
    init::reaper::Reaper,
};

/// Reads everything there is to know. What the kernel does not count is 0.
pub async fn of_container(container: &Container, reaper: &Reaper) -> ContainerStats {
    let layer = container.usage().of(container.writable().upper(), reaper).await;
    ContainerStats {
        container_id: container.id().to_owned(),
        writable_layer_bytes: layer.bytes,
        writable_layer_inodes: layer.inodes,
        ..of_cgroup(container.cgroup())
    }
}

fn of_cgroup(cgroup: &Cgroup) -> ContainerStats {
    let file = |name| cgroup.read(name).unwrap_or_default();
    from_files(&Files {
        cpu_stat: &file("cpu.stat"),
        memory_current: &file("memory.current"),
        memory_stat: &file("memory.stat"),
        memory_swap_current: &file("memory.swap.current"),
        memory_events: &file("memory.events"),
        pids_current: &file("pids.current"),
    })
}

/// Contents of the control files; empty where one is missing.
#[derive(Default)]
struct Files<'a> {
    cpu_stat: &'a str,
    memory_current: &'a str,
    memory_stat: &'a str,
    memory_swap_current: &'a str,
    memory_events: &'a str,
    pids_current: &'a str,
}

fn from_files(files: &Files<'_>) -> ContainerStats {
    let of = |file, key| value_of(file, key).unwrap_or(0);
    let single = |file: &str| file.trim().parse().unwrap_or(0);
    let memory_usage_bytes: u64 = single(files.memory_current);
    ContainerStats {
        container_id: String::new(),
        cpu_usage_us: of(files.cpu_stat, "usage_usec"),
        cpu_user_us: of(files.cpu_stat, "user_usec"),
        cpu_system_us: of(files.cpu_stat, "system_usec"),
        memory_usage_bytes,
        memory_working_set_bytes: memory_usage_bytes.saturating_sub(of(files.memory_stat, "inactive_file")),
        memory_rss_bytes: of(files.memory_stat, "anon"),
        memory_page_faults: of(files.memory_stat, "pgfault"),
        memory_major_page_faults: of(files.memory_stat, "pgmajfault"),
        memory_swap_bytes: single(files.memory_swap_current),
        oom_kills: of(files.memory_events, "oom_kill"),
        pids: single(files.pids_current),
        writable_layer_bytes: 0,
        writable_layer_inodes: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_files_become_figures() {
        let stats = from_files(&Files {
            cpu_stat: "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 0\n",
            memory_current: "1000000\n",
            memory_stat: "anon 300000\nfile 600000\ninactive_file 400000\npgfault 77\npgmajfault 3\n",
            memory_swap_current: "4096\n",
            memory_events: "low 0\noom 2\noom_kill 1\n",
            pids_current: "5\n",
        });
        assert_eq!(stats.cpu_usage_us, 1500);
        assert_eq!(stats.cpu_system_us, 500);
        assert_eq!(stats.memory_usage_bytes, 1_000_000);
        assert_eq!(stats.memory_working_set_bytes, 600_000);
        assert_eq!(stats.memory_rss_bytes, 300_000);
        assert_eq!(
            (stats.memory_page_faults, stats.memory_major_page_faults),
            (77, 3)
        );
        assert_eq!(
            (stats.memory_swap_bytes, stats.oom_kills, stats.pids),
            (4096, 1, 5)
        );
    }

    #[test]
    fn missing_and_odd_files_count_as_nothing() {
        assert_eq!(from_files(&Files::default()), ContainerStats::default());
        let more_cache_than_use = from_files(&Files {
            memory_current: "10",
            memory_stat: "inactive_file 20",
            ..Files::default()
        });
        assert_eq!(more_cache_than_use.memory_working_set_bytes, 0);
        let unlimited = from_files(&Files {
            memory_current: "max",
            ..Files::default()
        });
        assert_eq!(unlimited.memory_usage_bytes, 0);
    }
}
