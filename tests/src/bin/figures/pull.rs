//! `pull`: from PullImage until a container can be started from the image, against Debian's containerd, which unpacks it.
//!
//! Both pull the same image of 200 MB in eight layers from the node's registry, in turns, and remove it again. Before each pull
//! everything is on the disk, the node's caches are emptied, and the registry's files are read into memory, where both find
//! them. When ours returns, everything is on the disk; containerd waits for the disk with the compressed layers, not with the
//! tree that it unpacks.
//!
//! Processor time is that of the daemon and of its children that have ended meanwhile (user and system time); what the kernel
//! does for the disk on its own, and the registry, are not in it. Bytes on disk are blocks taken below the daemon's root.
//! Memory is that of our pulls alone, and of further ones, because looking costs time: the proportional set sizes of the daemon
//! and its children together, again and again, less the daemon's before the pull.

use std::{
    env, fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bulkhead_tests::{Cri, Daemon, DaemonOptions, Environment};

use crate::{
    containerd::Containerd,
    figure::{Figure, in_seconds},
    process::{self, Memory},
    run::run,
};

const SAMPLES: usize = 3;

const IMAGE: &str = "eight-layers:latest";

/// How often memory is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// Whose pull it is.
struct Puller<'a> {
    cri: &'a Cri,
    pid: u32,
    root: &'a Path,
}

/// What one pull took.
#[derive(Clone, Copy, Debug)]
struct Cost {
    wall: Duration,
    processor: Duration,
    disk_mib: f64,
}

pub fn measure() -> Result<()> {
    let daemon = Daemon::private(DaemonOptions::new());
    let containerd = Containerd::start()?;
    let root = containerd.root();
    let ours = Puller {
        cri: daemon.cri(),
        pid: u32::try_from(daemon.pid())?,
        root: daemon.root(),
    };
    let theirs = Puller {
        cri: containerd.cri(),
        pid: containerd.pid(),
        root: &root,
    };
    // The first pull of each makes what later ones find.
    for puller in [&ours, &theirs] {
        puller.cost()?;
    }
    let (mut costs, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        costs.push(ours.cost()?);
        peers.push(theirs.cost()?);
    }
    tell(&costs, &peers);

    let growth = (0..SAMPLES).map(|_| ours.memory()).collect::<Result<Vec<_>>>()?;
    Figure::of("pull: memory above idle, converters included", "MiB", &growth)
        .goal(64.0)
        .print();
    Ok(())
}

fn tell(costs: &[Cost], peers: &[Cost]) {
    let figure = |name: &str, of: fn(&Cost) -> Duration| {
        let times = |costs: &[Cost]| costs.iter().map(of).collect::<Vec<_>>();
        Figure::seconds(name, &times(costs)).beside("containerd", &in_seconds(&times(peers)))
    };
    figure("pull", |cost| cost.wall).goal_ratio(0.7).print();
    figure("pull: processor time", |cost| cost.processor)
        .goal_ratio(1.0)
        .print();
    let disk = |costs: &[Cost]| costs.iter().map(|cost| cost.disk_mib).collect::<Vec<_>>();
    Figure::of("pull: on disk", "MiB", &disk(costs))
        .beside("containerd", &disk(peers))
        .goal_ratio(0.6)
        .print();
}

impl Puller<'_> {
    fn cost(&self) -> Result<Cost> {
        settle()?;
        let taken = disk_bytes(self.root)?;
        let reference = Environment::get().image(IMAGE);
        let used = process::processor_time_of_family(self.pid)?;
        let started = Instant::now();
        self.cri.try_pull(&reference)?;
        let wall = started.elapsed();
        let processor = process::processor_time_of_family(self.pid)?.saturating_sub(used);
        run("sync", &[])?;
        let disk_mib = (disk_bytes(self.root)? - taken) / f64::from(1 << 20);
        self.remove(&reference, taken)?;
        Ok(Cost {
            wall,
            processor,
            disk_mib,
        })
    }

    /// Removes the image and sees that it is gone, with all that belongs to it.
    fn remove(&self, reference: &str, before: f64) -> Result<()> {
        self.cri.try_remove_image(reference)?;
        let left = disk_bytes(self.root)? - before;
        ensure!(
            left < f64::from(1 << 20),
            "after its image was removed {} still has {left} bytes of it",
            self.root.display()
        );
        Ok(())
    }

    /// The most memory that a pull takes, above what the daemon had before, in MiB.
    fn memory(&self) -> Result<f64> {
        settle()?;
        let pid = i32::try_from(self.pid)?;
        let idle = Memory::of(pid)?.proportional;
        let taken = disk_bytes(self.root)?;
        let reference = Environment::get().image(IMAGE);
        let over = AtomicBool::new(false);
        let most = thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut most = idle;
                while !over.load(Ordering::Relaxed) {
                    most = most.max(family(pid)?);
                    thread::sleep(INTERVAL);
                }
                anyhow::Ok(most)
            });
            let pulled = self.cri.try_pull(&reference);
            over.store(true, Ordering::Relaxed);
            let most = watch.join().expect("a watch does not panic")?;
            pulled?;
            anyhow::Ok(most)
        })?;
        self.remove(&reference, taken)?;
        Ok(most - idle)
    }
}

/// Memory of a process and its children, in MiB.
fn family(pid: i32) -> Result<f64> {
    let children = process::children(pid)?;
    // A child may end while it is looked at.
    let theirs = children.into_iter().filter_map(|child| Memory::of(child).ok());
    let theirs: f64 = theirs.map(|memory| memory.proportional).sum();
    Ok(Memory::of(pid)?.proportional + theirs)
}

/// Puts everything on the disk, empties the caches, and reads what the registry has into memory.
fn settle() -> Result<()> {
    run("sync", &[])?;
    fs::write("/proc/sys/vm/drop_caches", "3").context("the node's caches cannot be emptied")?;
    let images = env::var("BULKHEAD_IMAGES").context("BULKHEAD_IMAGES names the test images")?;
    let storage = Path::new(&images).with_file_name("docker");
    let storage = storage.to_str().context("a path in UTF-8")?;
    let read_all = r#"find "$1" -type f -exec cat {} + >/dev/null"#;
    run("sh", &["-c", read_all, "sh", storage]).map(drop)
}

/// Bytes of the blocks that a directory takes with all that is in it.
fn disk_bytes(directory: &Path) -> Result<f64> {
    let directory = directory.to_str().context("a path in UTF-8")?;
    let sum = run("du", &["-sx", "--block-size=1", directory])?;
    let bytes = sum.split_whitespace().next().context("du prints a number")?;
    Ok(bytes.parse()?)
}
