//! Configuration space and features (sections 5.2.3 and 5.2.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::{
    QUEUE_SIZES,
    disk::{Disk, SECTOR},
};
use crate::{
    config::DiskAccess,
    virtio::{config_space, ring::RING_FEATURES},
};

/// Most ranges in a discard or write-zeroes request.
pub const RANGES: u32 = 64;

/// Most sectors in one range of a discard: 1 GiB, for a host file system a matter of metadata.
pub const DISCARD_SECTORS: u32 = 1 << 21;

/// Most sectors in one range of zeros: 32 MiB, which may have to be written.
pub const ZERO_SECTORS: u32 = 1 << 16;

/// Sectors in a block of the host's file systems, as a power of 2: holes are no smaller.
const BLOCK_EXPONENT: u8 = 3;

/// What is offered for a disk with this access.
pub fn features(access: DiskAccess) -> u64 {
    let common = RING_FEATURES
        | 1 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_TOPOLOGY
        | 1 << VIRTIO_BLK_F_FLUSH;
    match access {
        DiskAccess::ReadOnly => common | 1 << VIRTIO_BLK_F_RO,
        DiskAccess::ReadWrite => common | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
    }
}

/// Reads the configuration space.
pub fn read(disk: &Disk, offset: u64, data: &mut [u8]) {
    let mut space = Vec::with_capacity(60);
    space.extend((disk.capacity() / SECTOR).to_le_bytes());
    // The largest piece, and the most pieces in a request: the ring holds one of them and its header and status.
    space.extend(0u32.to_le_bytes());
    space.extend(u32::from(QUEUE_SIZES[0] - 2).to_le_bytes());
    // No geometry; then the size of a block.
    space.extend([0; 4]);
    space.extend(512u32.to_le_bytes());
    // Topology: logical blocks in a physical one as an exponent, the first aligned one, smallest and best transfer.
    space.extend([BLOCK_EXPONENT, 0, 1, 0]);
    space.extend(0u32.to_le_bytes());
    // No choice of write caching, one queue.
    space.extend([0; 4]);
    match disk.access() {
        DiskAccess::ReadOnly => {}
        DiskAccess::ReadWrite => {
            space.extend(DISCARD_SECTORS.to_le_bytes());
            space.extend(RANGES.to_le_bytes());
            space.extend((1u32 << BLOCK_EXPONENT).to_le_bytes());
            space.extend(ZERO_SECTORS.to_le_bytes());
            space.extend(RANGES.to_le_bytes());
            // Zeros may be made by discarding.
            space.extend([1, 0, 0, 0]);
        }
    }
    config_space::read(&space, offset, data);
}
