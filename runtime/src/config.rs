//! The daemon's one configuration file.
//!
//! Every key is declared here as a field and documented in `config/default.toml`, which is what `bulkheadd config`
//! prints and what docs/configuration.md is compared with. A file is parsed once, at the start; what comes out is valid.

#[cfg(test)]
mod document;
mod unknown_key;
mod vm;

use std::{
    collections::BTreeMap,
    fs, io,
    net::{AddrParseError, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{image::ImageConfig, network::NetworkConfig, streaming::StreamingConfig};

pub use vm::{HandlerConfig, VmDefaults};

/// Where the file is looked for when nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/bulkhead/config.toml";

/// The whole default configuration, with a comment on every key.
pub const DEFAULT_TEXT: &str = include_str!("config/default.toml");

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
    /// Where clients of exec, attach and port-forward connect to.
    pub streaming: StreamingConfig,
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
    /// For each guest that is asked what it uses.
    pub stats_seconds: u64,
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

    /// How machines of a runtime handler are made; for the empty name, and one that is not configured any more, by the defaults.
    pub fn vm_of(&self, handler: &str) -> VmDefaults {
        self.handlers
            .get(handler)
            .map_or_else(|| self.vm.clone(), |handler| handler.over(&self.vm))
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
        if let Err((key, value, reason)) = self.vm.validate() {
            return refuse(&format!("vm.{key}"), value, reason);
        }
        for (name, handler) in &self.handlers {
            if let Err((key, value, reason)) = handler.over(&self.vm).validate() {
                return refuse(&format!("handlers.{name}.{key}"), value, reason);
            }
        }
        for (key, value) in [
            ("timeouts.boot_seconds", self.timeouts.boot_seconds),
            ("timeouts.agent_seconds", self.timeouts.agent_seconds),
            ("timeouts.recovery_seconds", self.timeouts.recovery_seconds),
            ("timeouts.stats_seconds", self.timeouts.stats_seconds),
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
        if let Err((key, value, reason)) = self.streaming.validate() {
            return refuse(&format!("streaming.{key}"), value, reason);
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
    let handler = HandlerConfig::of(&VmDefaults::default());
    let handler = toml::Value::try_from(handler).expect("a handler is made of numbers and texts");
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

    /// For each guest that is asked what it uses.
    pub fn stats(&self) -> Duration {
        Duration::from_secs(self.stats_seconds)
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
            streaming: StreamingConfig::default(),
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

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            boot_seconds: 60,
            agent_seconds: 60,
            recovery_seconds: 10,
            stats_seconds: 1,
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
