//! What is saved: the driver's queues. Packets under way are lost, as they may be on any wire, and the wire, its hardware
//! address and its largest packet are those of the machine that goes on.

use serde::{Deserialize, Serialize};

use super::{NAME, Net, QUEUE_SIZES, config::FEATURES};
use crate::virtio::{
    device::{Activation, DeviceError, DeviceKind, SavedDevice},
    saved::{Identity, SavedDriver},
};

const IDENTITY: Identity<'static> = Identity {
    name: NAME,
    kind: DeviceKind::Net,
    version: 1,
    features: FEATURES,
    max_sizes: &QUEUE_SIZES,
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    driver: Option<SavedDriver>,
}

pub fn save(net: &Net) -> Result<SavedDevice, DeviceError> {
    let link = net.stage.standing(NAME)?;
    IDENTITY.save(&State {
        driver: link
            .map(|link| SavedDriver::of(net.accepted, [link.receiver.ring(), link.transmitter.ring()])),
    })
}

pub fn restore(
    net: &mut Net,
    saved: &SavedDevice,
    activation: Option<Activation>,
) -> Result<(), DeviceError> {
    let state: State = IDENTITY.read(saved)?;
    if let Some(activation) = IDENTITY.reactivation(state.driver.as_ref(), activation)? {
        net.take(activation)?;
    }
    Ok(())
}
