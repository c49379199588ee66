//! Plugins for tests: shell scripts that write down how they were called.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::plugin::Runner;

/// A directory of plugins, and what they wrote down.
pub(crate) struct FakePlugins {
    directory: TempDir,
}

impl FakePlugins {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// Adds one that writes down its input and environment and then does what `body` says, in which `$input` is what it read.
    pub(crate) fn add(&self, name: &str, body: &str) {
        let log = self.directory.path().join("calls");
        let text = format!(
            "#!/bin/sh\ninput=$(cat)\nprintf '%s\\t%s\\t%s\\t%s\\t%s\\t%s\\t%s\\n' {name} \"$CNI_COMMAND\" \
             \"$CNI_CONTAINERID\" \"$CNI_NETNS\" \"$CNI_IFNAME\" \"$CNI_ARGS\" \"$input\" >>{}\n{body}\n",
            log.display()
        );
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Adds one that answers ADD with `result`, and all else with success.
    pub(crate) fn add_with_result(&self, name: &str, result: &Value) {
        self.add(
            name,
            &format!("if [ \"$CNI_COMMAND\" = ADD ]; then cat <<'END'\n{result}\nEND\nfi"),
        );
    }

    /// Removes one.
    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Where one is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Their directory.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Runs them, each for at most `seconds`.
    pub(crate) fn runner(&self, seconds: u64) -> Runner {
        Runner {
            bin_dirs: vec![PathBuf::from("/nonexistent"), self.directory.path().to_owned()],
            timeout: Duration::from_secs(seconds),
        }
    }

    /// Every call so far, and forgets them.
    pub(crate) fn calls(&self) -> Vec<Call> {
        let log = self.directory.path().join("calls");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(log);
        text.lines().map(Call::parse).collect()
    }
}

/// One call of a plugin.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) plugin: String,
    pub(crate) command: String,
    pub(crate) container: String,
    pub(crate) namespace: String,
    pub(crate) interface: String,
    pub(crate) arguments: String,
    pub(crate) input: Value,
}

impl Call {
    fn parse(line: &str) -> Self {
        let mut fields = line.splitn(7, '\t').map(str::to_owned);
        let mut next = || fields.next().unwrap();
        Self {
            plugin: next(),
            command: next(),
            container: next(),
            namespace: next(),
            interface: next(),
            arguments: next(),
            input: serde_json::from_str(&next()).unwrap(),
        }
    }

    /// Such as "ADD main".
    pub(crate) fn summary(&self) -> String {
        format!("{} {}", self.command, self.plugin)
    }
}
