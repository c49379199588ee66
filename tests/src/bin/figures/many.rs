//! `many`: what it costs the daemon to list fifty pods with their containers and to tell their numbers, against Debian's
//! containerd with fifty pods of runc.
//!
//! Processor time is what counts, for a kubelet asks every few seconds, whoever else wants the processors. That of the daemon
//! alone is compared; both have others that work for them, guests here and shims there.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri::{
    ListContainerStatsRequest, ListContainersRequest, ListPodSandboxRequest, ListPodSandboxStatsRequest,
};
use bulkhead_tests::{Cri, Daemon, DaemonOptions, Environment};

use crate::{
    containerd::{Containerd, PEER},
    figure::Figure,
    life::{Running, Wanted, begin},
    process::processor_time,
};

const PODS: usize = 50;

/// Memory of each guest, in MiB: fifty of them are to fit in a node.
const GUEST_MIB: i64 = 96;

/// How often each runtime is asked in turn.
const SAMPLES: usize = 5;

/// The calls that are compared, and how often each is made in a row: /proc tells processor time in steps of 10 ms, and
/// statistics, for which all guests are asked, take many of them.
const ASKED: [(&str, u32, Ask); 4] = [
    ("ListPodSandbox", 20, |cri| {
        let answer = cri.runtime(async |c| c.list_pod_sandbox(ListPodSandboxRequest::default()).await)?;
        Ok(answer.items.len())
    }),
    ("ListContainers", 20, |cri| {
        let answer = cri.runtime(async |c| c.list_containers(ListContainersRequest::default()).await)?;
        Ok(answer.containers.len())
    }),
    ("ListContainerStats", 2, |cri| {
        let answer =
            cri.runtime(async |c| c.list_container_stats(ListContainerStatsRequest::default()).await)?;
        Ok(answer.stats.len())
    }),
    ("ListPodSandboxStats", 2, |cri| {
        let answer = cri.runtime(async |c| {
            c.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default())
                .await
        })?;
        Ok(answer.stats.len())
    }),
];

/// Makes one call and gives the number of entries in its answer.
type Ask = fn(&Cri) -> Result<usize>;

/// A runtime with its pods.
struct Fleet<'r> {
    cri: &'r Cri,
    daemon: u32,
    pods: Vec<Running>,
}

pub fn measure() -> Result<()> {
    let daemon = Daemon::private(DaemonOptions::new().config("vm.memory_mib", GUEST_MIB));
    let containerd = Containerd::start()?;
    let image = Environment::get().image("busybox:latest");
    daemon.pull_once(&image);
    containerd.cri().try_pull(&image)?;
    let ours = Fleet::start(daemon.cri(), u32::try_from(daemon.pid())?, &image)?;
    let theirs = Fleet::start(containerd.cri(), containerd.pid(), &image)
        .with_context(|| format!("containerd says: {}", containerd.log()))?;

    for (name, calls, ask) in ASKED {
        let (mut costs, mut peers, mut times, mut peer_times) = (vec![], vec![], vec![], vec![]);
        for _ in 0..SAMPLES {
            ours.ask(ask, calls, &mut costs, &mut times)?;
            theirs.ask(ask, calls, &mut peers, &mut peer_times)?;
        }
        Figure::of(
            &format!("{PODS} pods: {name}, the daemon's processor time"),
            "ms",
            &costs,
        )
        .beside(PEER, &peers)
        .goal_ratio(1.0)
        .print();
        Figure::of(&format!("{PODS} pods: {name}, until answered"), "ms", &times)
            .beside(PEER, &peer_times)
            .print();
    }
    ours.end()?;
    theirs.end()
}

impl<'r> Fleet<'r> {
    fn start(cri: &'r Cri, daemon: u32, image: &str) -> Result<Self> {
        let pods = (0..PODS)
            .map(|_| Ok(begin(cri, &Wanted::idle(image))?.0))
            .collect::<Result<_>>()?;
        Ok(Self { cri, daemon, pods })
    }

    /// Makes the call several times, and adds what one took of the daemon's processor time and of time, in milliseconds.
    fn ask(&self, ask: Ask, calls: u32, costs: &mut Vec<f64>, times: &mut Vec<f64>) -> Result<()> {
        let (before, started) = (processor_time(self.daemon)?, Instant::now());
        for _ in 0..calls {
            let entries = ask(self.cri)?;
            ensure!(entries == PODS, "an answer has {entries} entries of {PODS}");
        }
        times.push(started.elapsed().as_secs_f64() * 1e3 / f64::from(calls));
        let spent = processor_time(self.daemon)?.saturating_sub(before);
        costs.push(spent.as_secs_f64() * 1e3 / f64::from(calls));
        Ok(())
    }

    fn end(self) -> Result<()> {
        for pod in self.pods {
            pod.end(self.cri)?;
        }
        Ok(())
    }
}
