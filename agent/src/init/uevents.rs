//! The kernel's announcements of devices that come and go, so that waiting for one is no polling.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    buffer::spare_capacity,
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind,
        netlink::{KOBJECT_UEVENT, SocketAddrNetlink},
        recv, socket_with,
    },
};
use tokio::io::unix::AsyncFd;

use crate::sys::reactor;

/// The multicast group of the kernel's own announcements.
const KERNEL_GROUP: u32 = 1;

/// Announcements since it was opened.
#[derive(Debug)]
pub struct Uevents {
    socket: AsyncFd<OwnedFd>,
}

impl Uevents {
    /// Listens from now on. What happened before is to be looked up after this call, not before, so that nothing falls
    /// in between.
    pub fn listen() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(KOBJECT_UEVENT),
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self {
            socket: reactor::register(socket)?,
        })
    }

    /// Waits for the next announcement, of whatever device; several may be taken as one.
    pub async fn next(&self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            match take(self.socket.get_ref()) {
                Ok(()) => {
                    while take(self.socket.get_ref()).is_ok() {}
                    return Ok(());
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                // Some were lost because the queue was full: something happened in any case.
                Err(Errno::NOBUFS) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn take(socket: impl AsFd) -> Result<(), Errno> {
    let mut announcement = Vec::with_capacity(2048);
    recv(socket, spare_capacity(&mut announcement), RecvFlags::DONTWAIT)?;
    Ok(())
}
