//! What is saved: the driver's queue, and what the disk must be like when it comes back. Its contents are in its files.

use serde::{Deserialize, Serialize};

use super::{Block, QUEUE_SIZES, config};
use crate::{
    config::DiskAccess,
    virtio::{
        device::{Activation, DeviceError, SavedDevice, VirtioDevice},
        saved::{Identity, SavedDriver},
    },
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    serial: String,
    access: DiskAccess,
    /// In bytes.
    capacity: u64,
    driver: Option<SavedDriver>,
}

pub fn save(block: &Block) -> Result<SavedDevice, DeviceError> {
    let requests = block.stage.standing(&block.name)?;
    identity(block).save(&State {
        serial: block.disk.serial().to_owned(),
        access: block.disk.access(),
        capacity: block.disk.capacity(),
        driver: requests.map(|requests| SavedDriver::of(block.accepted, [requests.ring()])),
    })
}

pub fn restore(
    block: &mut Block,
    saved: &SavedDevice,
    activation: Option<Activation>,
) -> Result<(), DeviceError> {
    let identity = identity(block);
    let state: State = identity.read(saved)?;
    if state.serial != block.disk.serial() {
        return Err(identity.bad(format!("it is that of disk {:?}", state.serial)));
    }
    if state.access != block.disk.access() || state.capacity != block.disk.capacity() {
        return Err(identity.bad(format!(
            "it is of a disk of {} bytes ({:?}), this one has {} ({:?})",
            state.capacity,
            state.access,
            block.disk.capacity(),
            block.disk.access()
        )));
    }
    if let Some(activation) = identity.reactivation(state.driver.as_ref(), activation)? {
        block.take(activation);
    }
    Ok(())
}

fn identity(block: &Block) -> Identity<'_> {
    Identity {
        name: &block.name,
        kind: block.kind(),
        version: 1,
        features: config::features(block.disk.access()),
        max_sizes: &QUEUE_SIZES,
    }
}
