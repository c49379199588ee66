//! Input and output straight between a descriptor and guest memory, without a copy in between.
//!
//! Short counts are passed on as they are, except in the `_exact_` and `_all_` functions. An interrupted call is made
//! again.

#![allow(
    unsafe_code,
    reason = "vectored system calls take raw addresses of guest memory"
)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use super::buffer::GuestBuffer;

/// Most pieces that one call takes (UIO_MAXIOV).
const PIECES_AT_ONCE: usize = 1024;

/// Reads from the file at `offset` until the buffer is full.
///
/// # Errors
///
/// What the kernel says; [`io::ErrorKind::UnexpectedEof`] when the file ends before.
pub fn read_exact_at(file: BorrowedFd<'_>, buffer: &GuestBuffer<'_>, offset: u64) -> io::Result<()> {
    whole(buffer, offset, io::ErrorKind::UnexpectedEof, |rest, offset| {
        let (iovecs, offset) = (Iovecs::of(rest), file_offset(offset)?);
        // SAFETY: the iovecs name memory that stays mapped for the lifetime of `rest`; nobody else in this process
        // holds a reference to it, only raw addresses.
        counted(|| unsafe { libc::preadv(file.as_raw_fd(), iovecs.pointer(), iovecs.count(), offset) })
    })
}

/// Writes the whole buffer to the file at `offset`.
///
/// # Errors
///
/// What the kernel says; [`io::ErrorKind::WriteZero`] when the file takes no more.
pub fn write_all_at(file: BorrowedFd<'_>, buffer: &GuestBuffer<'_>, offset: u64) -> io::Result<()> {
    whole(buffer, offset, io::ErrorKind::WriteZero, |rest, offset| {
        let (iovecs, offset) = (Iovecs::of(rest), file_offset(offset)?);
        // SAFETY: as in `read_exact_at`; the kernel only reads.
        counted(|| unsafe { libc::pwritev(file.as_raw_fd(), iovecs.pointer(), iovecs.count(), offset) })
    })
}

/// Reads once from a device or socket. 0 means its end.
///
/// # Errors
///
/// What the kernel says; [`io::ErrorKind::WouldBlock`] from a non-blocking descriptor that has nothing.
pub fn read(from: BorrowedFd<'_>, buffer: &GuestBuffer<'_>) -> io::Result<usize> {
    let iovecs = Iovecs::of(buffer);
    // SAFETY: as in `read_exact_at`.
    counted(|| unsafe { libc::readv(from.as_raw_fd(), iovecs.pointer(), iovecs.count()) })
}

/// Writes once to a device.
///
/// # Errors
///
/// What the kernel says.
pub fn write(to: BorrowedFd<'_>, buffer: &GuestBuffer<'_>) -> io::Result<usize> {
    let iovecs = Iovecs::of(buffer);
    // SAFETY: as in `write_all_at`.
    counted(|| unsafe { libc::writev(to.as_raw_fd(), iovecs.pointer(), iovecs.count()) })
}

/// Writes once to a stream socket, without blocking and without SIGPIPE.
///
/// # Errors
///
/// What the kernel says; [`io::ErrorKind::WouldBlock`] when the socket takes nothing now.
pub fn send(to: BorrowedFd<'_>, buffer: &GuestBuffer<'_>) -> io::Result<usize> {
    let iovecs = Iovecs::of(buffer);
    // SAFETY: all bytes zero is a valid `msghdr`: no address, no buffers, no ancillary data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.pointer().cast_mut();
    message.msg_iovlen = iovecs.0.len();
    // SAFETY: as in `write_all_at`; the kernel only reads the iovecs too.
    counted(|| unsafe {
        libc::sendmsg(
            to.as_raw_fd(),
            &raw const message,
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        )
    })
}

/// Moves a whole buffer with as many calls as it takes; `at_end` is the error for a call that moves nothing.
fn whole(
    buffer: &GuestBuffer<'_>,
    offset: u64,
    at_end: io::ErrorKind,
    mut move_some: impl FnMut(&GuestBuffer<'_>, u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let count = if done == 0 {
            move_some(buffer, offset)?
        } else {
            move_some(&buffer.part(done, usize::MAX), offset.saturating_add(done as u64))?
        };
        if count == 0 {
            return Err(at_end.into());
        }
        done += count;
    }
    Ok(())
}

/// The kernel's description of a buffer, or of its first [`PIECES_AT_ONCE`] pieces.
struct Iovecs(Vec<libc::iovec>);

impl Iovecs {
    fn of(buffer: &GuestBuffer<'_>) -> Self {
        let pieces = buffer.pieces().iter().take(PIECES_AT_ONCE);
        Self(
            pieces
                .map(|piece| libc::iovec {
                    // The guard matters only for memory that is mapped on demand (Xen), which is not what is built here.
                    iov_base: piece.ptr_guard_mut().as_ptr().cast(),
                    iov_len: piece.len(),
                })
                .collect(),
        )
    }

    fn pointer(&self) -> *const libc::iovec {
        self.0.as_ptr()
    }

    fn count(&self) -> libc::c_int {
        libc::c_int::try_from(self.0.len()).unwrap_or(libc::c_int::MAX)
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Makes a system call until it is not interrupted.
fn counted(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::{fd::AsFd, unix::net::UnixStream},
    };

    use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    use super::*;

    fn memory() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    /// `count` pieces of one byte, two bytes apart.
    fn crumbs(memory: &GuestMemoryMmap<()>, count: u64) -> GuestBuffer<'_> {
        let mut buffer = GuestBuffer::default();
        for index in 0..count {
            buffer.push(memory.get_slice(GuestAddress(index * 3), 1).unwrap());
        }
        buffer
    }

    #[test]
    fn files_are_read_and_written_whole_even_in_more_pieces_than_one_call_takes() {
        let memory = memory();
        let file = tempfile::tempfile().unwrap();
        let text: Vec<u8> = (0..3000u32).map(|byte| (byte % 251) as u8).collect();
        let buffer = crumbs(&memory, 3000);
        assert_eq!(buffer.copy_in(0, &text), 3000);
        write_all_at(file.as_fd(), &buffer, 7).unwrap();
        buffer.copy_in(0, &[0; 3000]);
        read_exact_at(file.as_fd(), &buffer, 7).unwrap();
        let mut back = vec![0; 3000];
        buffer.copy_out(0, &mut back);
        assert_eq!(back, text);
        assert_eq!(
            read_exact_at(file.as_fd(), &buffer, 8).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert!(read_exact_at(file.as_fd(), &buffer, u64::MAX).is_err());
    }

    #[test]
    fn a_socket_takes_what_it_can_and_a_closed_one_gives_an_error_and_no_signal() {
        let memory = memory();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let buffer = crumbs(&memory, 10);
        buffer.copy_in(0, b"0123456789");
        assert_eq!(send(ours.as_fd(), &buffer).unwrap(), 10);
        let mut got = [0; 10];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"0123456789");
        theirs.write_all(b"abc").unwrap();
        assert_eq!(read(ours.as_fd(), &buffer).unwrap(), 3);
        buffer.copy_out(0, &mut got);
        assert_eq!(&got, b"abc3456789");
        drop(theirs);
        assert_eq!(
            send(ours.as_fd(), &buffer).unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        assert_eq!(read(ours.as_fd(), &buffer).unwrap(), 0);
    }
}
