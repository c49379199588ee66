//! The host's end of the wire: a tap, with a virtio header before every packet (linux/if_tun.h).

#![allow(unsafe_code, reason = "taps are set up with ioctls")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

/// Bytes of `virtio_net_hdr_v1`, which a driver of virtio 1 always has, with the number of buffers at its end.
pub const HEADER_BYTES: usize = 12;

/// A tap.
#[derive(Debug)]
pub struct Tap {
    descriptor: OwnedFd,
    /// Whether there is an interface whose offloads can be set.
    real: bool,
    /// Whether it is one of several queues of its interface.
    is_one_of_several: bool,
    /// Whether the host gives packets to this queue.
    is_used: AtomicBool,
}

/// Why a descriptor is no wire.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is something else.
    #[error("the network interface's descriptor is not a tap with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR set")]
    NotATap,
    /// It cannot be set up.
    #[error("the tap cannot be set up: {0}")]
    Setup(#[from] io::Error),
}

impl Tap {
    /// Takes over an attached tap: packets get headers as a driver of virtio 1 has them, and nothing blocks.
    ///
    /// # Errors
    ///
    /// [`TapError`].
    pub fn new(descriptor: OwnedFd) -> Result<Self, TapError> {
        let interface = interface_flags(descriptor.as_fd()).map_err(|_| TapError::NotATap)?;
        let interface = libc::c_int::from(interface);
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if interface & wanted != wanted {
            return Err(TapError::NotATap);
        }
        let flags = fcntl_getfl(&descriptor).map_err(io::Error::from)?;
        fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK).map_err(io::Error::from)?;
        let header = libc::c_int::try_from(HEADER_BYTES).unwrap_or(libc::c_int::MAX);
        // SAFETY: TUNSETVNETHDRSZ reads one int, which lives through the call.
        check(unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })?;
        Ok(Self {
            descriptor,
            real: true,
            is_one_of_several: interface & libc::IFF_MULTI_QUEUE != 0,
            is_used: AtomicBool::new(true),
        })
    }

    /// A socket of packets in the place of a tap.
    #[cfg(test)]
    pub fn of_socket(descriptor: OwnedFd) -> Self {
        Self {
            descriptor,
            real: false,
            is_one_of_several: false,
            is_used: AtomicBool::new(true),
        }
    }

    /// Lets the host give packets to this queue of its interface, or to the others alone.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn set_used(&self, used: bool) -> io::Result<()> {
        if self.is_one_of_several && self.is_used.load(Ordering::Acquire) != used {
            // SAFETY: all bytes zero is a valid `ifreq`.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            let flag = if used {
                libc::IFF_ATTACH_QUEUE
            } else {
                libc::IFF_DETACH_QUEUE
            };
            request.ifr_ifru.ifru_flags = libc::c_short::try_from(flag).unwrap_or_default();
            // SAFETY: TUNSETQUEUE reads one `ifreq`, which lives through the call.
            check(unsafe {
                libc::ioctl(self.descriptor.as_raw_fd(), libc::TUNSETQUEUE, &raw const request)
            })?;
        }
        self.is_used.store(used, Ordering::Release);
        Ok(())
    }

    /// Whether the host gives packets to this queue.
    #[cfg(test)]
    pub fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Acquire)
    }

    /// Lets the host hand over packets that a driver with these features can take: without checksums, and not yet cut
    /// into segments.
    ///
    /// # Errors
    ///
    /// What the kernel says, such as when the interface is gone.
    pub fn set_offloads(&self, features: u64) -> io::Result<()> {
        let has = |bit: u32| features & (1 << bit) != 0;
        let mut offloads = 0;
        // Nothing else goes without checksums, whatever a driver has accepted.
        if has(VIRTIO_NET_F_GUEST_CSUM) {
            offloads |= libc::TUN_F_CSUM;
            for (bit, offload) in [
                (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
                (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
            ] {
                if has(bit) {
                    offloads |= offload;
                }
            }
            if has(VIRTIO_NET_F_GUEST_ECN) && offloads != libc::TUN_F_CSUM {
                offloads |= libc::TUN_F_TSO_ECN;
            }
        }
        if !self.real {
            return Ok(());
        }
        // SAFETY: TUNSETOFFLOAD takes its argument as a number.
        check(unsafe {
            libc::ioctl(
                self.descriptor.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offloads),
            )
        })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn interface_flags(descriptor: BorrowedFd<'_>) -> io::Result<libc::c_short> {
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq`, which lives through the call.
    check(unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF has written the flags, and any bytes are flags.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
