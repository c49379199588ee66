//! What a pod's machine costs the host: by the control group that its VMM is in, and where the host does not count there, by
//! the VMM's process.

use std::fs;

use super::{Figures, control_group};
use crate::sandbox::{Pod, host::Host};

/// Clock ticks of a second in /proc (USER_HZ): 100 on every architecture that has KVM for us.
const TICKS: u64 = 100;

/// The figures of a pod's machine; nothing where it has ended. Blocking, shortly.
pub(super) fn figures(host: &dyn Host, pod: &Pod, vmm: u32) -> Option<Figures> {
    let group = |path: &str, file: &str| host.read_cgroup(path, file).ok();
    let counted = group(&pod.cgroup, "cpu.stat").is_some();
    let mut figures = if counted {
        control_group::figures(|file| group(&pod.cgroup, file))
    } else {
        Figures::default()
    };
    if !counted || figures.memory_usage_bytes == 0 {
        let process = of_process(
            &fs::read_to_string(format!("/proc/{vmm}/stat")).ok()?,
            &fs::read_to_string(format!("/proc/{vmm}/status")).ok()?,
        )?;
        if !counted {
            figures.cpu_usage_us = process.cpu_usage_us;
            figures.cpu_user_us = process.cpu_user_us;
            figures.cpu_system_us = process.cpu_system_us;
        }
        figures.memory_usage_bytes = process.memory_usage_bytes;
        figures.memory_working_set_bytes = process.memory_working_set_bytes;
        figures.memory_rss_bytes = process.memory_rss_bytes;
        figures.memory_swap_bytes = process.memory_swap_bytes;
        figures.memory_page_faults = process.memory_page_faults;
        figures.memory_major_page_faults = process.memory_major_page_faults;
    }
    // The kubelet bounds a pod by the group that it names, the one above the machine's.
    let asked = pod
        .config
        .linux
        .as_ref()
        .map(|linux| linux.cgroup_parent.as_str());
    if let Some(parent) = asked.filter(|parent| !parent.is_empty()) {
        let limit = group(parent, "memory.max").and_then(|limit| limit.trim().parse().ok());
        figures.memory_limit_bytes = [figures.memory_limit_bytes, limit].into_iter().flatten().min();
    }
    Some(figures)
}

/// Of /proc/PID/stat and /proc/PID/status (proc(5)).
fn of_process(stat: &str, status: &str) -> Option<Figures> {
    // The name in parentheses may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let field = |number: usize| -> Option<u64> {
        // The first behind the name is number 3.
        fields
            .split_ascii_whitespace()
            .nth(number.checked_sub(3)?)?
            .parse()
            .ok()
    };
    let kib = |key: &str| {
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let number = value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or(0).saturating_mul(1024)
    };
    let us = |ticks: u64| ticks.saturating_mul(1_000_000 / TICKS);
    let (user, system) = (us(field(14)?), us(field(15)?));
    let resident = kib("VmRSS");
    Some(Figures {
        cpu_usage_us: user.saturating_add(system),
        cpu_user_us: user,
        cpu_system_us: system,
        memory_usage_bytes: resident,
        memory_working_set_bytes: resident,
        memory_rss_bytes: resident,
        memory_swap_bytes: kib("VmSwap"),
        memory_page_faults: field(10)?,
        memory_major_page_faults: field(12)?,
        ..Figures::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_of_itself() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("1234 (a) (b) 1) S {}", fields.join(" "));
        let figures = of_process(&stat, "Name:\tx\nVmRSS:\t  2048 kB\nVmSwap:\t 4 kB\n").unwrap();
        assert_eq!((figures.cpu_user_us, figures.cpu_system_us), (140_000, 150_000));
        assert_eq!(figures.cpu_usage_us, 290_000);
        assert_eq!(
            (figures.memory_page_faults, figures.memory_major_page_faults),
            (10, 12)
        );
        assert_eq!(
            (figures.memory_working_set_bytes, figures.memory_swap_bytes),
            (2 << 20, 4096)
        );
        assert_eq!(of_process("", ""), None);
        let own = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).unwrap();
        assert!(of_process(&own("stat"), &own("status")).unwrap().memory_rss_bytes > 100_000);
    }
}
