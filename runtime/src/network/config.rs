//! The daemon's `[network]` section.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where CNI's configurations and plugins are, and how plugins are run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// Whether pods are attached to a network at all; else they have loopback and nothing else.
    pub enabled: bool,
    /// Directory with CNI configurations.
    pub conf_dir: PathBuf,
    /// Directories with CNI plugins.
    pub bin_dirs: Vec<PathBuf>,
    /// Directory for what is remembered of pods' networks; empty for one in the daemon's root.
    pub cache_dir: PathBuf,
    /// How long each run of a plugin may take.
    pub plugin_timeout_seconds: u64,
    /// Template of a configuration, filled in with the pod CIDR; empty for none.
    pub conf_template: PathBuf,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: PathBuf::new(),
            plugin_timeout_seconds: 60,
            conf_template: PathBuf::new(),
        }
    }
}

impl NetworkConfig {
    /// Checks that every value can be used.
    ///
    /// # Errors
    ///
    /// The key in the section, its value, and why it cannot be used.
    pub fn validate(&self) -> Result<(), (&'static str, String, &'static str)> {
        let absolute = "it must be an absolute path";
        if !self.conf_dir.is_absolute() {
            return Err(("conf_dir", self.conf_dir.display().to_string(), absolute));
        }
        if self.bin_dirs.is_empty() {
            return Err((
                "bin_dirs",
                "[]".to_owned(),
                "there must be a directory with plugins",
            ));
        }
        for directory in &self.bin_dirs {
            // They are handed to plugins separated by colons.
            if !directory.is_absolute() || directory.to_string_lossy().contains(':') {
                return Err((
                    "bin_dirs",
                    directory.display().to_string(),
                    "it must be an absolute path without a colon",
                ));
            }
        }
        for (key, path) in [
            ("cache_dir", &self.cache_dir),
            ("conf_template", &self.conf_template),
        ] {
            if !path.as_os_str().is_empty() && !path.is_absolute() {
                return Err((
                    key,
                    path.display().to_string(),
                    "it must be an absolute path or empty",
                ));
            }
        }
        if !(1..=3600).contains(&self.plugin_timeout_seconds) {
            return Err((
                "plugin_timeout_seconds",
                self.plugin_timeout_seconds.to_string(),
                "it must be 1 second to an hour",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_cannot_be_used_are_named() {
        NetworkConfig::default().validate().unwrap();
        for text in [
            "conf_dir = 'net.d'",
            "bin_dirs = []",
            "bin_dirs = ['bin']",
            "bin_dirs = ['/a:/b']",
            "cache_dir = 'cache'",
            "conf_template = 'template'",
            "plugin_timeout_seconds = 0",
        ] {
            let config: NetworkConfig = toml::from_str(text).unwrap();
            let (key, _, _) = config.validate().unwrap_err();
            assert!(text.starts_with(key), "{text}: {key}");
        }
    }
}
