//! How large a pod's machine is: by what CRI says of the pod, else by the configuration.

use bulkhead_proto::cri::LinuxPodSandboxConfig;

use crate::config::VmDefaults;

const MIB: u64 = 1 << 20;

/// Microseconds of a period when the request names none: the kernel's default.
const DEFAULT_PERIOD_US: i64 = 100_000;

/// Most virtual CPUs that a machine can have.
const MAX_VCPUS: u8 = 32;

/// The size of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineSize {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Scratch disk in MiB.
    pub scratch_mib: u64,
}

/// What the host has.
#[derive(Clone, Copy, Debug)]
pub struct HostSize {
    /// Processors that the daemon may use.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
}

impl HostSize {
    /// This host's.
    pub fn here() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let info = rustix::system::sysinfo();
        let memory = info.totalram.saturating_mul(info.mem_unit.into()) / MIB;
        Self {
            cpus: u8::try_from(cpus).unwrap_or(u8::MAX),
            memory_mib: u32::try_from(memory).unwrap_or(u32::MAX),
        }
    }
}

impl MachineSize {
    /// The size for a pod with this configuration, where `vm` is what its runtime handler has.
    ///
    /// A CPU quota gives as many virtual CPUs as can use it. A memory limit gives the limit and, on top, what the guest's
    /// own kernel and agent need: the pod's overhead where it has one, since that is what RuntimeClass declares it for,
    /// but not less than the configured base.
    pub fn of_pod(pod: Option<&LinuxPodSandboxConfig>, vm: &VmDefaults, host: HostSize) -> Self {
        let resources = pod.and_then(|pod| pod.resources.as_ref());
        let overhead = pod.and_then(|pod| pod.overhead.as_ref());

        let wanted_cpus = resources
            .filter(|resources| resources.cpu_quota > 0)
            .map(|resources| {
                let period = if resources.cpu_period > 0 {
                    resources.cpu_period
                } else {
                    DEFAULT_PERIOD_US
                };
                u8::try_from(resources.cpu_quota.saturating_add(period - 1) / period).unwrap_or(u8::MAX)
            });
        let most_cpus = if vm.max_vcpus == 0 {
            host.cpus
        } else {
            vm.max_vcpus
        };

        let wanted_memory = resources
            .and_then(|resources| in_mib(resources.memory_limit_in_bytes))
            .map(|limit| {
                let overhead = overhead
                    .and_then(|overhead| in_mib(overhead.memory_limit_in_bytes))
                    .unwrap_or(0);
                limit.saturating_add(overhead.max(vm.guest_base_mib))
            });
        let most_memory = if vm.max_memory_mib == 0 {
            host.memory_mib
        } else {
            vm.max_memory_mib
        };

        Self {
            vcpus: wanted_cpus
                .unwrap_or(vm.vcpus)
                .clamp(1, most_cpus.clamp(1, MAX_VCPUS)),
            memory_mib: wanted_memory
                .unwrap_or(vm.memory_mib)
                .min(most_memory)
                .max(LEAST_MEMORY_MIB),
            scratch_mib: vm.scratch_mib,
        }
    }
}

/// Below this a guest does not boot, whatever limits say.
const LEAST_MEMORY_MIB: u32 = 64;

fn in_mib(bytes: i64) -> Option<u32> {
    let bytes = u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)?;
    Some(u32::try_from(bytes.div_ceil(MIB)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::cri::LinuxContainerResources;

    use super::*;

    const HOST: HostSize = HostSize {
        cpus: 8,
        memory_mib: 16 * 1024,
    };

    fn size(quota: i64, period: i64, memory: i64, overhead: i64) -> MachineSize {
        let pod = LinuxPodSandboxConfig {
            resources: Some(LinuxContainerResources {
                cpu_quota: quota,
                cpu_period: period,
                memory_limit_in_bytes: memory,
                ..Default::default()
            }),
            overhead: Some(LinuxContainerResources {
                memory_limit_in_bytes: overhead,
                ..Default::default()
            }),
            ..Default::default()
        };
        MachineSize::of_pod(Some(&pod), &VmDefaults::default(), HOST)
    }

    #[test]
    fn a_pod_that_asks_for_nothing_gets_the_configured_size() {
        let expected = MachineSize {
            vcpus: 1,
            memory_mib: 128,
            scratch_mib: 10240,
        };
        assert_eq!(MachineSize::of_pod(None, &VmDefaults::default(), HOST), expected);
        assert_eq!(size(0, 0, 0, 0), expected);
        assert_eq!(size(-1, 100_000, -1, 0), expected);
    }

    #[test]
    fn virtual_cpus_are_enough_for_the_quota() {
        assert_eq!(size(50_000, 100_000, 0, 0).vcpus, 1);
        assert_eq!(size(100_000, 100_000, 0, 0).vcpus, 1);
        assert_eq!(size(100_001, 100_000, 0, 0).vcpus, 2);
        assert_eq!(size(250_000, 0, 0, 0).vcpus, 3);
        assert_eq!(size(i64::MAX, 1, 0, 0).vcpus, 8, "no more than the host has");
    }

    #[test]
    fn memory_is_the_limit_and_what_the_guest_itself_needs() {
        assert_eq!(size(0, 0, 256 << 20, 0).memory_mib, 256 + 64);
        assert_eq!(size(0, 0, 256 << 20, 100 << 20).memory_mib, 256 + 100);
        assert_eq!(size(0, 0, 256 << 20, 1 << 20).memory_mib, 256 + 64);
        assert_eq!(size(0, 0, 1, 0).memory_mib, 65);
        assert_eq!(
            size(0, 0, i64::MAX, 0).memory_mib,
            16 * 1024,
            "no more than the host has"
        );
    }

    #[test]
    fn the_configured_bounds_hold() {
        let defaults = VmDefaults {
            vcpus: 4,
            memory_mib: 4096,
            max_vcpus: 2,
            max_memory_mib: 512,
            ..VmDefaults::default()
        };
        let size = MachineSize::of_pod(None, &defaults, HOST);
        assert_eq!((size.vcpus, size.memory_mib), (2, 512));
    }

    #[test]
    fn this_host_has_processors_and_memory() {
        let host = HostSize::here();
        assert!(host.cpus >= 1 && host.memory_mib >= 64, "{host:?}");
    }
}
