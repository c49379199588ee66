//! Pods: made with `crictl runp`, gone when the test ends.

use std::{
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use bulkhead_proto::cri::{
    PodSandboxConfig, PodSandboxMetadata, PodSandboxState, PodSandboxStatus, PodSandboxStatusRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StopPodSandboxRequest,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Status;

use crate::{Container, ContainerSpec, Daemon, until};

/// The namespace of every pod of the tests.
const NAMESPACE: &str = "bulkhead-tests";

/// A `PodSandboxConfig` as `crictl runp` reads it: JSON with CRI's own field names.
#[derive(Clone, Debug)]
pub struct PodSpec {
    name: String,
    fields: Value,
}

impl PodSpec {
    /// A pod whose containers have process namespaces of their own, as the kubelet asks for (CRI's own default is one
    /// for the pod), and that asks for nothing else. `name` is made unique.
    pub fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{name}-{}-{number}", process::id());
        let metadata =
            json!({ "name": name, "uid": format!("uid-{name}"), "namespace": NAMESPACE, "attempt": 0 });
        Self {
            name,
            fields: json!({ "metadata": metadata, "linux": { "security_context": { "namespace_options": { "pid": 1 } } } }),
        }
    }

    /// Sets the field at a JSON pointer's path, such as `/linux/sysctls`, making the objects on the way.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        set(&mut self.fields, pointer, value.into());
        self
    }

    /// Its name in the metadata.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same metadata as a message, for calls by gRPC.
    pub fn config(&self) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: self.name.clone(),
                uid: format!("uid-{}", self.name),
                namespace: NAMESPACE.into(),
                attempt: 0,
            }),
            ..PodSandboxConfig::default()
        }
    }

    /// The JSON text.
    pub fn json(&self) -> String {
        self.fields.to_string()
    }
}

/// Sets the field at `pointer` in `object`, making the objects on the way.
pub(crate) fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut place = object;
    for key in pointer.split('/').skip(1) {
        if !place.is_object() {
            *place = json!({});
        }
        place = place
            .as_object_mut()
            .expect("just made an object")
            .entry(key)
            .or_insert(Value::Null);
    }
    *place = value;
}

/// A running pod. Dropping it stops and removes it, and a removal that fails is a failure of the test.
#[derive(Debug)]
pub struct Pod<'d> {
    daemon: &'d Daemon,
    spec: PodSpec,
    id: String,
    files: TempDir,
    removed: AtomicBool,
}

impl Daemon {
    /// Runs a pod with `crictl runp`.
    #[track_caller]
    pub fn run_pod(&self, spec: PodSpec) -> Pod<'_> {
        let files = tempfile::Builder::new()
            .prefix("bulkhead-pod-")
            .tempdir()
            .expect("a directory for the pod's files");
        let logs = files.path().join("logs");
        std::fs::create_dir(&logs).expect("a directory for the pod's logs");
        let spec = match spec.fields.pointer("/log_directory") {
            Some(_) => spec,
            None => spec.with("/log_directory", logs.to_str().expect("a path in UTF-8")),
        };
        let config = files.path().join("pod.json");
        std::fs::write(&config, spec.json()).expect("the pod's JSON is written");
        let id = self
            .crictl()
            .ok(["runp", config.to_str().expect("a path in UTF-8")]);
        Pod {
            daemon: self,
            spec,
            id,
            files,
            removed: AtomicBool::new(false),
        }
    }

    /// RunPodSandbox by gRPC with the metadata alone, for a call that is to fail: what it makes is not removed. The pod's id.
    pub fn try_run_pod(&self, spec: &PodSpec) -> Result<String, Status> {
        let request = RunPodSandboxRequest {
            config: Some(spec.config()),
            runtime_handler: String::new(),
        };
        self.cri()
            .runtime(async |c| c.run_pod_sandbox(request).await)
            .map(|answer| answer.pod_sandbox_id)
    }
}

impl Pod<'_> {
    /// The sandbox's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it was made from.
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// The daemon that runs it.
    pub fn daemon(&self) -> &Daemon {
        self.daemon
    }

    /// The file that `crictl` was given.
    pub fn config_file(&self) -> PathBuf {
        self.files.path().join("pod.json")
    }

    /// Where its containers' logs are.
    pub fn log_directory(&self) -> PathBuf {
        self.spec
            .fields
            .pointer("/log_directory")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .into()
    }

    pub(crate) fn files(&self) -> &Path {
        self.files.path()
    }

    /// PodSandboxStatus by gRPC.
    pub fn try_status(&self) -> Result<PodSandboxStatus, Status> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: false,
        };
        let answer = self
            .daemon
            .cri()
            .runtime(async |c| c.pod_sandbox_status(request).await)?;
        Ok(answer.status.expect("PodSandboxStatus answers with a status"))
    }

    /// Its state.
    #[track_caller]
    pub fn state(&self) -> PodSandboxState {
        self.try_status().expect("the pod has a status").state()
    }

    /// Waits until the daemon has seen that the pod's machine is gone.
    #[track_caller]
    pub fn wait_not_ready(&self) {
        until(&format!("pod {} to be NOTREADY", self.id), || {
            match self.state() {
                PodSandboxState::SandboxNotready => Ok(()),
                state @ PodSandboxState::SandboxReady => Err(format!("{state:?}")),
            }
        });
    }

    /// Process id of the pod's `bulkhead-vmm`, as `crictl inspectp` shows it at `.info.pid`.
    #[track_caller]
    pub fn vmm_pid(&self) -> i32 {
        let inspect = self.daemon.crictl().json(["inspectp", &self.id]);
        let pid = inspect.pointer("/info/pid").and_then(Value::as_i64).unwrap_or(0);
        assert!(pid > 0, "inspectp shows no VMM process at .info.pid: {inspect:#}");
        i32::try_from(pid).expect("a process id")
    }

    /// Creates a container with `crictl create`.
    #[track_caller]
    pub fn create(&self, spec: ContainerSpec) -> Container<'_> {
        Container::create(self, spec)
    }

    /// Creates and starts a container.
    #[track_caller]
    pub fn run(&self, spec: ContainerSpec) -> Container<'_> {
        let container = self.create(spec);
        container.start();
        container
    }

    /// `crictl stopp`.
    #[track_caller]
    pub fn stop(&self) {
        self.daemon.crictl().ok(["stopp", &self.id]);
    }

    /// StopPodSandbox by gRPC.
    pub fn try_stop(&self) -> Result<(), Status> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        self.daemon
            .cri()
            .runtime(async |c| c.stop_pod_sandbox(request).await)
            .map(drop)
    }

    /// `crictl rmp`, after `stopp` where it still runs.
    #[track_caller]
    pub fn remove(&self) {
        self.daemon.crictl().ok(["rmp", "--force", &self.id]);
        self.removed.store(true, Ordering::Relaxed);
    }

    /// To be called by a test that removes the pod by other means.
    pub fn is_removed(&self) {
        self.removed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.daemon.tell_about(&self.id);
        }
        if self.removed.load(Ordering::Relaxed) {
            return;
        }
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        let removed = self
            .daemon
            .cri()
            .runtime(async |c| c.remove_pod_sandbox(request).await);
        if let Err(status) = removed {
            assert!(thread::panicking(), "RemovePodSandbox of {}: {status}", self.id);
            eprintln!("RemovePodSandbox of {}: {status}", self.id);
        }
    }
}
