//! What a pod's machine costs the host: by the control group that its VMM is in, and where the host does not count there, by
//! the VMM's process.

use super::{Figures, control_group, process};
use crate::sandbox::{Pod, host::Host};

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
        let process = process::figures(vmm).ok()?;
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
