//! Configuration space and features (sections 5.1.3 and 5.1.4).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use crate::virtio::{config_space, ring::RING_FEATURES};

/// Packets of the guest may come without checksums and in one piece: the tap says so to the host.
const FROM_GUEST: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN;

/// Packets of the host may do the same, if the driver knows how to take them.
const TO_GUEST: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// Several pairs of queues, and a queue to say how many of them are used.
const SEVERAL_PAIRS: u64 = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;

/// What a device with this many pairs of queues offers.
pub fn features(pairs: u16) -> u64 {
    let always = RING_FEATURES
        | FROM_GUEST
        | TO_GUEST
        | 1 << VIRTIO_NET_F_MAC
        | 1 << VIRTIO_NET_F_MTU
        | 1 << VIRTIO_NET_F_STATUS;
    if pairs > 1 { always | SEVERAL_PAIRS } else { always }
}

/// Whether a driver with these features knows of more than the first pair.
pub fn knows_several_pairs(accepted: u64) -> bool {
    accepted & SEVERAL_PAIRS == SEVERAL_PAIRS
}

/// Reads the configuration space.
pub fn read(mac: [u8; 6], pairs: u16, mtu: u16, offset: u64, data: &mut [u8]) {
    let [up, _, _, _] = VIRTIO_NET_S_LINK_UP.to_le_bytes();
    let mut space = mac.to_vec();
    space.extend([up, 0]);
    space.extend(pairs.to_le_bytes());
    space.extend(mtu.to_le_bytes());
    config_space::read(&space, offset, data);
}
