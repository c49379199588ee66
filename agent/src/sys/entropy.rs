//! The kernel's random number generator, random(4).

#![allow(unsafe_code, reason = "the generator's ioctls have no safe wrapper")]

use std::{fs::File, io, os::fd::AsRawFd};

/// Most bytes that one call mixes in.
pub const MOST_BYTES: usize = 512;

/// struct rand_pool_info of linux/random.h.
#[repr(C)]
struct PoolInfo {
    /// In bits.
    entropy_count: libc::c_int,
    /// In bytes.
    buffer_size: libc::c_int,
    buffer: [u8; MOST_BYTES],
}

/// `_IOW('R', 0x03, int[2])`
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `_IO('R', 0x07)`
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Mixes `entropy` into the generator, counts all of its bits, and reseeds at once, so that what two clones of one
/// machine give from here on has nothing in common.
///
/// # Errors
///
/// `InvalidInput` beyond [`MOST_BYTES`], else what the ioctls give (`EPERM` without `CAP_SYS_ADMIN`).
pub fn add_and_reseed(entropy: &[u8]) -> io::Result<()> {
    let mut info = PoolInfo {
        entropy_count: 0,
        buffer_size: 0,
        buffer: [0; MOST_BYTES],
    };
    let (Some(room), Ok(size)) = (
        info.buffer.get_mut(..entropy.len()),
        libc::c_int::try_from(entropy.len()),
    ) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    room.copy_from_slice(entropy);
    info.buffer_size = size;
    info.entropy_count = size * 8;

    let device = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads the structure, of which it takes no more than `buffer_size` bytes of the buffer.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    // SAFETY: takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
