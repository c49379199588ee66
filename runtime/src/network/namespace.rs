//! Network namespaces that live as long as a file does.
#![allow(
    unsafe_code,
    reason = "unshare(2) changes the calling thread, and SIOCSIFFLAGS takes a structure by address"
)]

use std::{
    fs::{self, OpenOptions},
    io,
    os::fd::AsFd,
    path::Path,
    thread,
};

use rustix::{
    io::Errno,
    ioctl::{Setter, ioctl},
    mount::{UnmountFlags, mount_bind, unmount},
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

/// Makes a network namespace and keeps it at `path`, a new file in a directory that exists.
///
/// # Errors
///
/// What the kernel says; then there is no file.
pub(crate) fn create(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).open(path)?;
    // A namespace belongs to the thread that made it, so it is made on one that ends right after: no other thread of the
    // daemon ever leaves the host's network.
    let made = thread::scope(|scope| {
        let maker =
            thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || -> io::Result<()> {
                    // SAFETY: CLONE_NEWNET concerns this thread's network only; file descriptors stay shared.
                    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
                    bring_up_loopback()?;
                    mount_bind("/proc/thread-self/ns/net", path)?;
                    Ok(())
                })?;
        maker
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that makes the namespace panicked")))
    });
    if made.is_err() {
        let _ = fs::remove_file(path);
    }
    made
}

/// Lets the namespace at `path` go and removes the file. One that is not there is not an error.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::DETACH) {
        // EINVAL: nothing is mounted there, as after a reboot.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Does `work` in the namespace at `path`, on a thread of its own that ends with it. Blocking.
///
/// # Errors
///
/// What the kernel says, such as that there is no namespace.
pub(crate) fn enter<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = fs::File::open(path)?;
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("in-netns".to_owned()).spawn_scoped(
            scope,
            move || -> io::Result<T> {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(work())
            },
        )?;
        worker
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}

/// `struct ifreq` of netdevice(7), with flags.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const SIOCSIFFLAGS: u32 = 0x8914;
const IFF_UP: u16 = 1;

fn bring_up_loopback() -> io::Result<()> {
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().zip(b"lo") {
        *to = *from;
    }
    let request = InterfaceFlags {
        name,
        flags: IFF_UP,
        rest: [0; 22],
    };
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: SIOCSIFFLAGS reads a struct ifreq, which InterfaceFlags is in size and layout.
    let setter = unsafe { Setter::<SIOCSIFFLAGS, InterfaceFlags>::new(request) };
    // SAFETY: the request is what the operation takes, and it changes nothing in this process.
    unsafe { ioctl(&socket, setter) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_another_than_the_hosts_and_goes_with_its_file() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making a network namespace takes the rights of root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ns");
        create(&path).unwrap();
        assert_eq!(create(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        // Only an interface that is up has its IPv6 address.
        let interfaces = || fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        let interfaces = enter(&path, interfaces).unwrap();
        assert_eq!(interfaces.lines().count(), 1, "{interfaces}");
        assert!(interfaces.trim_end().ends_with(" lo"), "{interfaces}");
        remove(&path).unwrap();
        assert!(!path.exists());
        remove(&path).unwrap();
        fs::write(&path, "no namespace").unwrap();
        assert_eq!(
            enter(&path, || ()).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }
}
