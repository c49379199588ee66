//! `boot`: from the start of the VMM's process until the guest's agent has said hello, against QEMU's microvm machine.
//!
//! Both boot the same kernel, initramfs and command line on one virtual CPU with 128 MiB, and have the same virtio devices:
//! console into a file, random numbers, vsock and a scratch disk, all on PCI, for the guest's kernel knows no other bus.
//! QEMU's vsock is the host kernel's (vhost), ours is our own. QEMU brings firmware, which starts the kernel by the same PVH entry.
//! Samples alternate, so that whatever slows the node down meets both.

mod bulkhead;
mod hello;
mod qemu;

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use bulkhead_tests::Environment;

use self::qemu::Legacy;
use crate::figure::{Figure, in_seconds};

const SAMPLES: usize = 10;

/// Memory of both machines, in MiB.
const MEMORY_MIB: u32 = 128;

/// Size of the scratch disk, which is never written to.
const SCRATCH_BYTES: u64 = 10 << 30;

/// What both machines are made of.
#[derive(Debug)]
struct Parts {
    kernel: PathBuf,
    initramfs: PathBuf,
    cmdline: String,
    scratch: PathBuf,
    directory: tempfile::TempDir,
}

pub fn measure() -> Result<()> {
    let parts = Parts::gather()?;
    qemu::prepare()?;
    // The first boot of each reads files from the disk that later ones find in memory.
    bulkhead::boot(&parts)?;
    qemu::boot(&parts, Legacy::AsItComes)?;

    let (mut ours, mut peers, mut lean_peers) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        ours.push(bulkhead::boot(&parts)?);
        peers.push(qemu::boot(&parts, Legacy::AsItComes)?);
        lean_peers.push(qemu::boot(&parts, Legacy::None)?);
    }
    let figure = |name: &str, of: fn(&bulkhead::Boot) -> Duration| {
        Figure::seconds(name, &ours.iter().map(of).collect::<Vec<_>>())
    };
    let whole = in_seconds(&ours.iter().map(|boot| boot.whole).collect::<Vec<_>>());
    figure("boot", |boot| boot.whole)
        .beside("QEMU microvm", &in_seconds(&peers))
        .goal_ratio(0.5)
        .print();
    figure("boot, against a lean peer", |boot| boot.whole)
        .beside("QEMU microvm without legacy devices", &in_seconds(&lean_peers))
        .print();
    figure("boot: VMM, to the first instruction", |boot| boot.setup)
        .beside("the whole boot", &whole)
        .goal_ratio(0.1)
        .print();
    figure("boot: guest's kernel", |boot| boot.kernel)
        .beside("the whole boot", &whole)
        .print();
    figure("boot: agent", |boot| boot.agent)
        .beside("the whole boot", &whole)
        .print();
    Ok(())
}

impl Parts {
    fn gather() -> Result<Self> {
        let environment = Environment::get();
        let directory = tempfile::tempdir().context("a directory for two machines")?;
        let scratch = directory.path().join("scratch.img");
        fs::File::create(&scratch)?.set_len(SCRATCH_BYTES)?;
        Ok(Self {
            kernel: environment.guest.join("vmlinux"),
            initramfs: environment.guest.join("initramfs"),
            cmdline: default_cmdline()?,
            scratch,
            directory,
        })
    }
}

/// The command line that the daemon gives to its guests.
fn default_cmdline() -> Result<String> {
    let output = Command::new("bulkheadd").arg("config").output()?;
    ensure!(output.status.success(), "bulkheadd config: {output:?}");
    let config: toml::Table = String::from_utf8(output.stdout)?.parse()?;
    let cmdline = config.get("vm").and_then(|vm| vm.get("cmdline")?.as_str());
    Ok(cmdline.context("bulkheadd config has no vm.cmdline")?.to_owned())
}
