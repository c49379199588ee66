//! What is saved: the driver's queues. Connections are not: a restored guest hears that they are gone, and reads its
//! context id anew. Clients belong to the process.

use serde::{Deserialize, Serialize};

use super::{NAME, QUEUE_SIZES, Vsock, config::FEATURES};
use crate::virtio::{
    device::{Activation, DeviceError, DeviceKind, SavedDevice},
    saved::{Identity, SavedDriver},
};

const IDENTITY: Identity<'static> = Identity {
    name: NAME,
    kind: DeviceKind::Vsock,
    version: 1,
    features: FEATURES,
    max_sizes: &QUEUE_SIZES,
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    driver: Option<SavedDriver>,
}

pub fn save(vsock: &Vsock) -> Result<SavedDevice, DeviceError> {
    let rings = if vsock.active {
        vsock.stage.standing(NAME)?.and_then(|endpoint| endpoint.rings())
    } else {
        None
    };
    IDENTITY.save(&State {
        driver: rings.map(|rings| {
            SavedDriver::of(
                rings.accepted,
                [&rings.to_guest, &rings.from_guest, &rings.events],
            )
        }),
    })
}

pub fn restore(
    vsock: &mut Vsock,
    saved: &SavedDevice,
    activation: Option<Activation>,
) -> Result<(), DeviceError> {
    let state: State = IDENTITY.read(saved)?;
    if let Some(activation) = IDENTITY.reactivation(state.driver.as_ref(), activation)? {
        vsock.take(activation, true);
    }
    Ok(())
}
