//! The metrics, with the names that cAdvisor has made everybody's.
//!
//! Values are whole numbers, as CRI has them: of seconds only the whole ones. What CRI's clients expect and no guest of ours
//! can tell is not in the table: huge pages, and a reservation of memory, which CRI has no field for.

use bulkhead_proto::{
    agent::{DiskSpace, DiskStats, InterfaceStats, Pressure},
    cri::MetricType::{self, Counter, Gauge},
};

use crate::stats::{ContainerUsage, Figures, GuestUsage, PodUsage, Usage};

/// What the agent calls the disk that containers write to.
const SCRATCH: &str = "scratch";

const NS: i64 = 1_000_000_000;

/// One name: a value for each container or pod, or several that labels tell apart.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: MetricType,
    /// Beyond those that every metric has.
    pub(super) labels: &'static [&'static str],
    pub(super) of: Of,
}

/// Whose metric it is, and how it is had.
#[derive(Clone, Copy)]
pub(super) enum Of {
    /// Of each container, and of the pod's machine on the host.
    Both(fn(&Usage) -> Vec<Value>),
    /// Of each container.
    Container(fn(&ContainerScope<'_>) -> Vec<Value>),
    /// Of the pod.
    Pod(fn(&PodUsage) -> Vec<Value>),
}

/// A container and the guest it is in.
pub(super) struct ContainerScope<'a> {
    pub(super) usage: &'a ContainerUsage,
    pub(super) guest: &'a GuestUsage,
}

impl ContainerScope<'_> {
    fn figures(&self) -> &Figures {
        &self.usage.usage.figures
    }

    /// A limit as CRI has given it; 0 is none.
    fn resource(
        &self,
        field: impl FnOnce(&bulkhead_proto::cri::LinuxContainerResources) -> i64,
    ) -> Option<u64> {
        let resources = self.usage.container.resources();
        u64::try_from(resources.as_ref().map_or(0, field)).ok()
    }
}

/// A value, with those of the family's own labels.
pub(super) struct Value {
    pub(super) labels: Vec<String>,
    pub(super) value: u64,
}

/// The only value.
fn one(value: u64) -> Vec<Value> {
    vec![Value {
        labels: Vec::new(),
        value,
    }]
}

fn maybe(value: Option<u64>) -> Vec<Value> {
    value.map_or_else(Vec::new, one)
}

fn labelled(labels: &[&str], value: u64) -> Value {
    Value {
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        value,
    }
}

fn seconds(us: u64) -> u64 {
    us / 1_000_000
}

fn seconds_of_ns(ns: i64) -> u64 {
    u64::try_from(ns / NS).unwrap_or(0)
}

fn waiting(pressure: Option<&Pressure>) -> Vec<Value> {
    maybe(pressure.and_then(|pressure| Some(seconds(pressure.some.as_ref()?.total_us))))
}

fn stalled(pressure: Option<&Pressure>) -> Vec<Value> {
    maybe(pressure.and_then(|pressure| Some(seconds(pressure.full.as_ref()?.total_us))))
}

/// cAdvisor tells a control group from all below it; here the first is all there is.
fn faults(usage: &Usage) -> Vec<Value> {
    let figures = &usage.figures;
    let of = |kind: &str, value| ["container", "hierarchy"].map(|scope| labelled(&[kind, scope], value));
    let major = of("pgmajfault", figures.memory_major_page_faults);
    of("pgfault", figures.memory_page_faults)
        .into_iter()
        .chain(major)
        .collect()
}

fn device(disk: &DiskStats) -> String {
    if disk.name.is_empty() {
        format!("{}:{}", disk.major, disk.minor)
    } else {
        format!("/dev/{}", disk.name)
    }
}

fn disks(scope: &ContainerScope<'_>, value: impl Fn(&DiskStats) -> u64) -> Vec<Value> {
    let disks = scope.figures().disks.iter();
    disks
        .map(|disk| labelled(&[&device(disk)], value(disk)))
        .collect()
}

fn disk_bytes(scope: &ContainerScope<'_>) -> Vec<Value> {
    let disks = scope.figures().disks.iter();
    let of = |disk: &DiskStats| {
        let (major, minor) = (disk.major.to_string(), disk.minor.to_string());
        [("Read", disk.read_bytes), ("Write", disk.written_bytes)]
            .map(|(operation, bytes)| labelled(&[&device(disk), &major, &minor, operation], bytes))
    };
    disks.flat_map(of).collect()
}

fn scratch(scope: &ContainerScope<'_>, value: impl Fn(&DiskSpace) -> u64) -> Vec<Value> {
    let scratch = scope.guest.scratch.iter();
    scratch.map(|space| labelled(&[SCRATCH], value(space))).collect()
}

fn interfaces(usage: &PodUsage, value: impl Fn(&InterfaceStats) -> u64) -> Vec<Value> {
    let interfaces = usage.guest.iter().flat_map(|guest| &guest.interfaces);
    interfaces
        .map(|interface| labelled(&[&interface.name], value(interface)))
        .collect()
}

fn soft_limits(scope: &ContainerScope<'_>) -> Vec<Value> {
    let limits = scope.figures().soft_limits.iter();
    limits
        .map(|limit| labelled(&[&limit.name.to_lowercase().replace(' ', "_")], limit.value))
        .collect()
}

const fn family(name: &'static str, kind: MetricType, help: &'static str, of: Of) -> Family {
    labelled_family(name, kind, help, &[], of)
}

const fn labelled_family(
    name: &'static str,
    kind: MetricType,
    help: &'static str,
    labels: &'static [&'static str],
    of: Of,
) -> Family {
    Family {
        name,
        help,
        kind,
        labels,
        of,
    }
}

/// All of them.
#[rustfmt::skip]
pub(super) const FAMILIES: &[Family] = &[
    labelled_family("container_cpu_usage_seconds_total", Counter, "Processor time used, in seconds.", &["cpu"],
        Of::Both(|usage| vec![labelled(&["total"], seconds(usage.figures.cpu_usage_us))])),
    family("container_cpu_user_seconds_total", Counter, "Processor time used by programs, in seconds.",
        Of::Both(|usage| one(seconds(usage.figures.cpu_user_us)))),
    family("container_cpu_system_seconds_total", Counter, "Processor time used by the kernel, in seconds.",
        Of::Both(|usage| one(seconds(usage.figures.cpu_system_us)))),
    family("container_cpu_cfs_periods_total", Counter, "Periods in which the processor quota was counted.",
        Of::Container(|scope| one(scope.figures().cpu_periods))),
    family("container_cpu_cfs_throttled_periods_total", Counter, "Periods in which the processor quota was used up.",
        Of::Container(|scope| one(scope.figures().cpu_throttled_periods))),
    family("container_cpu_cfs_throttled_seconds_total", Counter, "Time for which the container was held up by its processor quota, in seconds.",
        Of::Container(|scope| one(seconds(scope.figures().cpu_throttled_us)))),

    family("container_memory_usage_bytes", Gauge, "Memory in use, the page cache included, in bytes.",
        Of::Both(|usage| one(usage.figures.memory_usage_bytes))),
    family("container_memory_working_set_bytes", Gauge, "Memory in use without the page cache that has not been used lately, in bytes.",
        Of::Both(|usage| one(usage.figures.memory_working_set_bytes))),
    family("container_memory_rss", Gauge, "Anonymous memory, in bytes.",
        Of::Both(|usage| one(usage.figures.memory_rss_bytes))),
    family("container_memory_cache", Gauge, "Page cache, in bytes.",
        Of::Both(|usage| one(usage.figures.memory_file_bytes))),
    family("container_memory_mapped_file", Gauge, "Page cache that is mapped, in bytes.",
        Of::Both(|usage| one(usage.figures.memory_file_mapped_bytes))),
    family("container_memory_kernel_usage", Gauge, "Memory of the kernel, in bytes.",
        Of::Both(|usage| one(usage.figures.memory_kernel_bytes))),
    family("container_memory_max_usage_bytes", Gauge, "Most memory that was in use at one time, in bytes.",
        Of::Both(|usage| maybe(usage.figures.memory_peak_bytes))),
    family("container_memory_swap", Gauge, "Swap in use, in bytes.",
        Of::Both(|usage| one(usage.figures.memory_swap_bytes))),
    family("container_memory_failcnt", Counter, "How often the limit of memory was met.",
        Of::Both(|usage| one(usage.figures.memory_limit_hits))),
    labelled_family("container_memory_failures_total", Counter, "Page faults.", &["failure_type", "scope"],
        Of::Both(faults)),
    family("container_oom_events_total", Counter, "Processes that the kernel killed for want of memory.",
        Of::Both(|usage| one(usage.figures.oom_kills))),

    labelled_family("container_network_receive_bytes_total", Counter, "Bytes received.", &["interface"],
        Of::Pod(|usage| interfaces(usage, |interface| interface.received_bytes))),
    labelled_family("container_network_receive_packets_total", Counter, "Packets received.", &["interface"],
        Of::Pod(|usage| interfaces(usage, |interface| interface.received_packets))),
    labelled_family("container_network_receive_errors_total", Counter, "Errors in receiving.", &["interface"],
        Of::Pod(|usage| interfaces(usage, |interface| interface.receive_errors))),
    labelled_family("container_network_receive_packets_dropped_total", Counter, "Packets dropped in receiving.", &["interface"],
        Of::Pod(|usage| interfaces(usage, |interface| interface.receive_drops))),
    labelled_family("container_network_transmit_bytes_total", Counter, "Bytes sent.", &["interface"],
        Of::Pod(|usage| interfaces(usage, |interface| interface.sent_bytes))),
    labelled_family("container_network_transmit_packets_total", Counter, "Packets sent.", &["interface"],
        Of::Pod(|usage| interfaces(usage, |interface| interface.sent_packets))),
    labelled_family("container_network_transmit_errors_total", Counter, "Errors in sending.", &["interface"],
        Of::Pod(|usage| interfaces(usage, |interface| interface.send_errors))),
    labelled_family("container_network_transmit_packets_dropped_total", Counter, "Packets dropped in sending.", &["interface"],
        Of::Pod(|usage| interfaces(usage, |interface| interface.send_drops))),

    labelled_family("container_fs_usage_bytes", Gauge, "Bytes that the container has written and not removed.", &["device"],
        Of::Container(|scope| scope.figures().writable_layer_bytes.iter().map(|bytes| labelled(&[SCRATCH], *bytes)).collect())),
    labelled_family("container_fs_limit_bytes", Gauge, "Bytes of the disk that the pod's containers write to.", &["device"],
        Of::Container(|scope| scratch(scope, |space| space.total_bytes))),
    labelled_family("container_fs_inodes_total", Gauge, "Inodes of the disk that the pod's containers write to.", &["device"],
        Of::Container(|scope| scratch(scope, |space| space.inodes))),
    labelled_family("container_fs_inodes_free", Gauge, "Inodes left on the disk that the pod's containers write to.", &["device"],
        Of::Container(|scope| scratch(scope, |space| space.free_inodes))),
    labelled_family("container_fs_reads_total", Counter, "Reads from a disk.", &["device"],
        Of::Container(|scope| disks(scope, |disk| disk.reads))),
    labelled_family("container_fs_reads_bytes_total", Counter, "Bytes read from a disk.", &["device"],
        Of::Container(|scope| disks(scope, |disk| disk.read_bytes))),
    labelled_family("container_fs_writes_total", Counter, "Writes to a disk.", &["device"],
        Of::Container(|scope| disks(scope, |disk| disk.writes))),
    labelled_family("container_fs_writes_bytes_total", Counter, "Bytes written to a disk.", &["device"],
        Of::Container(|scope| disks(scope, |disk| disk.written_bytes))),
    labelled_family("container_blkio_device_usage_total", Counter, "Bytes read from a disk and written to it.", &["device", "major", "minor", "operation"],
        Of::Container(disk_bytes)),

    family("container_processes", Gauge, "Processes.",
        Of::Container(|scope| one(scope.figures().processes))),
    family("container_threads", Gauge, "Threads.",
        Of::Container(|scope| one(scope.figures().pids))),
    family("container_threads_max", Gauge, "Most threads that there may be; 0 for any number.",
        Of::Container(|scope| one(scope.figures().pids_limit.unwrap_or(0)))),
    family("container_file_descriptors", Gauge, "Open files of all processes.",
        Of::Container(|scope| maybe(scope.figures().open_files.map(|open| open.descriptors)))),
    family("container_sockets", Gauge, "Open sockets of all processes.",
        Of::Container(|scope| maybe(scope.figures().open_files.map(|open| open.sockets)))),
    labelled_family("container_ulimits_soft", Gauge, "Soft limits of the first process, those that it has.", &["ulimit"],
        Of::Container(soft_limits)),
    family("container_start_time_seconds", Gauge, "When the container was started, in seconds since the epoch.",
        Of::Container(|scope| one(seconds_of_ns(scope.usage.container.state().started_at_ns)))),
    family("container_last_seen", Gauge, "When the container was measured, in seconds since the epoch.",
        Of::Container(|scope| one(seconds_of_ns(scope.usage.usage.at_ns)))),

    family("container_spec_cpu_period", Gauge, "Length of a period of the processor quota, in microseconds.",
        Of::Container(|scope| maybe(scope.resource(|limits| limits.cpu_period)))),
    family("container_spec_cpu_quota", Gauge, "Processor time that may be used in each period, in microseconds.",
        Of::Container(|scope| maybe(scope.resource(|limits| limits.cpu_quota).filter(|quota| *quota > 0)))),
    family("container_spec_cpu_shares", Gauge, "Share of the processors, among others that want them.",
        Of::Container(|scope| maybe(scope.resource(|limits| limits.cpu_shares)))),
    family("container_spec_memory_limit_bytes", Gauge, "Limit of memory, in bytes; 0 for none.",
        Of::Container(|scope| one(scope.figures().memory_limit_bytes.unwrap_or(0)))),
    family("container_spec_memory_swap_limit_bytes", Gauge, "Limit of swap, in bytes; 0 for none at all and for no limit.",
        Of::Container(|scope| one(scope.figures().memory_swap_limit_bytes.unwrap_or(0)))),

    family("container_pressure_cpu_waiting_seconds_total", Counter, "Time in which some thread waited for a processor, in seconds.",
        Of::Both(|usage| waiting(usage.figures.cpu_pressure.as_ref()))),
    family("container_pressure_cpu_stalled_seconds_total", Counter, "Time in which all threads waited for a processor, in seconds.",
        Of::Both(|usage| stalled(usage.figures.cpu_pressure.as_ref()))),
    family("container_pressure_memory_waiting_seconds_total", Counter, "Time in which some thread waited for memory, in seconds.",
        Of::Both(|usage| waiting(usage.figures.memory_pressure.as_ref()))),
    family("container_pressure_memory_stalled_seconds_total", Counter, "Time in which all threads waited for memory, in seconds.",
        Of::Both(|usage| stalled(usage.figures.memory_pressure.as_ref()))),
    family("container_pressure_io_waiting_seconds_total", Counter, "Time in which some thread waited for a disk, in seconds.",
        Of::Both(|usage| waiting(usage.figures.io_pressure.as_ref()))),
    family("container_pressure_io_stalled_seconds_total", Counter, "Time in which all threads waited for a disk, in seconds.",
        Of::Both(|usage| stalled(usage.figures.io_pressure.as_ref()))),
];
