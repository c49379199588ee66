//! The machine's bus, onto which the host puts devices while the guest runs.

use std::{fs, io};

use super::{offload::offload, reaper::Reaper};

/// Written to, makes the kernel look for devices that were put on the bus.
const RESCAN: &str = "/sys/bus/pci/rescan";

/// Has the kernel look for new devices. It sets up each that it finds, and reads a disk's partition table, before this
/// returns. A kernel without a bus finds none.
pub async fn rescan(reaper: &Reaper) -> io::Result<()> {
    match offload(reaper, || fs::write(RESCAN, "1").map(|()| Vec::new())).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
