//! What is saved: the driver's queues. The log belongs to the process, not to the guest.

use serde::{Deserialize, Serialize};

use super::{Console, NAME, QUEUE_SIZES};
use crate::virtio::{
    device::{Activation, DeviceError, DeviceKind, SavedDevice},
    ring::RING_FEATURES,
    saved::{Identity, SavedDriver},
};

const IDENTITY: Identity<'static> = Identity {
    name: NAME,
    kind: DeviceKind::Console,
    version: 1,
    features: RING_FEATURES,
    max_sizes: &QUEUE_SIZES,
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    driver: Option<SavedDriver>,
}

pub fn save(console: &Console) -> Result<SavedDevice, DeviceError> {
    let output = console.stage.standing(NAME)?;
    IDENTITY.save(&State {
        driver: output
            .map(|output| SavedDriver::of(console.accepted, [&output.server().input, output.ring()])),
    })
}

pub fn restore(
    console: &mut Console,
    saved: &SavedDevice,
    activation: Option<Activation>,
) -> Result<(), DeviceError> {
    let state: State = IDENTITY.read(saved)?;
    if let Some(activation) = IDENTITY.reactivation(state.driver.as_ref(), activation)? {
        console.take(activation);
    }
    Ok(())
}
