//! `pod`: how long RunPodSandbox, CreateContainer and StartContainer take, and where the time of the first goes.
//!
//! Asked by gRPC and not with `crictl`, whose own start would be most of what is measured.

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bulkhead_proto::cri::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, PodSandboxStatusRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
};
use bulkhead_tests::{Daemon, Environment, PodSpec};
use bulkhead_vmm::control::client::Client;
use serde_json::Value;

use crate::figure::{Figure, in_seconds};

const SAMPLES: usize = 10;

/// The phases of RunPodSandbox in the verbose status of a pod, in their order, and what they are.
const PHASES: [(&str, &str); 7] = [
    ("recordMs", "intent to the store"),
    ("networkMs", "CNI and the taps, beside the next three"),
    ("resourcesMs", "control group, scratch disk"),
    ("spawnMs", "starting the VMM"),
    ("bootMs", "boot, until the agent's hello"),
    ("networkWaitMs", "waiting for CNI after the boot"),
    ("configureMs", "plugging the interfaces, telling the agent"),
];

/// What the boot consists of.
const BOOT: [(&str, &str); 3] = [
    ("setupMs", "boot: VMM"),
    ("guestKernelMs", "boot: guest's kernel"),
    ("guestAgentMs", "boot: agent"),
];

#[derive(Debug)]
struct Sample {
    run: Duration,
    create: Duration,
    start: Duration,
    phases_ms: HashMap<String, f64>,
}

pub fn measure() -> Result<()> {
    let daemon = Daemon::alone();
    let image = Environment::get().image("busybox:latest");
    daemon.pull_once(&image);
    // The first pod finds nothing in memory.
    sample(&daemon, &image)?;
    let samples = (0..SAMPLES)
        .map(|_| sample(&daemon, &image))
        .collect::<Result<Vec<_>>>()?;

    let run = times(&samples, |sample| sample.run);
    Figure::seconds("pod: RunPodSandbox", &run).print();
    for (key, what) in PHASES.iter().chain(&BOOT) {
        let phase = samples
            .iter()
            .map(|sample| Some(sample.phases_ms.get(*key)? / 1e3))
            .collect::<Option<Vec<_>>>();
        let phase = phase.with_context(|| format!("the status of a pod has no {key}"))?;
        Figure::of(&format!("pod: RunPodSandbox: {what}"), "s", &phase)
            .beside("RunPodSandbox", &in_seconds(&run))
            .print();
    }
    Figure::seconds("pod: CreateContainer", &times(&samples, |sample| sample.create)).print();
    Figure::seconds("pod: StartContainer", &times(&samples, |sample| sample.start)).print();
    Ok(())
}

fn times(samples: &[Sample], of: fn(&Sample) -> Duration) -> Vec<Duration> {
    samples.iter().map(of).collect()
}

/// One pod with one container, from nothing to nothing.
fn sample(daemon: &Daemon, image: &str) -> Result<Sample> {
    let cri = daemon.cri();
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
    let phases_ms = phases(daemon, &pod)?;

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

    let request = RemovePodSandboxRequest { pod_sandbox_id: pod };
    cri.runtime(async |c| c.remove_pod_sandbox(request).await)?;
    Ok(Sample {
        run,
        create,
        start,
        phases_ms,
    })
}

/// The phases as the daemon tells them in the pod's verbose status, and as the pod's VMM tells of its set-up.
fn phases(daemon: &Daemon, pod: &str) -> Result<HashMap<String, f64>> {
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: pod.to_owned(),
        verbose: true,
    };
    let answer = daemon
        .cri()
        .runtime(async |c| c.pod_sandbox_status(request).await)?;
    let info: Value = serde_json::from_str(answer.info.get("info").context("a verbose status has info")?)?;
    let startup = info.get("startup").and_then(Value::as_object);
    let mut phases: HashMap<String, f64> = startup
        .context("the status of a pod tells of its start")?
        .iter()
        .filter_map(|(key, value)| Some((key.clone(), value.as_f64()?)))
        .collect();
    let vsock = info.pointer("/machine/vsock").and_then(Value::as_str);
    let control =
        Path::new(vsock.context("the status of a pod names its sockets")?).with_file_name("control");
    let state = Client::connect(&control, Duration::from_mins(1))?.state()?;
    phases.insert(
        "setupMs".to_owned(),
        Duration::from_micros(state.setup_us).as_secs_f64() * 1e3,
    );
    Ok(phases)
}
