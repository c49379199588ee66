//! The daemon's figures in the names and units of Prometheus.
//!
//! Durations are counted as they happen; what can be looked up (pods, containers, memory) is looked up when it is asked for.
//! The numbers of single containers are not here: the kubelet exports those, from ListPodSandboxMetrics.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, text},
    metrics::{
        MetricType,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tonic::Code;

use super::process::{OwnUse, resident_bytes};
use crate::{
    container::Container,
    image::ImageStore,
    sandbox::{Pod, run::StartupTimes},
    store::{ContainerPhase, PodPhase},
    table::Table,
};

/// All figures.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    calls: Family<CallLabels, Histogram>,
    phases: Family<PhaseLabels, Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    call: String,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

impl Default for Metrics {
    /// What is counted, without what is looked up.
    fn default() -> Self {
        let mut registry = Registry::default();
        let calls = Family::new_with_constructor(durations as fn() -> Histogram);
        registry.register(
            "bulkhead_cri_call_duration_seconds",
            "How long calls of CRI took until they were answered, by call and gRPC code. Calls that this version does not have are counted as \"unimplemented\"",
            calls.clone(),
        );
        let phases = Family::new_with_constructor(durations as fn() -> Histogram);
        registry.register(
            "bulkhead_pod_start_duration_seconds",
            "How long the phases of RunPodSandbox took, of pods that became ready; \"total\" is all of it",
            phases.clone(),
        );
        Self {
            registry,
            calls,
            phases,
        }
    }
}

impl Metrics {
    /// Figures of these pods, containers and images.
    pub fn new(pods: Table<Pod>, containers: Table<Container>, images: Arc<ImageStore>) -> Self {
        let mut metrics = Self::default();
        metrics.registry.register_collector(Box::new(Present {
            pods,
            containers,
            images,
        }));
        metrics
    }

    /// Counts a call from here until the result is dropped: one that is never answered was cancelled by its client.
    pub(crate) fn call<'a>(&'a self, name: &'a str) -> CallTimer<'a> {
        CallTimer {
            metrics: self,
            name,
            code: Code::Cancelled,
            started: Instant::now(),
        }
    }

    /// Counts a pod that became ready.
    pub(crate) fn pod_started(&self, times: &StartupTimes) {
        for (phase, duration) in times.phases() {
            self.phases
                .get_or_create(&PhaseLabels { phase })
                .observe(duration.as_secs_f64());
        }
    }

    /// Everything, in the text format of OpenMetrics.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string fails only where an encoder says so, and ours does not.
        if let Err(error) = text::encode(&mut text, &self.registry) {
            tracing::error!(%error, "the figures cannot be written");
        }
        text
    }
}

/// A call under way.
#[derive(Debug)]
pub(crate) struct CallTimer<'a> {
    metrics: &'a Metrics,
    name: &'a str,
    code: Code,
    started: Instant,
}

impl CallTimer<'_> {
    /// It was answered so.
    pub(crate) fn answered(mut self, code: Code) -> Duration {
        self.code = code;
        self.started.elapsed()
    }
}

impl Drop for CallTimer<'_> {
    fn drop(&mut self) {
        // Names of calls that do not exist are the client's, and without number.
        let call = match self.code {
            Code::Unimplemented => "unimplemented",
            _ => self.name,
        };
        let labels = CallLabels {
            call: call.to_owned(),
            code: format!("{:?}", self.code),
        };
        self.metrics
            .calls
            .get_or_create(&labels)
            .observe(self.started.elapsed().as_secs_f64());
    }
}

/// 1 ms to 4 minutes.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

/// What is looked up when it is asked for.
#[derive(Debug)]
struct Present {
    pods: Table<Pod>,
    containers: Table<Container>,
    images: Arc<ImageStore>,
}

impl Collector for Present {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let pods = self.pods.all();
        let containers = self.containers.all();
        let in_phase = |phase| pods.iter().filter(|pod| pod.state().phase == phase).count();
        let ready = in_phase(PodPhase::Ready);
        gauges(
            &mut encoder,
            "bulkhead_pods",
            "Pod sandboxes by state",
            &[
                (vec![("state", "ready".to_owned())], count(ready)),
                (vec![("state", "not_ready".to_owned())], count(pods.len() - ready)),
            ],
        )?;
        let in_phase = |name: &str, phase| {
            let number = containers
                .iter()
                .filter(|container| container.phase() == phase)
                .count();
            (vec![("state", name.to_owned())], count(number))
        };
        gauges(
            &mut encoder,
            "bulkhead_containers",
            "Containers by state",
            &[
                in_phase("created", ContainerPhase::Created),
                in_phase("running", ContainerPhase::Running),
                in_phase("exited", ContainerPhase::Exited),
            ],
        )?;
        let waiting = containers
            .iter()
            .filter(|container| container.log_fault().is_some())
            .count();
        gauges(
            &mut encoder,
            "bulkhead_log_faults",
            "Running containers whose log cannot be written now: they wait for its disk",
            &[(Vec::new(), count(waiting))],
        )?;
        let machines: Vec<_> = pods.iter().filter_map(|pod| machine_memory(pod)).collect();
        gauges(
            &mut encoder,
            "bulkhead_vmm_resident_bytes",
            "Resident memory of each pod's virtual machine monitor, the guest's memory in it",
            &machines,
        )?;
        let usage = self.images.usage();
        gauges(
            &mut encoder,
            "bulkhead_image_store_bytes",
            "Bytes that the image store takes on its disk",
            &[(Vec::new(), number(usage.used_bytes))],
        )?;
        gauges(
            &mut encoder,
            "bulkhead_images",
            "Images in the store",
            &[(Vec::new(), count(self.images.list().len()))],
        )?;
        gauges(
            &mut encoder,
            "bulkhead_build_info",
            "The version of the daemon; the value is always 1",
            &[(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0)],
        )?;
        let Ok(own) = OwnUse::now() else {
            return Ok(());
        };
        for (name, help, value) in [
            (
                "process_resident_memory_bytes",
                "Resident memory of the daemon",
                number(own.resident_bytes),
            ),
            (
                "process_open_fds",
                "Open descriptors of the daemon",
                number(own.descriptors),
            ),
        ] {
            gauges(&mut encoder, name, help, &[(Vec::new(), value)])?;
        }
        encoder
            .encode_descriptor(
                "process_cpu_seconds",
                "Processor time of the daemon",
                None,
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, _, f64>(&own.cpu_seconds, None)
    }
}

type Labels = Vec<(&'static str, String)>;

fn machine_memory(pod: &Pod) -> Option<(Labels, f64)> {
    let machine = pod.state().machine?;
    let bytes = resident_bytes(machine.identity()).ok()?;
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    let labels = vec![
        ("namespace", metadata.namespace),
        ("pod", metadata.name),
        ("id", pod.id.clone()),
    ];
    Some((labels, number(bytes)))
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: &[(Labels, f64)],
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        if labels.is_empty() {
            metric.encode_gauge(value)?;
        } else {
            metric.encode_family(labels)?.encode_gauge(value)?;
        }
    }
    Ok(())
}

fn count(number: usize) -> f64 {
    self::number(u64::try_from(number).unwrap_or(u64::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in floating point")]
fn number(number: u64) -> f64 {
    number as f64
}
