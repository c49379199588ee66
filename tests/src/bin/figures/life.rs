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

/// One pod with one container, from nothing to nothing. `look` gets the pod's id when it is ready.
pub fn live<T>(cri: &Cri, image: &str, look: impl FnOnce(&str) -> Result<T>) -> Result<(Life, T)> {
    let config = PodSpec::new("bench").config();
    let request = RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: String::new(),
    };
    let started = Instant::now();
    let pod = cri
        .runtime(async |c| c.run_pod_sandbox(request).await)?
        .pod_sandbox_id;
    let run = started.elapsed();
    let seen = look(&pod)?;

    let request = CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "bench".to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: image.to_owned(),
                ..ImageSpec::default()
            }),
            command: ["sleep", "3600"].map(str::to_owned).to_vec(),
            ..ContainerConfig::default()
        }),
        sandbox_config: Some(config),
    };
    let started = Instant::now();
    let container_id = cri
        .runtime(async |c| c.create_container(request).await)?
        .container_id;
    let create = started.elapsed();

    let started = Instant::now();
    cri.runtime(async |c| c.start_container(StartContainerRequest { container_id }).await)?;
    let start = started.elapsed();

    let request = StopPodSandboxRequest {
        pod_sandbox_id: pod.clone(),
    };
    let started = Instant::now();
    cri.runtime(async |c| c.stop_pod_sandbox(request).await)?;
    let stop = started.elapsed();

    let request = RemovePodSandboxRequest { pod_sandbox_id: pod };
    let started = Instant::now();
    cri.runtime(async |c| c.remove_pod_sandbox(request).await)?;
    let remove = started.elapsed();
    let life = Life {
        run,
        create,
        start,
        stop,
        remove,
    };
    Ok((life, seen))
}
