//! What is saved: the driver's queues. The random bytes are the host's and have no state here.

use serde::{Deserialize, Serialize};

use super::{NAME, QUEUE_SIZES, Rng};
use crate::virtio::{
    device::{Activation, DeviceError, DeviceKind, SavedDevice},
    ring::RING_FEATURES,
    saved::{Identity, SavedDriver},
};

const IDENTITY: Identity<'static> = Identity {
    name: NAME,
    kind: DeviceKind::Rng,
    version: 1,
    features: RING_FEATURES,
    max_sizes: &QUEUE_SIZES,
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    driver: Option<SavedDriver>,
}

pub fn save(rng: &Rng) -> Result<SavedDevice, DeviceError> {
    let requests = rng.stage.standing(NAME)?;
    IDENTITY.save(&State {
        driver: requests.map(|requests| SavedDriver::of(rng.accepted, [requests.ring()])),
    })
}

pub fn restore(
    rng: &mut Rng,
    saved: &SavedDevice,
    activation: Option<Activation>,
) -> Result<(), DeviceError> {
    let state: State = IDENTITY.read(saved)?;
    if let Some(activation) = IDENTITY.reactivation(state.driver.as_ref(), activation)? {
        rng.take(activation);
    }
    Ok(())
}
