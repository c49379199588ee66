//! The peer: Debian's containerd and runc, as the node has them, on directories of their own.
//!
//! The same registry, without its own; the same networks and plugins of CNI; control groups made by runc itself. Everything
//! else is as it comes.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bulkhead_proto::cri::VersionRequest;
use bulkhead_tests::{Cri, Environment};
use rustix::process::{Pid, Signal, kill_process};

/// What figures call it.
pub const PEER: &str = "containerd + runc";

/// How long it may take to answer, or to end.
const PATIENCE: Duration = Duration::from_mins(2);

/// Where the node's mirrors of registries are configured, for names that critest has compiled in.
const NODE_HOSTS: &str = "/etc/containerd/certs.d";

/// A running containerd, which ends when this is dropped.
#[derive(Debug)]
pub struct Containerd {
    process: Child,
    cri: Cri,
    endpoint: String,
    directory: tempfile::TempDir,
}

impl Containerd {
    /// Starts it and waits for its answer.
    pub fn start() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("containerd-")
            .tempdir_in("/var/tmp")?;
        let config = directory.path().join("config.toml");
        fs::write(&config, configuration(directory.path()))?;
        write_hosts(&directory.path().join("certs.d"))?;
        let log = File::create(directory.path().join("log"))?;
        let process = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("containerd does not start")?;
        let endpoint = format!("unix://{}", directory.path().join("containerd.sock").display());
        let mut containerd = Self {
            process,
            cri: Cri::new(&endpoint),
            endpoint,
            directory,
        };
        containerd.wait_for_answer()?;
        Ok(containerd)
    }

    fn wait_for_answer(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            let answer = self
                .cri
                .runtime(async |c| c.version(VersionRequest::default()).await);
            let Err(status) = answer else { return Ok(()) };
            if self.process.try_wait()?.is_some() || started.elapsed() > PATIENCE {
                bail!("containerd does not answer ({status}): {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Its CRI.
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// Where it answers, as `unix:///…`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The directory of what it keeps.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let asked = Instant::now();
        while let Ok(None) = self.process.try_wait() {
            if asked.elapsed() > PATIENCE {
                let _ = self.process.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Configures the registries that the node has mirrors of, and its own. A file without a table of hosts, as the node has them,
/// is none for containerd 1.6.
fn write_hosts(directory: &Path) -> Result<()> {
    let mut servers = vec![(
        Environment::get().registry.clone(),
        format!("http://{}", Environment::get().registry),
    )];
    for registry in fs::read_dir(NODE_HOSTS).context(NODE_HOSTS)? {
        let registry = registry?;
        let hosts: toml::Table = fs::read_to_string(registry.path().join("hosts.toml"))?.parse()?;
        let server = hosts.get("server").and_then(toml::Value::as_str);
        let server = server.with_context(|| format!("{} names no server", registry.path().display()))?;
        servers.push((
            registry.file_name().to_string_lossy().into_owned(),
            server.to_owned(),
        ));
    }
    for (registry, server) in servers {
        fs::create_dir_all(directory.join(&registry))?;
        fs::write(
            directory.join(&registry).join("hosts.toml"),
            format!("[host.\"{server}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"),
        )?;
    }
    Ok(())
}

fn configuration(directory: &Path) -> String {
    let directory = directory.display();
    let registry = &Environment::get().registry;
    format!(
        r#"version = 2
root = "{directory}/root"
state = "{directory}/state"

[grpc]
address = "{directory}/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{registry}/pause:3.9"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{directory}/certs.d"
"#
    )
}
