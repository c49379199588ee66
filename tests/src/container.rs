//! Containers: made with `crictl create`, looked at by gRPC and in their log files.

use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
};

use bulkhead_proto::cri::{
    ContainerState, ContainerStatus, ContainerStatusRequest, ExecSyncRequest, StopContainerRequest,
};
use serde_json::{Value, json};
use tonic::Status;

use crate::{
    Environment, Pod,
    log::{self, Line},
    pod::set,
    until,
};

/// A `ContainerConfig` as `crictl create` reads it.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    fields: Value,
}

impl ContainerSpec {
    /// A container from the test image `image`, such as `busybox:latest`, running the image's own command in a
    /// process namespace of its own.
    pub fn of(image: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // A registry's name has a port or a dot, an id a colon.
        let first = image.split('/').next().unwrap_or_default();
        let is_complete = image.starts_with("sha256:") || image.contains('/') && first.contains(['.', ':']);
        let image = if is_complete {
            image.to_owned()
        } else {
            Environment::get().image(image)
        };
        Self {
            fields: json!({
                "metadata": { "name": format!("c{number}"), "attempt": 0 },
                "image": { "image": image },
                "log_path": format!("c{number}.log"),
                "linux": { "security_context": { "namespace_options": { "pid": 1 } } },
            }),
        }
    }

    /// A busybox that runs `script` with its shell.
    pub fn sh(script: &str) -> Self {
        Self::of("busybox:latest").command(&["sh", "-c", script])
    }

    /// A busybox that does nothing until it is told to end.
    pub fn idle() -> Self {
        Self::of("busybox:latest")
            .command(&["top", "-b", "-d", "3600"])
            .with("/log_path", "")
    }

    /// Replaces the image's entry point.
    #[must_use]
    pub fn command(self, command: &[&str]) -> Self {
        self.with("/command", command.to_vec())
    }

    /// Sets the field at a JSON pointer's path, such as `/linux/security_context/privileged`.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        set(&mut self.fields, pointer, value.into());
        self
    }

    /// Sets a field of its security context, such as `run_as_user`.
    #[must_use]
    pub fn security(self, field: &str, value: impl Into<Value>) -> Self {
        self.with(&format!("/linux/security_context/{field}"), value)
    }

    /// The name of its image.
    pub fn image(&self) -> &str {
        self.text("/image/image")
    }

    fn text(&self, pointer: &str) -> &str {
        self.fields.pointer(pointer).and_then(Value::as_str).unwrap_or("")
    }

    /// The JSON text.
    pub fn json(&self) -> String {
        self.fields.to_string()
    }
}

/// A container of a [`Pod`], gone with it.
#[derive(Debug)]
pub struct Container<'p> {
    pod: &'p Pod<'p>,
    spec: ContainerSpec,
    id: String,
}

/// What a process in a container wrote and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl ExecOutput {
    /// Its standard output as text without surrounding white space.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Its standard error as text without surrounding white space.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }
}

impl<'p> Container<'p> {
    #[track_caller]
    pub(crate) fn create(pod: &'p Pod<'p>, spec: ContainerSpec) -> Self {
        pod.daemon().pull_once(spec.image());
        let output = pod.daemon().crictl().run(create_arguments(pod, &spec));
        assert!(output.code == Some(0), "{output}");
        Self {
            pod,
            spec,
            id: output.stdout.trim().to_owned(),
        }
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `crictl start`.
    #[track_caller]
    pub fn start(&self) {
        self.pod.daemon().crictl().ok(["start", &self.id]);
    }

    /// `crictl stop` with so many seconds of grace.
    #[track_caller]
    pub fn stop(&self, grace_seconds: u32) {
        self.pod
            .daemon()
            .crictl()
            .ok(["stop", "--timeout", &grace_seconds.to_string(), &self.id]);
    }

    /// StopContainer by gRPC, for several at once.
    pub fn try_stop(&self, timeout: i64) -> Result<(), Status> {
        let request = StopContainerRequest {
            container_id: self.id.clone(),
            timeout,
        };
        self.pod
            .daemon()
            .cri()
            .runtime(async |c| c.stop_container(request).await)
            .map(drop)
    }

    /// `crictl rm`.
    #[track_caller]
    pub fn remove(&self) {
        self.pod
            .daemon()
            .crictl()
            .ok(["rm", "--force", "--keep-logs", &self.id]);
    }

    /// ContainerStatus by gRPC.
    pub fn try_status(&self) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: false,
        };
        let answer = self
            .pod
            .daemon()
            .cri()
            .runtime(async |c| c.container_status(request).await)?;
        Ok(answer.status.expect("ContainerStatus answers with a status"))
    }

    /// ContainerStatus by gRPC.
    #[track_caller]
    pub fn status(&self) -> ContainerStatus {
        self.try_status().expect("the container has a status")
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait_exited(&self) -> ContainerStatus {
        until(&format!("container {} to be EXITED", self.id), || {
            let status = self.status();
            match status.state() {
                ContainerState::ContainerExited => Ok(status),
                state => Err(format!("{state:?}")),
            }
        })
    }

    /// ExecSync by gRPC.
    pub fn try_exec(&self, command: &[&str], timeout_seconds: i64) -> Result<ExecOutput, Status> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(ToString::to_string).collect(),
            timeout: timeout_seconds,
        };
        let answer = self
            .pod
            .daemon()
            .cri()
            .runtime(async |c| c.exec_sync(request).await)?;
        Ok(ExecOutput {
            code: answer.exit_code,
            stdout: answer.stdout,
            stderr: answer.stderr,
        })
    }

    /// ExecSync that must be carried out, whatever its exit code.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> ExecOutput {
        self.try_exec(command, 0)
            .unwrap_or_else(|status| panic!("ExecSync of {command:?}: {status}"))
    }

    /// Runs a script with the image's shell, which must succeed and write nothing to its standard error.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let output = self.exec(&["sh", "-c", script]);
        assert!(
            output.code == 0 && output.stderr.is_empty(),
            "{script}: {output:?}, {}",
            output.error_text()
        );
        output.text()
    }

    /// Its log file as bytes.
    #[track_caller]
    pub fn raw_log(&self) -> Vec<u8> {
        let path = self.pod.log_directory().join(self.spec.text("/log_path"));
        fs::read(&path).unwrap_or_else(|error| panic!("log {}: {error}", path.display()))
    }

    /// Its log, parsed.
    #[track_caller]
    pub fn log(&self) -> Vec<Line> {
        log::parse(&self.raw_log())
    }

    /// Waits until its log holds a line with `text`.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        until(&format!("{text:?} in the log of {}", self.id), || {
            let log = String::from_utf8_lossy(&self.raw_log()).into_owned();
            if log.contains(text) { Ok(()) } else { Err(log) }
        });
    }
}

/// The arguments of `crictl` that create the container `spec` describes.
pub fn create_arguments(pod: &Pod<'_>, spec: &ContainerSpec) -> [String; 4] {
    let file = pod.files().join(format!("{}.json", spec.text("/metadata/name")));
    fs::write(&file, spec.json()).expect("the container's JSON is written");
    [
        "create".into(),
        pod.id().into(),
        shown(&file),
        shown(&pod.config_file()),
    ]
}

fn shown(path: &std::path::Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}
