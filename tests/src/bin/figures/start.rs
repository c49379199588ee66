//! `start`: from the asking for a pod until its container runs, and from StopPodSandbox until the pod is removed, against
//! Debian's containerd and runc.
//!
//! The same image, which is there; the same networks of CNI, with the same plugins; the same client. Pods alternate. Of ours,
//! each phase is also set beside the peer's whole: the budget, in units of what is to be reached. containerd is started for
//! this, and has its pods' pause image.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, Result};
use bulkhead_tests::{Cri, Daemon, Environment};

use crate::{
    containerd::{Containerd, PEER},
    figure::{Figure, in_seconds},
    life::{Life, live},
    pod::{PHASES, phases},
};

const SAMPLES: usize = 20;

pub fn measure() -> Result<()> {
    let daemon = Daemon::alone();
    let containerd = Containerd::start()?;
    let image = Environment::get().image("busybox:latest");
    daemon.pull_once(&image);
    containerd.cri().try_pull(&image)?;
    let ours = || live(daemon.cri(), &image, |pod| phases(&daemon, pod));
    let theirs =
        || peer(containerd.cri(), &image).with_context(|| format!("containerd says: {}", containerd.log()));
    // The first pod of each finds nothing in memory.
    ours()?;
    theirs()?;
    let (mut lives, mut peers, mut budgets) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        let (life, budget) = ours()?;
        lives.push(life);
        budgets.push(budget);
        peers.push(theirs()?);
    }
    containerd.cri().try_remove_image(&image)?;

    let figure = |name: &str, of: fn(&Life) -> Duration| {
        let times = |lives: &[Life]| lives.iter().map(of).collect::<Vec<_>>();
        Figure::seconds(name, &times(&lives)).beside(PEER, &in_seconds(&times(&peers)))
    };
    figure("start", Life::until_running).goal_ratio(1.2).print();
    figure("start: RunPodSandbox", |life| life.run).print();
    figure("start: CreateContainer", |life| life.create).print();
    figure("start: StartContainer", |life| life.start).print();
    let whole: Vec<Duration> = peers.iter().map(Life::until_running).collect();
    for (key, what) in PHASES {
        let phase = samples(&budgets, key)?;
        Figure::of(&format!("start: budget: {what}"), "s", &phase)
            .beside("all of containerd + runc's", &in_seconds(&whole))
            .print();
    }
    figure("stop and remove", Life::end).goal_ratio(0.7).print();
    figure("stop and remove: StopPodSandbox", |life| life.stop).print();
    figure("stop and remove: RemovePodSandbox", |life| life.remove).print();
    Ok(())
}

fn peer(cri: &Cri, image: &str) -> Result<Life> {
    live(cri, image, |_| Ok(())).map(|(life, ())| life)
}

/// One phase of all pods, in seconds.
fn samples(budgets: &[HashMap<String, f64>], key: &str) -> Result<Vec<f64>> {
    let phase = budgets.iter().map(|budget| Some(budget.get(key)? / 1e3));
    phase
        .collect::<Option<_>>()
        .with_context(|| format!("the status of a pod has no {key}"))
}
