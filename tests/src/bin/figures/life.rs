//! A pod's life by CRI, whoever serves it: asked by gRPC and not with `crictl`, whose own start would be most of it.

use std::time::{Duration, Instant};

use anyhow::Result;
use bulkhead_proto::cri::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopPodSandboxRequest,
};
use bulkhead_tests::{Cri, PodSpec};

/// How long each call took.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    pub run: Duration,
    pub create: Duration,
    pub start: Duration,
    pub stop: Duration,
    pub remove: Duration,
}

impl Life {
    /// From the asking for a pod until its container runs.
    pub fn until_running(&self) -> Duration {
        self.run + self.create + self.start
    }

    /// Its end.
    pub fn end(&self) -> Duration {
        self.stop + self.remove
    }
}

/// One pod with one container, from nothing to nothing. `look` gets the pod's id when its container runs.
pub fn live<T>(cri: &Cri, image: &str, look: impl FnOnce(&str) -> Result<T>) -> Result<(Life, T)> {
    let (running, [run, create, start]) = begin(cri, &Wanted::idle(image))?;
    let seen = look(&running.pod)?;
    let [stop, remove] = running.end(cri)?;
    let life = Life {
        run,
        create,
        start,
        stop,
        remove,
    };
    Ok((life, seen))
}

/// What is to run in a pod.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'w> {
    pub image: &'w str,
    pub command: &'w [&'w str],
    /// Directory of the log, which is called [`LOG`] there; empty: there is none.
    pub logs: &'w str,
}

/// The name of a container's log.
pub const LOG: &str = "log";

impl<'w> Wanted<'w> {
    /// A container that does nothing.
    pub fn idle(image: &'w str) -> Self {
        Self {
            image,
            command: &["sleep", "3600"],
            logs: "",
        }
    }
}

/// A pod with a container that was started.
#[derive(Debug)]
pub struct Running {
    pub pod: String,
    pub container: String,
}

/// Runs a pod with a container; how long each of the three calls took.
pub fn begin(cri: &Cri, wanted: &Wanted<'_>) -> Result<(Running, [Duration; 3])> {
    let mut config = PodSpec::new("bench").config();
    wanted.logs.clone_into(&mut config.log_directory);
    let request = RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: String::new(),
    };
    let started = Instant::now();
    let pod = cri
        .runtime(async |c| c.run_pod_sandbox(request).await)?
        .pod_sandbox_id;
    let run = started.elapsed();

    let log_path = if wanted.logs.is_empty() { "" } else { LOG };
    let request = CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "bench".to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: wanted.image.to_owned(),
                ..ImageSpec::default()
            }),
            command: wanted.command.iter().map(ToString::to_string).collect(),
            log_path: log_path.to_owned(),
            ..ContainerConfig::default()
        }),
        sandbox_config: Some(config),
    };
    let started = Instant::now();
    let container = cri
        .runtime(async |c| c.create_container(request).await)?
        .container_id;
    let create = started.elapsed();

    let request = StartContainerRequest {
        container_id: container.clone(),
    };
    let started = Instant::now();
    cri.runtime(async |c| c.start_container(request).await)?;
    let start = started.elapsed();
    Ok((Running { pod, container }, [run, create, start]))
}

impl Running {
    /// Stops and removes the pod; how long each of the two calls took.
    pub fn end(self, cri: &Cri) -> Result<[Duration; 2]> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: self.pod.clone(),
        };
        let started = Instant::now();
        cri.runtime(async |c| c.stop_pod_sandbox(request).await)?;
        let stop = started.elapsed();

        let request = RemovePodSandboxRequest {
            pod_sandbox_id: self.pod,
        };
        let started = Instant::now();
        cri.runtime(async |c| c.remove_pod_sandbox(request).await)?;
        Ok([stop, started.elapsed()])
    }
}
