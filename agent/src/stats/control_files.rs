//! The control files of a group as figures (Documentation/admin-guide/cgroup-v2.rst).

use bulkhead_proto::agent::ContainerStats;

use super::{disks, pressure};
use crate::container::cgroup::{Cgroup, value_of};

/// Contents of the control files; empty where one is missing.
#[derive(Debug, Default)]
pub struct ControlFiles {
    cpu_stat: String,
    cpu_pressure: String,
    memory_current: String,
    memory_peak: String,
    memory_max: String,
    memory_stat: String,
    memory_events: String,
    memory_pressure: String,
    memory_swap_current: String,
    memory_swap_max: String,
    pids_current: String,
    pids_max: String,
    io_stat: String,
    io_pressure: String,
}

impl ControlFiles {
    /// Those of a group now.
    pub fn of(cgroup: &Cgroup) -> Self {
        let file = |name| cgroup.read(name).unwrap_or_default();
        Self {
            cpu_stat: file("cpu.stat"),
            cpu_pressure: file("cpu.pressure"),
            memory_current: file("memory.current"),
            memory_peak: file("memory.peak"),
            memory_max: file("memory.max"),
            memory_stat: file("memory.stat"),
            memory_events: file("memory.events"),
            memory_pressure: file("memory.pressure"),
            memory_swap_current: file("memory.swap.current"),
            memory_swap_max: file("memory.swap.max"),
            pids_current: file("pids.current"),
            pids_max: file("pids.max"),
            io_stat: file("io.stat"),
            io_pressure: file("io.pressure"),
        }
    }
}

/// What the files say. Who is counted, and what no file tells, is left empty.
pub fn from_files(files: &ControlFiles) -> ContainerStats {
    let of = |file: &str, key| value_of(file, key).unwrap_or(0);
    // A limit's file says "max" where there is none.
    let single = |file: &str| file.trim().parse::<u64>().ok();
    let memory_usage_bytes = single(&files.memory_current).unwrap_or(0);
    ContainerStats {
        cpu_usage_us: of(&files.cpu_stat, "usage_usec"),
        cpu_user_us: of(&files.cpu_stat, "user_usec"),
        cpu_system_us: of(&files.cpu_stat, "system_usec"),
        cpu_periods: of(&files.cpu_stat, "nr_periods"),
        cpu_throttled_periods: of(&files.cpu_stat, "nr_throttled"),
        cpu_throttled_us: of(&files.cpu_stat, "throttled_usec"),
        cpu_pressure: pressure::parse(&files.cpu_pressure),
        memory_usage_bytes,
        memory_working_set_bytes: memory_usage_bytes.saturating_sub(of(&files.memory_stat, "inactive_file")),
        memory_rss_bytes: of(&files.memory_stat, "anon"),
        memory_file_bytes: of(&files.memory_stat, "file"),
        memory_file_mapped_bytes: of(&files.memory_stat, "file_mapped"),
        memory_kernel_bytes: of(&files.memory_stat, "kernel"),
        memory_page_faults: of(&files.memory_stat, "pgfault"),
        memory_major_page_faults: of(&files.memory_stat, "pgmajfault"),
        memory_peak_bytes: single(&files.memory_peak),
        memory_limit_bytes: single(&files.memory_max),
        memory_limit_hits: of(&files.memory_events, "max"),
        memory_swap_bytes: single(&files.memory_swap_current).unwrap_or(0),
        memory_swap_limit_bytes: single(&files.memory_swap_max),
        memory_pressure: pressure::parse(&files.memory_pressure),
        oom_kills: of(&files.memory_events, "oom_kill"),
        pids: single(&files.pids_current).unwrap_or(0),
        pids_limit: single(&files.pids_max),
        disks: disks::parse(&files.io_stat, disks::name),
        io_pressure: pressure::parse(&files.io_pressure),
        ..ContainerStats::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_files_become_figures() {
        let stats = from_files(&ControlFiles {
            cpu_stat: "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 12\nnr_throttled 3\n\
                       throttled_usec 4000\nnr_bursts 0\nburst_usec 0\n"
                .to_owned(),
            memory_current: "1000000\n".to_owned(),
            memory_peak: "2000000\n".to_owned(),
            memory_max: "4000000\n".to_owned(),
            memory_stat: "anon 300000\nfile 600000\nkernel 20000\nkernel_stack 16384\nfile_mapped 50000\n\
                          inactive_file 400000\npgfault 77\npgmajfault 3\n"
                .to_owned(),
            memory_swap_current: "4096\n".to_owned(),
            memory_swap_max: "0\n".to_owned(),
            memory_events: "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n".to_owned(),
            pids_current: "5\n".to_owned(),
            pids_max: "100\n".to_owned(),
            ..ControlFiles::default()
        });
        assert_eq!(
            (stats.cpu_usage_us, stats.cpu_user_us, stats.cpu_system_us),
            (1500, 1000, 500)
        );
        assert_eq!(
            (
                stats.cpu_periods,
                stats.cpu_throttled_periods,
                stats.cpu_throttled_us
            ),
            (12, 3, 4000)
        );
        assert_eq!(
            (stats.memory_usage_bytes, stats.memory_working_set_bytes),
            (1_000_000, 600_000)
        );
        assert_eq!(
            (
                stats.memory_rss_bytes,
                stats.memory_file_bytes,
                stats.memory_file_mapped_bytes,
                stats.memory_kernel_bytes
            ),
            (300_000, 600_000, 50_000, 20_000)
        );
        assert_eq!(
            (stats.memory_page_faults, stats.memory_major_page_faults),
            (77, 3)
        );
        assert_eq!(
            (stats.memory_peak_bytes, stats.memory_limit_bytes),
            (Some(2_000_000), Some(4_000_000))
        );
        assert_eq!(
            (stats.memory_swap_bytes, stats.memory_swap_limit_bytes),
            (4096, Some(0))
        );
        assert_eq!((stats.memory_limit_hits, stats.oom_kills), (9, 1));
        assert_eq!((stats.pids, stats.pids_limit), (5, Some(100)));
    }

    #[test]
    fn missing_and_odd_files_count_as_nothing() {
        assert_eq!(from_files(&ControlFiles::default()), ContainerStats::default());
        let more_cache_than_use = from_files(&ControlFiles {
            memory_current: "10".to_owned(),
            memory_stat: "inactive_file 20".to_owned(),
            ..ControlFiles::default()
        });
        assert_eq!(more_cache_than_use.memory_working_set_bytes, 0);
        let unlimited = from_files(&ControlFiles {
            memory_max: "max\n".to_owned(),
            memory_swap_max: "max\n".to_owned(),
            pids_max: "max\n".to_owned(),
            ..ControlFiles::default()
        });
        assert_eq!(unlimited, ContainerStats::default());
    }
}
