//! Configuration space and features (sections 5.10.3 and 5.10.4).

use crate::virtio::{config_space, ring::RING_FEATURES};

/// VIRTIO_VSOCK_F_STREAM: stream sockets.
const STREAM: u64 = 1 << 0;

/// What is offered.
pub const FEATURES: u64 = RING_FEATURES | STREAM;

/// Reads the guest's context id.
pub fn read(cid: u32, offset: u64, data: &mut [u8]) {
    config_space::read(&u64::from(cid).to_le_bytes(), offset, data);
}
