//! `bulkhead debug`: one archive with what a bug report needs.
//!
//! What containers print, the values of their variables and of annotations are the tenants' and are not in it.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Command,
};

use bulkhead_proto::cri::{
    ContainerStatusRequest, ListContainersRequest, ListPodSandboxRequest, PodSandboxStatusRequest,
    StatusRequest, runtime_service_client::RuntimeServiceClient,
};
use flate2::{Compression, write::GzEncoder};
use serde_json::Value;
use tonic::transport::Channel;

use super::client::{ANSWER_BYTES, AdminError, connect};
use crate::{check, config::Config};

/// Most bytes that are taken from the end of a file.
const FILE_BYTES: u64 = 1 << 20;

/// Lines of the daemon's journal.
const JOURNAL_LINES: &str = "5000";

/// An archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum DebugError {
    /// The archive.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Where it was to be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Writes an archive (tar, gzip) to `output`, which must not exist, and gives what is not in it, and why. It is written also when
/// the daemon does not answer.
///
/// # Errors
///
/// [`DebugError`].
pub async fn write(config: &Config, output: &Path) -> Result<Vec<String>, DebugError> {
    let failed = |source| DebugError::Write {
        path: output.to_owned(),
        source,
    };
    let file = File::create_new(output).map_err(failed)?;
    let mut bundle = Bundle {
        archive: tar::Builder::new(GzEncoder::new(file, Compression::default())),
        missing: Vec::new(),
    };
    let written = bundle.fill(config).await;
    let missing = bundle.missing;
    let finished = written.and_then(|()| bundle.archive.into_inner()?.finish()?.sync_all());
    match finished {
        Ok(()) => Ok(missing),
        Err(source) => {
            // Half of one is of no use.
            let _ = fs::remove_file(output);
            Err(failed(source))
        }
    }
}

struct Bundle {
    archive: tar::Builder<GzEncoder<File>>,
    /// What could not be had, and why.
    missing: Vec<String>,
}

impl Bundle {
    async fn fill(&mut self, config: &Config) -> io::Result<()> {
        self.add(
            "version.txt",
            concat!("bulkhead ", env!("CARGO_PKG_VERSION"), "\n"),
        )?;
        let mut checks = String::new();
        for check in check::all(config) {
            let _ = writeln!(checks, "{check}");
        }
        self.add("check.txt", &checks)?;
        let text = toml::to_string(config).map_err(io::Error::other)?;
        self.add("config.toml", &text)?;
        for path in [
            "/proc/version",
            "/proc/cpuinfo",
            "/proc/meminfo",
            "/proc/cmdline",
            "/proc/mounts",
        ] {
            self.add_end_of(&format!("host{path}"), Path::new(path))?;
        }
        self.add_output("host/dmesg.txt", "dmesg", &[])?;
        self.add_output(
            "journal.txt",
            "journalctl",
            &["--unit", "bulkheadd", "--no-pager", "--lines", JOURNAL_LINES],
        )?;
        match self.daemon(config).await? {
            Ok(()) => Ok(()),
            Err(error) => {
                self.missing.push(format!("pods and containers: {error}"));
                Ok(())
            }
        }
    }

    /// What the daemon tells. The outer error is that of writing.
    async fn daemon(&mut self, config: &Config) -> io::Result<Result<(), AdminError>> {
        let channel = match connect(&config.cri.socket).await {
            Ok(channel) => channel,
            Err(error) => return Ok(Err(error)),
        };
        let mut client = RuntimeServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
        let told = match Told::by(&mut client).await {
            Ok(told) => told,
            Err(error) => return Ok(Err(error)),
        };
        self.add("status.txt", &told.status)?;
        for (id, text, info) in &told.pods {
            self.add(&format!("pods/{id}/status.txt"), text)?;
            for (name, key) in [("console.txt", "/machine/console"), ("vmm.txt", "/machine/log")] {
                if let Some(path) = info.pointer(key).and_then(Value::as_str) {
                    self.add_end_of(&format!("pods/{id}/{name}"), Path::new(path))?;
                }
            }
        }
        for (id, text) in &told.containers {
            self.add(&format!("containers/{id}.txt"), text)?;
        }
        Ok(Ok(()))
    }

    fn add(&mut self, name: &str, text: &str) -> io::Result<()> {
        self.add_bytes(name, text.as_bytes())
    }

    fn add_bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        header.set_mode(0o600);
        self.archive
            .append_data(&mut header, format!("bulkhead-debug/{name}"), bytes)
    }

    fn add_end_of(&mut self, name: &str, path: &Path) -> io::Result<()> {
        match end_of(path) {
            Ok(bytes) => self.add_bytes(name, &bytes),
            Err(error) => {
                self.missing.push(format!("{}: {error}", path.display()));
                Ok(())
            }
        }
    }

    fn add_output(&mut self, name: &str, program: &str, arguments: &[&str]) -> io::Result<()> {
        match Command::new(program).args(arguments).output() {
            Ok(output) if output.status.success() => self.add_bytes(name, &output.stdout),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                self.missing.push(format!("{program}: {}", said.trim()));
                Ok(())
            }
            Err(error) => {
                self.missing.push(format!("{program}: {error}"));
                Ok(())
            }
        }
    }
}

/// What a daemon says of itself and of all that it runs, without what is the tenants'.
struct Told {
    status: String,
    /// Id, status and `info` of each.
    pods: Vec<(String, String, Value)>,
    /// Id and status of each.
    containers: Vec<(String, String)>,
}

impl Told {
    async fn by(client: &mut RuntimeServiceClient<Channel>) -> Result<Self, AdminError> {
        let status = client.status(StatusRequest { verbose: true }).await?.into_inner();
        let mut told = Self {
            status: format!("{status:#?}\n"),
            pods: Vec::new(),
            containers: Vec::new(),
        };
        let pods = client.list_pod_sandbox(ListPodSandboxRequest::default()).await?;
        for pod in pods.into_inner().items {
            let request = PodSandboxStatusRequest {
                pod_sandbox_id: pod.id.clone(),
                verbose: true,
            };
            // One that is removed meanwhile is not there any more.
            let Ok(answer) = client.pod_sandbox_status(request).await else {
                continue;
            };
            let mut answer = answer.into_inner();
            let info = answer
                .info
                .get("info")
                .and_then(|info| serde_json::from_str(info).ok());
            if let Some(status) = &mut answer.status {
                status.annotations.values_mut().for_each(hide);
            }
            told.pods
                .push((pod.id, format!("{answer:#?}\n"), info.unwrap_or_default()));
        }
        let containers = client.list_containers(ListContainersRequest::default()).await?;
        for container in containers.into_inner().containers {
            let request = ContainerStatusRequest {
                container_id: container.id.clone(),
                // The verbose half has the command, in which there are secrets often enough.
                verbose: false,
            };
            let Ok(answer) = client.container_status(request).await else {
                continue;
            };
            let mut answer = answer.into_inner();
            if let Some(status) = &mut answer.status {
                status.annotations.values_mut().for_each(hide);
            }
            told.containers.push((container.id, format!("{answer:#?}\n")));
        }
        Ok(told)
    }
}

fn hide(value: &mut String) {
    *value = format!("({} bytes)", value.len());
}

fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    // Files of /proc have no length, and are read whole.
    file.seek(SeekFrom::Start(length.saturating_sub(FILE_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flate2::read::GzDecoder;

    use super::*;

    #[tokio::test]
    async fn an_archive_is_written_also_when_the_daemon_is_away() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.cri.socket = directory.path().join("nobody.sock");
        let output = directory.path().join("debug.tar.gz");
        let missing = write(&config, &output).await.unwrap();
        assert!(
            missing.iter().any(|line| line.contains("nobody.sock")),
            "{missing:?}"
        );
        let mut archive = tar::Archive::new(GzDecoder::new(File::open(&output).unwrap()));
        let names: BTreeSet<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        for name in ["version.txt", "check.txt", "config.toml", "host/proc/meminfo"] {
            assert!(
                names.contains(&format!("bulkhead-debug/{name}")),
                "{name} is not in {names:?}"
            );
        }
        let error = write(&config, &output).await.unwrap_err().to_string();
        assert!(
            error.contains("debug.tar.gz") && error.contains("exists"),
            "{error}"
        );
    }

    #[test]
    fn of_a_long_file_the_end_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("long");
        let mut text = vec![b'a'; 2 << 20];
        text.extend_from_slice(b"end");
        fs::write(&path, &text).unwrap();
        let end = end_of(&path).unwrap();
        assert_eq!((end.len(), end.ends_with(b"aend")), (1 << 20, true));
    }

    #[test]
    fn what_is_a_tenants_is_hidden() {
        let mut value = "secret".to_owned();
        hide(&mut value);
        assert_eq!(value, "(6 bytes)");
    }
}
