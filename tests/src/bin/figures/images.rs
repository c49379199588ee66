//! `images`: turning an image into what a container can be started from, against `umoci unpack` of the same image.
//!
//! Ours is PullImage from a registry in this process, whose blobs are in memory: download over loopback, digests,
//! decompression, one EROFS blob for each layer, and everything on the disk when it returns. umoci reads the same layers from
//! a local OCI layout and writes the tree; it downloads nothing and does not wait for the disk.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bulkhead_tests::{
    Daemon, DaemonOptions,
    registry::{Image, Registry},
};

use crate::{
    figure::{Figure, in_seconds},
    process,
    run::run,
};

const SAMPLES: usize = 3;

/// The test image that has the size of a usual one.
const IMAGE: &str = "large:latest";

/// What one conversion took.
#[derive(Clone, Copy, Debug)]
struct Cost {
    wall: Duration,
    processor: Duration,
}

pub fn measure() -> Result<()> {
    let registry = Registry::start();
    let reference = registry.push(IMAGE, &Image::of_the_node(IMAGE));
    let daemon = Daemon::private(DaemonOptions::new());
    let directory = tempfile::tempdir_in("/var/tmp")?;
    let layout = directory.path().join("layout");
    let layout = layout.to_str().context("a path in UTF-8")?;
    let bundle = directory.path().join("bundle");
    let bundle = bundle.to_str().context("a path in UTF-8")?;
    run(
        "skopeo",
        &[
            "copy",
            "--src-tls-verify=false",
            &format!("docker://{reference}"),
            &format!("oci:{layout}:image"),
        ],
    )?;

    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        ours.push(pull(&daemon, &reference)?);
        peers.push(unpack(&format!("{layout}:image"), bundle)?);
    }
    let figure = |name: &str, of: fn(&Cost) -> Duration| {
        let times = |costs: &[Cost]| costs.iter().map(of).collect::<Vec<_>>();
        Figure::seconds(name, &times(&ours)).beside("umoci unpack", &in_seconds(&times(&peers)))
    };
    figure("images: pull and convert", |cost| cost.wall)
        .goal_ratio(1.0)
        .print();
    figure("images: pull and convert, processor time", |cost| cost.processor).print();
    Ok(())
}

/// A pull of an image of which nothing is there.
fn pull(daemon: &Daemon, reference: &str) -> Result<Cost> {
    let pid = u32::try_from(daemon.pid())?;
    let used = process::processor_time(pid)?;
    let started = Instant::now();
    daemon.try_pull(reference)?;
    let wall = started.elapsed();
    let processor = process::processor_time(pid)?.saturating_sub(used);
    daemon.try_remove_image(reference)?;
    Ok(Cost { wall, processor })
}

fn unpack(image: &str, bundle: &str) -> Result<Cost> {
    let used = process::processor_time_of_children()?;
    let started = Instant::now();
    run("umoci", &["unpack", "--image", image, bundle])?;
    let wall = started.elapsed();
    let processor = process::processor_time_of_children()?.saturating_sub(used);
    fs::remove_dir_all(bundle)?;
    Ok(Cost { wall, processor })
}
