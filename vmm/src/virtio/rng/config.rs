//! Configuration space: there is none (section 5.4.4).

use crate::virtio::config_space;

/// Reads zeros.
pub fn read(offset: u64, data: &mut [u8]) {
    config_space::read(&[], offset, data);
}
