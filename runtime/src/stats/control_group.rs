//! Control files of the host as figures (Documentation/admin-guide/cgroup-v2.rst).

use bulkhead_proto::agent::{Pressure, PressureLine};

use super::Figures;

/// What the files of a group say; `read` gives one, and nothing where its controller is not there.
pub(super) fn figures(read: impl Fn(&str) -> Option<String>) -> Figures {
    let file = |name: &str| read(name).unwrap_or_default();
    let (cpu, memory, events) = (file("cpu.stat"), file("memory.stat"), file("memory.events"));
    let single = |name: &str| file(name).trim().parse::<u64>().ok();
    let usage = single("memory.current").unwrap_or(0);
    Figures {
        cpu_usage_us: value_of(&cpu, "usage_usec"),
        cpu_user_us: value_of(&cpu, "user_usec"),
        cpu_system_us: value_of(&cpu, "system_usec"),
        cpu_periods: value_of(&cpu, "nr_periods"),
        cpu_throttled_periods: value_of(&cpu, "nr_throttled"),
        cpu_throttled_us: value_of(&cpu, "throttled_usec"),
        cpu_pressure: pressure(&file("cpu.pressure")),
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(value_of(&memory, "inactive_file")),
        memory_rss_bytes: value_of(&memory, "anon"),
        memory_file_bytes: value_of(&memory, "file"),
        memory_file_mapped_bytes: value_of(&memory, "file_mapped"),
        memory_kernel_bytes: value_of(&memory, "kernel"),
        memory_page_faults: value_of(&memory, "pgfault"),
        memory_major_page_faults: value_of(&memory, "pgmajfault"),
        memory_peak_bytes: single("memory.peak"),
        memory_limit_bytes: single("memory.max"),
        memory_limit_hits: value_of(&events, "max"),
        oom_kills: value_of(&events, "oom_kill"),
        memory_swap_bytes: single("memory.swap.current").unwrap_or(0),
        memory_swap_limit_bytes: single("memory.swap.max"),
        memory_pressure: pressure(&file("memory.pressure")),
        io_pressure: pressure(&file("io.pressure")),
        ..Figures::default()
    }
}

/// The number behind `key` in a "flat keyed" file; 0 where there is none.
fn value_of(file: &str, key: &str) -> u64 {
    let value = file
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok());
    value.unwrap_or(0)
}

/// A pressure file (Documentation/accounting/psi.rst); nothing where the kernel does not measure.
fn pressure(file: &str) -> Option<Pressure> {
    let line = |kind: &str| {
        let line = file
            .lines()
            .find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let value = |key: &str| {
            line.split(' ')
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        };
        let part = |key: &str| value(key).and_then(|value| value.parse().ok()).unwrap_or(0.0);
        Some(PressureLine {
            total_us: value("total").and_then(|value| value.parse().ok()).unwrap_or(0),
            avg10: part("avg10"),
            avg60: part("avg60"),
            avg300: part("avg300"),
        })
    };
    let pressure = Pressure {
        some: line("some"),
        full: line("full"),
    };
    (pressure != Pressure::default()).then_some(pressure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_the_host_becomes_figures() {
        let figures = figures(|name| {
            let text = match name {
                "cpu.stat" => "usage_usec 900\nuser_usec 600\nsystem_usec 300\n",
                "memory.current" => "1000\n",
                "memory.max" => "max\n",
                "memory.stat" => "anon 500\nfile 400\ninactive_file 100\ninactive_file_x 7\npgfault 9\n",
                "memory.pressure" => {
                    "some avg10=0.50 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 avg60=1.00 total=3\n"
                }
                _ => return None,
            };
            Some(text.to_owned())
        });
        assert_eq!((figures.cpu_usage_us, figures.cpu_system_us), (900, 300));
        assert_eq!(
            (figures.memory_usage_bytes, figures.memory_working_set_bytes),
            (1000, 900)
        );
        assert_eq!((figures.memory_rss_bytes, figures.memory_page_faults), (500, 9));
        assert_eq!(figures.memory_limit_bytes, None);
        let pressure = figures.memory_pressure.unwrap();
        assert!(pressure.some.unwrap().avg10 > 0.4);
        assert_eq!(
            (pressure.full.unwrap().total_us, pressure.full.unwrap().avg60),
            (3, 1.0)
        );
        assert_eq!(figures.io_pressure, None);
    }
}
