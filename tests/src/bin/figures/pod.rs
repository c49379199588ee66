//! `pod`: how long RunPodSandbox, CreateContainer and StartContainer take, and where the time of the first goes.

use std::{collections::HashMap, path::Path, time::Duration};

use anyhow::{Context, Result};
use bulkhead_proto::cri::PodSandboxStatusRequest;
use bulkhead_tests::{Daemon, Environment};
use bulkhead_vmm::control::client::Client;
use serde_json::Value;

use crate::{
    figure::{Figure, in_seconds},
    life::{Life, live},
};

const SAMPLES: usize = 10;

/// The phases of RunPodSandbox in the verbose status of a pod, in their order, and what they are.
pub const PHASES: [(&str, &str); 7] = [
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

pub fn measure() -> Result<()> {
    let daemon = Daemon::alone();
    let image = Environment::get().image("busybox:latest");
    daemon.pull_once(&image);
    let sample = || live(daemon.cri(), &image, |pod| phases(&daemon, pod));
    // The first pod finds nothing in memory.
    sample()?;
    let samples = (0..SAMPLES).map(|_| sample()).collect::<Result<Vec<_>>>()?;

    let run = times(&samples, |life| life.run);
    Figure::seconds("pod: RunPodSandbox", &run).print();
    for (key, what) in PHASES.iter().chain(&BOOT) {
        let phase = samples
            .iter()
            .map(|(_, phases)| Some(phases.get(*key)? / 1e3))
            .collect::<Option<Vec<_>>>();
        let phase = phase.with_context(|| format!("the status of a pod has no {key}"))?;
        Figure::of(&format!("pod: RunPodSandbox: {what}"), "s", &phase)
            .beside("RunPodSandbox", &in_seconds(&run))
            .print();
    }
    Figure::seconds("pod: CreateContainer", &times(&samples, |life| life.create)).print();
    Figure::seconds("pod: StartContainer", &times(&samples, |life| life.start)).print();
    Ok(())
}

fn times(samples: &[(Life, HashMap<String, f64>)], of: fn(&Life) -> Duration) -> Vec<Duration> {
    samples.iter().map(|(life, _)| of(life)).collect()
}

/// The phases as the daemon tells them in the pod's verbose status, and as the pod's VMM tells of its set-up, in milliseconds.
pub fn phases(daemon: &Daemon, pod: &str) -> Result<HashMap<String, f64>> {
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
