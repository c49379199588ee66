//! The daemon's `[images]` section.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::Reference;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The most layers one image may have whatever the configuration says: the kernel reads at most 255 partitions of
/// a disk (`DISK_MAX_PARTS` in include/linux/genhd.h). Each layer is one, and one may be added here.
pub const MAX_LAYERS: usize = 254;

/// Most layers downloaded and converted at once, of all pulls together. Each takes a thread here and a process; others
/// wait for their turn.
pub const MOST_DOWNLOADS: usize = 32;

/// How images are pulled and what a hostile image may at most cost.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageConfig {
    /// Registries (`host` or `host:port`, as in an image's name) spoken to over plain HTTP. Those on loopback always
    /// are. Default: none.
    pub plain_http_registries: Vec<String>,

    /// Directory with a folder for each registry in which `hosts.toml` or certificates say how it is reached, by
    /// containerd's convention. It need not exist. Default: `/etc/containerd/certs.d`.
    pub registry_config_dir: PathBuf,

    /// Docker's `config.json` with credentials for hosts that a pull brings none for. Default: empty, none.
    pub docker_config: PathBuf,

    /// Images, by tag or digest, that the kubelet's collector is asked to leave alone (`pinned` in CRI). Default: none.
    pub pinned: Vec<String>,

    /// The most layers an image may have, at most 254. Default: 127, the limit of other runtimes.
    pub max_image_layers: usize,

    /// The most bytes one layer may have when unpacked. Default: 32 GiB.
    pub max_layer_bytes: u64,

    /// The most files, directories and other entries one layer may have. Default: 1,000,000.
    pub max_layer_entries: u64,

    /// The most bytes a manifest or an index may have. Default: 4 MiB, what registries must accept at least.
    pub max_manifest_bytes: u64,

    /// The most bytes an image's configuration may have. Default: 4 MiB.
    pub max_config_bytes: u64,

    /// Layers of one pull downloaded and converted at the same time, at most [`MOST_DOWNLOADS`]. Default: 3.
    pub parallel_layers: usize,

    /// Seconds without one byte from the registry after which a pull is given up. Default: 60.
    pub stall_timeout_seconds: u64,

    /// Seconds within which a connection to a registry must stand. Default: 30.
    pub connect_timeout_seconds: u64,

    /// The least bytes a second that a registry must send on average over [`Self::stall_timeout_seconds`] of waiting for
    /// it; 0 for no such bound. Default: 1024.
    pub least_bytes_per_second: u64,

    /// How often a request is sent at most, when registries are overloaded or connections break; 1 for never again.
    /// Default: 6.
    pub request_attempts: u64,

    /// The most seconds that are waited between the attempts of one request, all waits together. Default: 120.
    pub retry_seconds: u64,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            plain_http_registries: Vec::new(),
            registry_config_dir: "/etc/containerd/certs.d".into(),
            docker_config: PathBuf::new(),
            pinned: Vec::new(),
            max_image_layers: 127,
            max_layer_bytes: 32 * GIB,
            max_layer_entries: 1_000_000,
            max_manifest_bytes: 4 * MIB,
            max_config_bytes: 4 * MIB,
            parallel_layers: 3,
            stall_timeout_seconds: 60,
            connect_timeout_seconds: 30,
            least_bytes_per_second: KIB,
            request_attempts: 6,
            retry_seconds: 120,
        }
    }
}

/// A value in `[images]` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("images.{key} = {value} must be {allowed}")]
pub struct ImageConfigError {
    key: &'static str,
    value: String,
    allowed: &'static str,
}

impl ImageConfig {
    /// Checks that every limit can be kept.
    pub fn validate(&self) -> Result<(), ImageConfigError> {
        let layers = u64::try_from(self.max_image_layers).unwrap_or(u64::MAX);
        let parallel = u64::try_from(self.parallel_layers).unwrap_or(u64::MAX);
        let checks = [
            ("max_image_layers", layers, 1..=MAX_LAYERS as u64, "1 to 254"),
            (
                "max_layer_bytes",
                self.max_layer_bytes,
                MIB..=8 << 40,
                "1 MiB to 8 TiB, in bytes",
            ),
            (
                "max_layer_entries",
                self.max_layer_entries,
                1..=100_000_000,
                "1 to 100000000",
            ),
            (
                "max_manifest_bytes",
                self.max_manifest_bytes,
                KIB..=64 * MIB,
                "1 KiB to 64 MiB, in bytes",
            ),
            (
                "max_config_bytes",
                self.max_config_bytes,
                KIB..=64 * MIB,
                "1 KiB to 64 MiB, in bytes",
            ),
            ("parallel_layers", parallel, 1..=MOST_DOWNLOADS as u64, "1 to 32"),
            (
                "stall_timeout_seconds",
                self.stall_timeout_seconds,
                1..=86_400,
                "1 to 86400",
            ),
            (
                "connect_timeout_seconds",
                self.connect_timeout_seconds,
                1..=3600,
                "1 to 3600",
            ),
            (
                "least_bytes_per_second",
                self.least_bytes_per_second,
                0..=GIB,
                "0 to 1 GiB, in bytes",
            ),
            ("request_attempts", self.request_attempts, 1..=100, "1 to 100"),
            ("retry_seconds", self.retry_seconds, 0..=86_400, "0 to 86400"),
        ];
        if let Some(name) = self.pinned.iter().find(|name| name.parse::<Reference>().is_err()) {
            return Err(ImageConfigError {
                key: "pinned",
                value: format!("{name:?}"),
                allowed: "references of images, such as \"registry.k8s.io/pause:3.10\"",
            });
        }
        for (key, value, range, allowed) in checks {
            if !range.contains(&value) {
                let value = value.to_string();
                return Err(ImageConfigError { key, value, allowed });
            }
        }
        let paths = [
            ("registry_config_dir", &self.registry_config_dir),
            ("docker_config", &self.docker_config),
        ];
        for (key, path) in paths {
            if !path.as_os_str().is_empty() && !path.is_absolute() {
                return Err(ImageConfigError {
                    key,
                    value: format!("{:?}", path.display().to_string()),
                    allowed: "an absolute path, or empty for none",
                });
            }
        }
        Ok(())
    }

    /// Whether `registry`, the host part of a reference, is spoken to without TLS.
    pub(super) fn is_plain_http(&self, registry: &str) -> bool {
        is_loopback(registry) || self.plain_http_registries.iter().any(|listed| listed == registry)
    }
}

/// Whether `registry` (host and perhaps port) is on this host.
pub(super) fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_unknown_keys_are_refused() {
        let config: ImageConfig = toml::from_str("").unwrap();
        assert_eq!(config, ImageConfig::default());
        config.validate().unwrap();
        let error = toml::from_str::<ImageConfig>("max_layer_byte = 1")
            .unwrap_err()
            .to_string();
        assert!(error.contains("max_layer_byte"), "{error}");
    }

    #[test]
    fn limits_out_of_range_are_named() {
        let config = |layers| ImageConfig {
            max_image_layers: layers,
            ..ImageConfig::default()
        };
        config(MAX_LAYERS).validate().unwrap();
        let (error, above) = (config(MAX_LAYERS + 1).validate().unwrap_err(), MAX_LAYERS + 1);
        let expected = format!("images.max_image_layers = {above} must be 1 to {MAX_LAYERS}");
        assert_eq!(error.to_string(), expected);
        let config = ImageConfig {
            parallel_layers: MOST_DOWNLOADS + 1,
            ..ImageConfig::default()
        };
        let error = config.validate().unwrap_err().to_string();
        assert!(
            error.ends_with(&format!("must be 1 to {MOST_DOWNLOADS}")),
            "{error}"
        );
        for documented in [
            format!("# Most layers of an image, at most {MAX_LAYERS}.\n"),
            format!("All pulls together have at most {MOST_DOWNLOADS}.\n"),
        ] {
            assert!(crate::config::DEFAULT_TEXT.contains(&documented), "{documented}");
        }
    }

    #[test]
    fn loopback_and_listed_registries_are_plain_http() {
        let config: ImageConfig = toml::from_str("plain_http_registries = ['mirror:5000']").unwrap();
        for registry in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]",
            "[::1]:80",
            "mirror:5000",
        ] {
            assert!(config.is_plain_http(registry), "{registry}");
        }
        for registry in [
            "docker.io",
            "mirror",
            "mirror:5001",
            "localhost.evil.org",
            "10.0.0.1",
            "[::2]:80",
        ] {
            assert!(!config.is_plain_http(registry), "{registry}");
        }
    }
}
