//! `memory`: what an idle pod and the daemon take of the node's memory.
//!
//! A pod is its VMM's process: proportional set size, and of that the pages of the guest. The daemon is measured in resident
//! set size, which also counts the pages of its program, with one idle pod: fresh, and after it has pulled every test image.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use bulkhead_tests::{Daemon, DaemonOptions, Environment, PodSpec};
use serde_json::Value;

use crate::{figure::Figure, process::Memory};

const PODS: usize = 3;

/// Memory of the guest, in MiB.
const GUEST_MIB: i64 = 128;

/// The file of a guest's memory, as mappings name it.
const GUEST_MEMORY: &str = "/memfd:guest-ram";

pub fn measure() -> Result<()> {
    let options = DaemonOptions::new().config("vm.memory_mib", GUEST_MIB);
    let daemon = Daemon::private(options);
    let (mut pods, mut guests, mut fresh) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PODS {
        let pod = daemon.run_pod(PodSpec::new("idle"));
        let pid = pod.vmm_pid();
        pods.push(Memory::of(pid)?.proportional);
        guests.push(Memory::of_mappings(pid, GUEST_MEMORY)?.proportional);
        fresh.push(Memory::of(daemon.pid())?);
    }

    let pod = daemon.run_pod(PodSpec::new("idle"));
    let mut pulled = 0;
    for name in images()? {
        daemon.try_pull(&Environment::get().image(&name))?;
        pulled += 1;
    }
    let after = Memory::of(daemon.pid())?;
    drop(pod);

    let resident = |memory: &Memory| memory.resident;
    let proportional = |memory: &Memory| memory.proportional;
    Figure::of("memory: idle pod", "MiB", &pods).goal(45.0).print();
    Figure::of("memory: idle pod: the guest's", "MiB", &guests).print();
    Figure::of(
        "memory: bulkheadd, one pod",
        "MiB",
        &fresh.iter().map(resident).collect::<Vec<_>>(),
    )
    .goal(20.0)
    .print();
    let proportional: Vec<f64> = fresh.iter().map(proportional).collect();
    Figure::of("memory: bulkheadd, one pod, proportional", "MiB", &proportional).print();
    Figure::of(
        &format!("memory: bulkheadd, after {pulled} pulls"),
        "MiB",
        &[after.resident],
    )
    .goal(20.0)
    .print();
    Ok(())
}

/// Names of all test images.
fn images() -> Result<Vec<String>> {
    let path = std::env::var("BULKHEAD_IMAGES").context("BULKHEAD_IMAGES names the test images")?;
    let images: BTreeMap<String, Value> = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    Ok(images.into_keys().collect())
}
