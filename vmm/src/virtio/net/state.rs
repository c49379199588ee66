//! What is saved: the driver's queues, and how many pairs of them it uses. Packets under way are lost, as they may be on any
//! wire, and the wire, its hardware address and its largest packet are those of the machine that goes on.

use serde::{Deserialize, Serialize};

use super::{NAME, Net, QUEUES_OF_A_PAIR, config};
use crate::virtio::{
    device::{Activation, DeviceError, DeviceKind, SavedDevice},
    requests::RequestQueue,
    saved::{Identity, SavedDriver},
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    driver: Option<SavedDriver>,
    /// Pairs of queues in use, if the driver knows of several. Else there are only the queues of the first.
    pairs: Option<u16>,
}

fn identity(net: &Net) -> Identity<'_> {
    Identity {
        name: NAME,
        kind: DeviceKind::Net,
        version: 2,
        features: config::features(net.pairs()),
        max_sizes: &net.queue_sizes,
    }
}

pub fn save(net: &Net) -> Result<SavedDevice, DeviceError> {
    let mut rings = Vec::new();
    for link in &net.links {
        if let Some(link) = link.standing(NAME)? {
            rings.extend([link.receiver.ring(), link.transmitter.ring()]);
        }
    }
    let control = net.control.standing(NAME)?;
    rings.extend(control.map(RequestQueue::ring));
    let is_active = !rings.is_empty();
    identity(net).save(&State {
        driver: is_active.then(|| SavedDriver::of(net.accepted, rings)),
        pairs: control.map(|control| control.server().pairs()),
    })
}

pub fn restore(
    net: &mut Net,
    saved: &SavedDevice,
    activation: Option<Activation>,
) -> Result<(), DeviceError> {
    let mut identity = identity(net);
    let state: State = identity.read(saved)?;
    let pairs = state.pairs.unwrap_or(1);
    if pairs == 0 || pairs > net.pairs() {
        return Err(identity.bad(format!("it uses {pairs} pairs of queues")));
    }
    let mut activation = activation;
    if state.pairs.is_none() {
        identity.max_sizes = identity.max_sizes.get(..QUEUES_OF_A_PAIR).unwrap_or_default();
        if let Some(activation) = &mut activation {
            activation.queues.truncate(QUEUES_OF_A_PAIR);
        }
    }
    if let Some(activation) = identity.reactivation(state.driver.as_ref(), activation)? {
        net.take(activation, pairs)?;
    }
    Ok(())
}
