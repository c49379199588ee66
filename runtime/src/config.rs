//! The daemon's one configuration file.
//!
//! Every key is declared here as a field and documented in `config/default.toml`, which is what `bulkheadd config`
//! prints and what docs/configuration.md is compared with. A file is parsed once, at the start; what comes out is valid.

#[cfg(test)]
mod document;
mod unknown_key;

use std::{
    collections::BTreeMap,
    fs, io,
    net::{AddrParseError, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{image::ImageConfig, network::NetworkConfig};

/// Where the file is looked for when nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/bulkhead/config.toml";

/// The whole default configuration, with a comment on every key.
pub const DEFAULT_TEXT: &str = include_str!("config/default.toml");

/// Least guest memory that boots a kernel and leaves something for a container, in MiB.
const LEAST_MEMORY_MIB: u32 = 64;

/// Smallest scratch disk on which ext4 can be made with room for a container's writes, in MiB.
const LEAST_SCRATCH_MIB: u64 = 16;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is there but cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file that was asked for by name is not there.
    #[error(
        "the configuration file {0} does not exist; `bulkheadd config` prints one with every key and its default"
    )]
    Missing(PathBuf),
    /// The file is no TOML, or a value is not of its key's type.
    #[error("configuration file {path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong there.
        message: String,
    },
    /// A key that does not exist.
    #[error("configuration file {path}, line {line}: unknown key `{key}`{advice}")]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Line of the key, from 1.
        line: usize,
        /// The key with its tables, such as `vm.memory`.
        key: String,
        /// The nearest known key, in words.
        advice: String,
    },
    /// A value that cannot be used.
    #[error("configuration file {path}: `{key}` is {value}, but {reason}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key with its tables.
        key: String,
        /// What the file says.
        value: String,
        /// Why that does not do.
        reason: String,
    },
}

/// The configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What must survive a reboot.
    pub root: PathBuf,
    /// What a reboot may take.
    pub state: PathBuf,
    /// The CRI endpoint.
    pub cri: CriConfig,
    /// How machines are made.
    pub vm: VmDefaults,
    /// How images are pulled.
    #[serde(skip_serializing)]
    pub images: ImageConfig,
    /// How pods are attached to the cluster's network.
    pub network: NetworkConfig,
    /// How long is waited for whom.
    pub timeouts: Timeouts,
    /// The daemon's log.
    pub log: LogConfig,
    /// Figures for Prometheus.
    pub metrics: MetricsConfig,
    /// Traces for a collector.
    pub traces: TracesConfig,
    /// Runtime handlers beside the one with the empty name.
    pub handlers: BTreeMap<String, HandlerConfig>,
}

/// The CRI endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CriConfig {
    /// Unix socket.
    pub socket: PathBuf,
}

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

/// How long is waited for whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// For a boot.
    pub boot_seconds: u64,
    /// For each request to an agent or a machine.
    pub agent_seconds: u64,
    /// For each machine at the daemon's start.
    pub recovery_seconds: u64,
}

/// The daemon's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Filter directives.
    pub level: String,
    /// For whom.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Figures for Prometheus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// IP address and port; empty for none.
    pub address: String,
}

impl MetricsConfig {
    /// Where to listen.
    ///
    /// # Errors
    ///
    /// Why `address` is none.
    pub fn socket_address(&self) -> Result<Option<SocketAddr>, AddrParseError> {
        if self.address.is_empty() {
            return Ok(None);
        }
        self.address.parse().map(Some)
    }
}

/// Traces for a collector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracesConfig {
    /// URL of a collector that takes OTLP over gRPC; empty for none.
    pub endpoint: String,
    /// Part of the calls that are traced, of those whose caller has not decided.
    pub sample_ratio: f64,
}

/// What a runtime handler has of its own; the rest is that of [`VmDefaults`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HandlerConfig {
    /// Virtual CPUs of a pod that asks for nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// Memory of a pod that asks for nothing, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Size of the scratch disk in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch_mib: Option<u64>,
}

impl Config {
    /// Reads the file at `path`, or where that is `None` the one at [`DEFAULT_PATH`] if it exists.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], each naming the file and the key.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, required) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_PATH), false),
        };
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound && required => {
                Err(ConfigError::Missing(path.to_owned()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Parses the text of the file at `path`, which is used in messages only.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], each naming the file and the key.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let in_file = |error: toml::de::Error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        };
        if let Some(unknown) = unknown_key::first(text, &known_keys()).map_err(in_file)? {
            return Err(ConfigError::UnknownKey {
                path: path.to_owned(),
                line: unknown.line,
                key: unknown.key,
                advice: unknown.advice,
            });
        }
        let config: Self = toml::from_str(text).map_err(in_file)?;
        config.validate(path)?;
        Ok(config)
    }

    fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        let refuse = |key: &str, value: String, reason: &str| {
            Err(ConfigError::Value {
                path: path.to_owned(),
                key: key.to_owned(),
                value,
                reason: reason.to_owned(),
            })
        };
        for (key, value) in [
            ("root", &self.root),
            ("state", &self.state),
            ("cri.socket", &self.cri.socket),
            ("vm.vmm", &self.vm.vmm),
            ("vm.kernel", &self.vm.kernel),
            ("vm.initramfs", &self.vm.initramfs),
        ] {
            if !value.is_absolute() {
                return refuse(key, value.display().to_string(), "it must be an absolute path");
            }
        }
        if self.root == self.state {
            return refuse(
                "state",
                self.state.display().to_string(),
                "it must be another directory than `root`",
            );
        }
        if self.cri.socket.as_os_str().len() > 107 {
            return refuse(
                "cri.socket",
                self.cri.socket.display().to_string(),
                "the path of a unix socket has at most 107 bytes",
            );
        }
        let parent = &self.vm.cgroup_parent;
        if !parent.starts_with('/') || parent.split('/').any(|part| part == "..") {
            return refuse(
                "vm.cgroup_parent",
                format!("{parent:?}"),
                "it must be the path of a control group from the root, such as \"/bulkhead\"",
            );
        }
        if self.vm.cmdline.len() > 2048 || !self.vm.cmdline.is_ascii() {
            return refuse(
                "vm.cmdline",
                format!("{} bytes long", self.vm.cmdline.len()),
                "a kernel command line is ASCII and has at most 2048 bytes",
            );
        }
        let sizes = [(
            "vm.".to_owned(),
            Some(self.vm.vcpus),
            Some(self.vm.memory_mib),
            Some(self.vm.scratch_mib),
        )];
        let handlers = self.handlers.iter().map(|(name, handler)| {
            (
                format!("handlers.{name}."),
                handler.vcpus,
                handler.memory_mib,
                handler.scratch_mib,
            )
        });
        for (table, vcpus, memory, scratch) in sizes.into_iter().chain(handlers) {
            if vcpus.is_some_and(|vcpus| !(1..=32).contains(&vcpus)) {
                return refuse(
                    &format!("{table}vcpus"),
                    format!("{}", vcpus.unwrap_or_default()),
                    "a machine has 1 to 32 virtual CPUs",
                );
            }
            if memory.is_some_and(|memory| memory < LEAST_MEMORY_MIB) {
                return refuse(
                    &format!("{table}memory_mib"),
                    format!("{}", memory.unwrap_or_default()),
                    "a guest does not boot with less than 64 MiB",
                );
            }
            if scratch.is_some_and(|scratch| !(LEAST_SCRATCH_MIB..=16 * 1024 * 1024).contains(&scratch)) {
                return refuse(
                    &format!("{table}scratch_mib"),
                    format!("{}", scratch.unwrap_or_default()),
                    "a scratch disk has 16 MiB to 16 TiB",
                );
            }
        }
        if self.vm.max_vcpus > 32 {
            return refuse(
                "vm.max_vcpus",
                self.vm.max_vcpus.to_string(),
                "a machine has at most 32 virtual CPUs",
            );
        }
        if self.vm.max_memory_mib != 0 && self.vm.max_memory_mib < self.vm.memory_mib {
            return refuse(
                "vm.max_memory_mib",
                self.vm.max_memory_mib.to_string(),
                "that is less than `vm.memory_mib`",
            );
        }
        if !(4096..=64 << 20).contains(&self.vm.console_bytes) {
            return refuse(
                "vm.console_bytes",
                self.vm.console_bytes.to_string(),
                "it must be 4096 bytes to 64 MiB",
            );
        }
        for (key, value) in [
            ("timeouts.boot_seconds", self.timeouts.boot_seconds),
            ("timeouts.agent_seconds", self.timeouts.agent_seconds),
            ("timeouts.recovery_seconds", self.timeouts.recovery_seconds),
        ] {
            if !(1..=86400).contains(&value) {
                return refuse(key, value.to_string(), "it must be 1 second to a day");
            }
        }
        if let Err(error) = self.images.validate() {
            return Err(ConfigError::Parse {
                path: path.to_owned(),
                message: error.to_string(),
            });
        }
        if let Err((key, value, reason)) = self.network.validate() {
            return refuse(&format!("network.{key}"), value, reason);
        }
        if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&self.log.level) {
            return refuse("log.level", format!("{:?}", self.log.level), &error.to_string());
        }
        if self.metrics.socket_address().is_err() {
            return refuse(
                "metrics.address",
                format!("{:?}", self.metrics.address),
                "it must be an IP address and a port, such as \"127.0.0.1:9464\" or \"[::1]:9464\", or empty",
            );
        }
        if !(0.0..=1.0).contains(&self.traces.sample_ratio) {
            return refuse(
                "traces.sample_ratio",
                self.traces.sample_ratio.to_string(),
                "it is a part of the whole: 0.0 to 1.0",
            );
        }
        for name in self.handlers.keys() {
            // As Kubernetes has it for RuntimeClass.handler: a DNS label.
            let label = !name.is_empty()
                && name.len() <= 63
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !name.starts_with('-')
                && !name.ends_with('-');
            if !label {
                return refuse(
                    &format!("handlers.{name}"),
                    "a handler's name".to_owned(),
                    "such a name is made of 1 to 63 lower-case letters, digits and inner dashes",
                );
            }
        }
        Ok(())
    }
}

/// The keys that a file may have: those of the printed defaults, and those of any handler.
fn known_keys() -> toml::Table {
    let mut known: toml::Table = toml::from_str(DEFAULT_TEXT).expect("a test parses the printed defaults");
    let handler = HandlerConfig {
        vcpus: Some(1),
        memory_mib: Some(LEAST_MEMORY_MIB),
        scratch_mib: Some(LEAST_SCRATCH_MIB),
    };
    let handler = toml::Value::try_from(handler).expect("a handler is made of numbers");
    let handlers = toml::Table::from_iter([(unknown_key::ANY.to_owned(), handler)]);
    known.insert("handlers".to_owned(), handlers.into());
    known
}

impl Timeouts {
    /// For a boot.
    pub fn boot(&self) -> Duration {
        Duration::from_secs(self.boot_seconds)
    }

    /// For each request to an agent or a machine.
    pub fn agent(&self) -> Duration {
        Duration::from_secs(self.agent_seconds)
    }

    /// For each machine at the daemon's start.
    pub fn recovery(&self) -> Duration {
        Duration::from_secs(self.recovery_seconds)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/bulkhead".into(),
            state: "/run/bulkhead".into(),
            cri: CriConfig::default(),
            vm: VmDefaults::default(),
            images: ImageConfig::default(),
            network: NetworkConfig::default(),
            timeouts: Timeouts::default(),
            log: LogConfig::default(),
            metrics: MetricsConfig::default(),
            traces: TracesConfig::default(),
            handlers: BTreeMap::new(),
        }
    }
}

impl Default for CriConfig {
    fn default() -> Self {
        Self {
            socket: "/run/bulkhead/bulkhead.sock".into(),
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

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            boot_seconds: 60,
            agent_seconds: 60,
            recovery_seconds: 10,
        }
    }
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            sample_ratio: 1.0,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

#[cfg(test)]
mod tests;
