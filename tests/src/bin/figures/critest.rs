//! `critest`: the benchmarks of CRI's own suite, for pods, for containers, and for both from nothing, against Debian's
//! containerd and runc.
//!
//! critest decides what is done and what is timed; its images come from the node's registry for both. The peer's control groups
//! are made by runc itself, as in `start`. Both are run twice, in alternation, and what was measured is put together.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use bulkhead_tests::Daemon;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    containerd::{Containerd, PEER},
    figure::Figure,
};

/// Runs of the suite's benchmarks on each runtime.
const ROUNDS: usize = 2;

/// What critest is to do in each of them. An emulated node takes longer than its own deadlines have it.
const PARAMETERS: &str = "\
podsNumber: 8
podBenchmarkTimeoutSeconds: 600
containersNumber: 8
containerBenchmarkTimeoutSeconds: 600
podContainerStartBenchmarkTimeoutSeconds: 600
";

/// The benchmarks that are run, by what their specifications are called.
const FOCUS: &str =
    "benchmark about (lifecycle of PodSandbox|basic operations on Container|start a container from scratch)";

/// The files that critest writes, and what is measured in them.
const FILES: [(&str, &str); 2] = [
    ("pod_benchmark_data.json", "critest: pod"),
    ("container_benchmark_data.json", "critest: container"),
];

/// What the one benchmark that goes into the report alone is called there.
const FROM_NOTHING: &str = "create PodSandbox and container";

/// A file of critest's.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lifecycles {
    operations_names: Vec<String>,
    datapoints: Vec<Datapoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Datapoint {
    operations_durations_ns: Vec<u64>,
}

/// Seconds, by what took them.
type Samples = BTreeMap<String, Vec<f64>>;

pub fn measure() -> Result<()> {
    let daemon = Daemon::alone();
    let containerd = Containerd::start()?;
    let (mut ours, mut theirs) = (Samples::new(), Samples::new());
    for _ in 0..ROUNDS {
        run(daemon.endpoint(), &mut ours)?;
        run(containerd.endpoint(), &mut theirs)
            .with_context(|| format!("containerd says: {}", containerd.log()))?;
    }
    for (name, samples) in &ours {
        let peer = theirs.get(name);
        let peer = peer.with_context(|| format!("critest measured no {name} of {PEER}"))?;
        Figure::of(name, "s", samples).beside(PEER, peer).print();
    }
    Ok(())
}

/// Runs the benchmarks once and adds what they measured.
fn run(endpoint: &str, samples: &mut Samples) -> Result<()> {
    let directory = tempfile::tempdir().context("a directory for critest")?;
    let (parameters, report) = (
        directory.path().join("parameters.yaml"),
        directory.path().join("report.json"),
    );
    fs::write(&parameters, PARAMETERS)?;
    let output = Command::new("critest")
        .args([
            "-benchmark",
            "-runtime-endpoint",
            endpoint,
            "-image-endpoint",
            endpoint,
        ])
        .args([
            "-runtime-service-timeout",
            "600s",
            "-image-service-timeout",
            "600s",
        ])
        .arg("-benchmarking-params-file")
        .arg(&parameters)
        .arg("-benchmarking-output-dir")
        .arg(directory.path())
        .args([
            "--ginkgo.no-color",
            "--ginkgo.timeout",
            "1h",
            "--ginkgo.focus",
            FOCUS,
        ])
        .arg("--ginkgo.json-report")
        .arg(&report)
        .output()
        .context("critest does not start")?;
    ensure!(
        output.status.success(),
        "critest: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    for (file, what) in FILES {
        add_lifecycles(&read(&directory.path().join(file))?, what, samples)?;
    }
    let report: Value = serde_json::from_str(&read(&report)?)?;
    let seconds = duration(&report, FROM_NOTHING);
    let seconds = seconds.with_context(|| format!("critest's report has no {FROM_NOTHING:?}"))?;
    samples
        .entry("critest: pod with a container, from nothing to nothing".to_owned())
        .or_default()
        .push(seconds);
    Ok(())
}

/// Adds each operation's times, and those of whole lives.
fn add_lifecycles(text: &str, what: &str, samples: &mut Samples) -> Result<()> {
    let lives: Lifecycles = serde_json::from_str(text)?;
    ensure!(!lives.datapoints.is_empty(), "critest measured no {what}");
    for Datapoint {
        operations_durations_ns: times,
    } in &lives.datapoints
    {
        let mut add = |name: String, nanoseconds: u64| {
            let seconds = std::time::Duration::from_nanos(nanoseconds).as_secs_f64();
            samples.entry(name).or_default().push(seconds);
        };
        add(what.to_owned(), times.iter().sum());
        for (name, time) in lives.operations_names.iter().zip(times) {
            add(format!("{what}: {name}"), *time);
        }
    }
    Ok(())
}

/// The seconds of the measurement `name`, wherever it is in a report: entries hold experiments as JSON in a string.
fn duration(report: &Value, name: &str) -> Option<f64> {
    match report {
        Value::Object(fields) if fields.get("Name").and_then(Value::as_str) == Some(name) => fields
            .get("Durations")?
            .get(0)?
            .as_f64()
            .map(|nanoseconds| nanoseconds / 1e9),
        Value::Object(fields) => fields.values().find_map(|value| duration(value, name)),
        Value::Array(values) => values.iter().find_map(|value| duration(value, name)),
        Value::String(text) if text.starts_with(['{', '[']) => {
            duration(&serde_json::from_str(text).ok()?, name)
        }
        _ => None,
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("critest wrote no {}", path.display()))
}
