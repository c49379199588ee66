//! Taps: the interfaces whose other end is a virtual machine's network device (linux/if_tun.h).
#![allow(unsafe_code, reason = "TUNSETIFF takes a structure by address")]

use std::{
    fs::{self, OpenOptions},
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// The device that makes taps.
pub(crate) const TUN: &str = "/dev/net/tun";

/// Most queues of a tap that the kernel has (MAX_TAP_QUEUES).
const MOST_QUEUES: u8 = 255;

/// Beginning of the names of taps. No plugin makes an interface with such a name.
pub(crate) const NAME_PREFIX: &str = "bulktap";

/// Makes a tap in the calling thread's network namespace. It speaks no IPv6 itself, and is not up. Gives its open queues, one
/// for each queue pair of the machine's device (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR); it is there until all of them are closed.
///
/// # Errors
///
/// What the kernel says, such as that there is one of that name.
pub(crate) fn create(name: &str, queue_pairs: u8) -> io::Result<Vec<OwnedFd>> {
    let queue_pairs = queue_pairs.clamp(1, MOST_QUEUES);
    let mut queues = Vec::new();
    for index in 0..queue_pairs {
        queues.push(open_queue(name, queue_pairs > 1, index == 0)?);
    }
    // Else the kernel would talk to the guest on its own, asking for routers and neighbours.
    match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Ok(queues)
}

fn open_queue(name: &str, several: bool, first: bool) -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(TUN)
        .map_err(|error| {
            let message = format!("{TUN} cannot be opened ({error}); load the host's module `tun`");
            io::Error::new(error.kind(), message)
        })?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if several {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    if first {
        flags |= libc::IFF_TUN_EXCL;
    }
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One less than there are, for the zero at the end.
    let places = request.ifr_name.len().saturating_sub(1);
    if name.len() > places {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    // The kernel keeps these flags in 16 bits, of which the highest is IFF_TUN_EXCL.
    request.ifr_ifru.ifru_flags = u16::try_from(flags).unwrap_or_default().cast_signed();
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives through the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::network::namespace;

    #[test]
    fn a_tap_is_made_once_and_goes_with_its_last_queue() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making a network namespace takes the rights of root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ns");
        namespace::create(&path).unwrap();
        namespace::enter(&path, || {
            let there = || {
                let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
                devices.contains("bulktap7:")
            };
            let mut queues = create("bulktap7", 2).unwrap();
            assert_eq!(queues.len(), 2);
            let error = create("bulktap7", 2).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "{error}");
            queues.pop();
            assert!(there());
            drop(queues);
            // A process that another test is just starting has it until it has become another program.
            let start = Instant::now();
            while there() {
                assert!(start.elapsed() < Duration::from_secs(10));
                thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(create("bulktap7", 1).unwrap().len(), 1);
            assert!(create("bulktap0123456789", 1).is_err());
        })
        .unwrap();
        namespace::remove(&path).unwrap();
    }
}
