//! A guest and its host, connected.

#![allow(clippy::cast_possible_truncation, reason = "tests name small numbers")]

mod clients;
mod ends;
mod hostile;
mod streams;

use std::{
    io::{IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    thread,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{
    credit::BUFFER_BYTES,
    fake_guest::{CID, FakeGuest, GUEST_BUFFER, HostSide, Program, answer, pattern},
    packet::{Header, NO_RECEIVE, NO_SEND, Op, Ports},
    *,
};
use crate::virtio::fake_driver::{FakeDriver, Noise, PATIENCE};

/// What Linux posts: a page, of which the header is a part.
const PAGE: u32 = 4096;

const HUNDRED_MB: u64 = 100 << 20;

/// What a unix socket holds at most, with room to spare for how the kernel counts.
const SOCKET_BYTES: u64 = 512 * 1024;

/// Takes a descriptor from a client that listens.
fn take_connection(listening: &UnixStream) -> UnixStream {
    let mut byte = [9];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        listening,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::empty(),
    )
    .unwrap();
    assert_eq!((received.bytes, byte), (1, [0]));
    let mut ends: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            ends.extend(descriptors);
        }
    }
    assert_eq!(ends.len(), 1);
    let stream = UnixStream::from(ends.remove(0));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A connection from the host to a program in the guest.
fn connected(guest: &mut FakeGuest, program: Program) -> (UnixStream, Ports) {
    guest.listening.insert(5000, program);
    let before = guest.sockets.len();
    let stream = guest.host.begin("CONNECT 5000");
    guest.run_until(|guest| guest.sockets.len() > before && guest.unsent() == 0);
    let (host, port) = *guest.sockets.keys().last().unwrap();
    assert_eq!(answer(&stream), format!("OK {host}"));
    (stream, Ports { host, guest: port })
}

fn read_pattern(stream: &mut UnixStream, total: u64, chunk: usize) {
    let mut done = 0;
    let mut bytes = vec![0; chunk];
    while done < total {
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "the stream ended after {done} of {total} bytes");
        assert!(
            bytes[..count] == pattern(done, count),
            "bytes from {done} on are not those sent"
        );
        done += count as u64;
    }
    assert_eq!(done, total);
}

#[test]
fn a_device_needs_a_guests_id_and_a_listening_socket() {
    for cid in [0, 1, 2, u32::MAX] {
        assert!(matches!(
            Vsock::new(cid, HostSide::new().1),
            Err(VsockError::Cid(_))
        ));
    }
    let (stream, _other) = UnixStream::pair().unwrap();
    let not_listening = UnixListener::from(OwnedFd::from(stream));
    assert!(matches!(Vsock::new(3, not_listening), Err(VsockError::Socket(_))));
    let (_host, listener) = HostSide::new();
    let vsock = Vsock::new(0x1234_5678, listener).unwrap();
    let mut space = [9; 12];
    vsock.read_config(0, &mut space);
    assert_eq!(space, [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 0, 0]);
}
