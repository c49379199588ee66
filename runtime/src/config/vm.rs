//! How machines are made: by default, and for runtime handlers that say otherwise.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Least guest memory that boots a kernel and leaves something for a container, in MiB.
const LEAST_MEMORY_MIB: u32 = 64;

/// Smallest and largest scratch disk, in MiB: ext4 with room for a container's writes, and 16 TiB.
const SCRATCH_MIB: std::ops::RangeInclusive<u64> = 16..=16 * 1024 * 1024;

/// Most virtual CPUs of a machine.
const MOST_VCPUS: u8 = 32;

/// How machines are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmDefaults {
    /// `bulkhead-vmm`.
    pub vmm: PathBuf,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Guest initramfs.
    pub initramfs: PathBuf,
    /// Guest kernel's command line.
    pub cmdline: String,
    /// Virtual CPUs of a pod that asks for nothing.
    pub vcpus: u8,
    /// Memory of a pod that asks for nothing, in MiB.
    pub memory_mib: u32,
    /// What the guest itself needs beside a pod's memory limit, in MiB.
    pub guest_base_mib: u32,
    /// Most virtual CPUs of a pod; 0 for the host's.
    pub max_vcpus: u8,
    /// Most memory of a pod in MiB; 0 for the host's.
    pub max_memory_mib: u32,
    /// Size of the scratch disk in MiB.
    pub scratch_mib: u64,
    /// Bytes kept of the guest's kernel log.
    pub console_bytes: u64,
    /// Control group for pods without a parent.
    pub cgroup_parent: String,
}

/// What a runtime handler has of its own; the rest is that of [`VmDefaults`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HandlerConfig {
    /// Guest kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Guest initramfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// Guest kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Virtual CPUs of a pod that asks for nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// Memory of a pod that asks for nothing, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// What the guest itself needs beside a pod's memory limit, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_base_mib: Option<u32>,
    /// Most virtual CPUs of a pod; 0 for the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_vcpus: Option<u8>,
    /// Most memory of a pod in MiB; 0 for the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory_mib: Option<u32>,
    /// Size of the scratch disk in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch_mib: Option<u64>,
}

/// A key, its value and why that does not do.
type Fault = (&'static str, String, &'static str);

impl VmDefaults {
    /// Refuses values that cannot be used.
    ///
    /// # Errors
    ///
    /// The key in this table, its value and the reason.
    pub(super) fn validate(&self) -> Result<(), Fault> {
        for (key, path) in [
            ("vmm", &self.vmm),
            ("kernel", &self.kernel),
            ("initramfs", &self.initramfs),
        ] {
            if !path.is_absolute() {
                return Err((key, path.display().to_string(), "it must be an absolute path"));
            }
        }
        let parent = &self.cgroup_parent;
        let parent_is_good = parent.starts_with('/') && parent.split('/').all(|part| part != "..");
        let most_memory_is_good = self.max_memory_mib == 0 || self.max_memory_mib >= self.memory_mib;
        for (good, key, value, reason) in [
            (
                parent_is_good,
                "cgroup_parent",
                format!("{parent:?}"),
                "it must be the path of a control group from the root, such as \"/bulkhead\"",
            ),
            (
                self.cmdline.len() <= 2048 && self.cmdline.is_ascii(),
                "cmdline",
                format!("{} bytes long", self.cmdline.len()),
                "a kernel command line is ASCII and has at most 2048 bytes",
            ),
            (
                (1..=MOST_VCPUS).contains(&self.vcpus),
                "vcpus",
                self.vcpus.to_string(),
                "a machine has 1 to 32 virtual CPUs",
            ),
            (
                self.memory_mib >= LEAST_MEMORY_MIB,
                "memory_mib",
                self.memory_mib.to_string(),
                "a guest does not boot with less than 64 MiB",
            ),
            (
                SCRATCH_MIB.contains(&self.scratch_mib),
                "scratch_mib",
                self.scratch_mib.to_string(),
                "a scratch disk has 16 MiB to 16 TiB",
            ),
            (
                self.max_vcpus <= MOST_VCPUS,
                "max_vcpus",
                self.max_vcpus.to_string(),
                "a machine has at most 32 virtual CPUs",
            ),
            (
                most_memory_is_good,
                "max_memory_mib",
                self.max_memory_mib.to_string(),
                "that is less than `memory_mib`",
            ),
            (
                (4096..=64 << 20).contains(&self.console_bytes),
                "console_bytes",
                self.console_bytes.to_string(),
                "it must be 4096 bytes to 64 MiB",
            ),
        ] {
            if !good {
                return Err((key, value, reason));
            }
        }
        Ok(())
    }
}

impl HandlerConfig {
    /// How its machines are made, with these defaults for what it does not say.
    pub fn over(&self, defaults: &VmDefaults) -> VmDefaults {
        VmDefaults {
            kernel: self.kernel.clone().unwrap_or_else(|| defaults.kernel.clone()),
            initramfs: self
                .initramfs
                .clone()
                .unwrap_or_else(|| defaults.initramfs.clone()),
            cmdline: self.cmdline.clone().unwrap_or_else(|| defaults.cmdline.clone()),
            vcpus: self.vcpus.unwrap_or(defaults.vcpus),
            memory_mib: self.memory_mib.unwrap_or(defaults.memory_mib),
            guest_base_mib: self.guest_base_mib.unwrap_or(defaults.guest_base_mib),
            max_vcpus: self.max_vcpus.unwrap_or(defaults.max_vcpus),
            max_memory_mib: self.max_memory_mib.unwrap_or(defaults.max_memory_mib),
            scratch_mib: self.scratch_mib.unwrap_or(defaults.scratch_mib),
            ..defaults.clone()
        }
    }

    /// One that says all that one can say.
    pub(super) fn of(vm: &VmDefaults) -> Self {
        Self {
            kernel: Some(vm.kernel.clone()),
            initramfs: Some(vm.initramfs.clone()),
            cmdline: Some(vm.cmdline.clone()),
            vcpus: Some(vm.vcpus),
            memory_mib: Some(vm.memory_mib),
            guest_base_mib: Some(vm.guest_base_mib),
            max_vcpus: Some(vm.max_vcpus),
            max_memory_mib: Some(vm.max_memory_mib),
            scratch_mib: Some(vm.scratch_mib),
        }
    }
}

impl Default for VmDefaults {
    fn default() -> Self {
        Self {
            vmm: "/usr/lib/bulkhead/bulkhead-vmm".into(),
            kernel: "/usr/lib/bulkhead/vmlinux".into(),
            initramfs: "/usr/lib/bulkhead/initramfs".into(),
            cmdline: "console=hvc0 quiet noreplace-smp panic=-1 reboot=t dummy.numdummies=0".to_owned(),
            vcpus: 1,
            memory_mib: 128,
            guest_base_mib: 64,
            max_vcpus: 0,
            max_memory_mib: 0,
            scratch_mib: 10 * 1024,
            console_bytes: 64 * 1024,
            cgroup_parent: "/bulkhead".to_owned(),
        }
    }
}
