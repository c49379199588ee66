//! Networks of a test's own: a bridge, addresses, a configuration, and plugins that the test writes as shell scripts.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
};

use bulkhead_tests::{Daemon, DaemonOptions, until};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A network whose configuration only this test's daemon has. Its bridge goes when it is dropped.
#[derive(Debug)]
pub(super) struct PrivateNetwork {
    directory: TempDir,
    number: u8,
    name: String,
}

impl PrivateNetwork {
    /// One without a configuration yet.
    pub(super) fn new() -> Self {
        static NUMBER: AtomicU8 = AtomicU8::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::Builder::new()
            .prefix("network-")
            .tempdir_in("/var/tmp")
            .expect("a directory for a network");
        for name in ["net.d", "bin", "addresses"] {
            fs::create_dir(directory.path().join(name)).expect("a directory for a network");
        }
        Self {
            directory,
            number,
            name: format!("private{number}"),
        }
    }

    /// Its name, and that of its bridge.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The IPv4 network, such as 10.101.0.0/24 by `host` "0/24".
    pub(super) fn v4(&self, host: &str) -> String {
        format!("10.{}.0.{host}", 100 + self.number)
    }

    /// The IPv6 network, such as fd88:1::/64 by `host` "/64".
    pub(super) fn v6(&self, host: &str) -> String {
        format!("fd88:{:x}::{host}", self.number)
    }

    /// A range of host-local: the whole network of one family.
    pub(super) fn range(subnet: &str) -> Value {
        json!({ "subnet": subnet })
    }

    /// Plugin `bridge` with addresses of host-local from these ranges.
    pub(super) fn bridge(&self, ranges: &[Value]) -> Value {
        let routes = ranges.iter().map(|range| {
            let subnet = range["subnet"].as_str().expect("a range has a subnet");
            json!({ "dst": if subnet.contains(':') { "::/0" } else { "0.0.0.0/0" } })
        });
        json!({
            "type": "bridge",
            "bridge": self.name,
            "isGateway": true,
            "ipMasq": true,
            "ipam": {
                "type": "host-local",
                "dataDir": self.path("addresses"),
                "ranges": ranges.iter().map(|range| json!([range])).collect::<Vec<_>>(),
                "routes": routes.collect::<Vec<_>>(),
            },
        })
    }

    /// Plugin `bridge` with so many IPv4 addresses for pods and no more.
    pub(super) fn bridge_with_addresses(&self, count: u8) -> Value {
        self.bridge(&[json!({
            "subnet": self.v4("0/24"),
            "rangeStart": self.v4("10"),
            "rangeEnd": self.v4(&(9 + count).to_string()),
        })])
    }

    /// Makes these plugins the network.
    pub(super) fn configure(&self, plugins: &Value) {
        self.put("10-private.conflist", plugins);
    }

    /// Puts the network, made of these plugins, before that of `before`, and waits until its daemon has seen it.
    #[track_caller]
    pub(super) fn take_the_place_of(&self, before: &Self, daemon: &Daemon, plugins: &Value) {
        self.put("00-first.conflist", plugins);
        let (from, to) = (
            self.path("net.d/00-first.conflist"),
            before.path("net.d/00-first.conflist"),
        );
        fs::rename(from, to).expect("a configuration is put in place");
        until("the new configuration to be seen", || {
            let log = daemon.log();
            let seen = format!("attached to CNI network {} ", self.name);
            if log.contains(&seen) { Ok(()) } else { Err(log) }
        });
    }

    fn put(&self, file: &str, plugins: &Value) {
        let list = json!({ "cniVersion": "1.0.0", "name": self.name, "plugins": plugins });
        fs::write(self.path("net.d").join(file), list.to_string()).expect("a configuration is written");
    }

    /// Adds a plugin: a script that finds its configuration in `$config`, the network's directory in `$directory`, and what it is to
    /// do in `$CNI_COMMAND`. After it, ADD passes on what the plugin before has made.
    pub(super) fn script(&self, name: &str, script: &str) {
        let text = format!(
            "#!/bin/sh\nconfig=$(cat)\ndirectory={}\n{script}\n\
             [ \"$CNI_COMMAND\" != ADD ] || printf '%s' \"$config\" | jq .prevResult\n",
            self.path("").display()
        );
        let path = self.path("bin").join(name);
        fs::write(&path, text).expect("a plugin is written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a plugin is made executable");
    }

    /// A path in the network's directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Options of a daemon that puts its pods there.
    pub(super) fn options(&self) -> DaemonOptions {
        let shown = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        let plugins = vec![shown(&self.path("bin")), "/usr/lib/cni".to_owned()];
        DaemonOptions::new()
            .config("network.conf_dir", shown(&self.path("net.d")))
            .config("network.bin_dirs", plugins)
    }

    /// What pods hold: addresses that are given, and ports of the bridge.
    pub(super) fn held(&self) -> Vec<String> {
        let names = |path: &Path| -> Vec<String> {
            let entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
            entries
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect()
        };
        let mut held = names(&self.path("addresses").join(&self.name));
        held.retain(|name| name.parse::<IpAddr>().is_ok());
        let ports = Path::new("/sys/class/net").join(&self.name).join("brif");
        held.extend(names(&ports));
        held
    }

    /// Removes the bridge, as a reboot does.
    pub(super) fn remove_bridge(&self) {
        let _ = Command::new("ip").args(["link", "delete", &self.name]).output();
    }
}

impl Drop for PrivateNetwork {
    fn drop(&mut self) {
        self.remove_bridge();
    }
}
