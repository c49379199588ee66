//! The machine's side of the control socket: takes packets from clients, has them served one after the other, answers.
//!
//! A client is trusted with the machine, but neither a malformed packet nor a client that does not read its answers can
//! hold it up: the former is answered with an error, the latter is dropped.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketFlags,
        accept_with, recvmsg, send,
    },
};

use super::protocol::{ControlFailure, PACKET_BYTES, PACKET_FDS, Request, Response};

/// Clients at once.
const CLIENTS_MAX: usize = 16;

/// How the server asks to hear of input on a descriptor. Closing the descriptor ends it.
pub trait Watch {
    /// Reports input on `descriptor` as `token`.
    ///
    /// # Errors
    ///
    /// What epoll says.
    fn watch(&self, descriptor: RawFd, token: u64) -> io::Result<()>;
}

/// Serves a request that came with descriptors.
pub type Serve<'a> = &'a mut dyn FnMut(Request, Vec<OwnedFd>) -> Response;

/// The listening socket and its clients.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
    clients: Vec<Option<OwnedFd>>,
    first_token: u64,
    packet: Vec<u8>,
}

impl Server {
    /// A server on a listening socket. Its events have the tokens from `first_token` on.
    pub fn new(listener: OwnedFd, first_token: u64) -> Self {
        Self {
            listener,
            clients: Vec::new(),
            first_token,
            packet: Vec::new(),
        }
    }

    /// Begins to watch for clients.
    ///
    /// # Errors
    ///
    /// What epoll says.
    pub fn start(&self, watch: &dyn Watch) -> io::Result<()> {
        watch.watch(self.listener.as_raw_fd(), self.first_token)
    }

    /// There is input on what is watched as `token`.
    pub fn ready(&mut self, token: u64, watch: &dyn Watch, serve: Serve<'_>) {
        let Some(client) = token.checked_sub(self.first_token + 1) else {
            self.accept(watch);
            return;
        };
        let Ok(place) = usize::try_from(client) else {
            return;
        };
        if !self.serve_client(place, serve)
            && let Some(client) = self.clients.get_mut(place)
        {
            *client = None;
        }
    }

    /// Takes a new client; one too many is hung up on.
    fn accept(&mut self, watch: &dyn Watch) {
        // The client may have gone again; then there is nobody to be told.
        let Ok(client) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else {
            return;
        };
        let place = match self.clients.iter().position(Option::is_none) {
            Some(place) => place,
            None if self.clients.len() < CLIENTS_MAX => {
                self.clients.push(None);
                self.clients.len() - 1
            }
            None => return,
        };
        let token = self.first_token + 1 + place as u64;
        if let Some(slot) = self.clients.get_mut(place)
            && watch.watch(client.as_raw_fd(), token).is_ok()
        {
            *slot = Some(client);
        }
    }

    /// Serves one packet. Gives whether the client may stay.
    fn serve_client(&mut self, place: usize, serve: Serve<'_>) -> bool {
        let Some(Some(client)) = self.clients.get(place) else {
            return true;
        };
        let response = match receive(client, &mut self.packet) {
            Ok(Received::Request(request, descriptors)) => serve(request, descriptors),
            Ok(Received::Malformed(message)) => Response::Error(ControlFailure { message }),
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Ok(Received::End) | Err(_) => return false,
        };
        answer(client, &response)
    }
}

/// What came from a client.
enum Received {
    Request(Request, Vec<OwnedFd>),
    Malformed(String),
    End,
}

fn receive(client: &OwnedFd, packet: &mut Vec<u8>) -> Result<Received, Errno> {
    packet.resize(PACKET_BYTES, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        client,
        &mut [IoSliceMut::new(packet)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptors: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 && descriptors.is_empty() {
        return Ok(Received::End);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Ok(Received::Malformed(format!(
            "the request is longer than {PACKET_BYTES} bytes"
        )));
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Received::Malformed(format!(
            "the request came with more than {PACKET_FDS} descriptors, or this process may have no more open"
        )));
    }
    let bytes = packet.get(..received.bytes).unwrap_or_default();
    Ok(match serde_json::from_slice(bytes) {
        Ok(request) => Received::Request(request, descriptors),
        Err(error) => Received::Malformed(format!("the request is not one: {error}")),
    })
}

/// Gives whether the client has taken the answer.
fn answer(client: &OwnedFd, response: &Response) -> bool {
    let bytes = serde_json::to_vec(response).expect("a response has only string keys");
    send(client, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok_and(|sent| sent == bytes.len())
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, os::fd::AsFd};

    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, connect, listen, recv, socket_with};

    use super::*;

    /// Remembers what is watched instead of watching it.
    #[derive(Default)]
    struct Remembered(RefCell<Vec<u64>>);

    impl Watch for Remembered {
        fn watch(&self, _: RawFd, token: u64) -> io::Result<()> {
            self.0.borrow_mut().push(token);
            Ok(())
        }
    }

    fn socket() -> OwnedFd {
        socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    }

    /// A server with one client, whose token is 11.
    fn connected(watch: &Remembered) -> (Server, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        let address = SocketAddrUnix::new(directory.path().join("control")).unwrap();
        let listener = socket();
        bind(&listener, &address).unwrap();
        listen(&listener, 4).unwrap();
        let mut server = Server::new(listener, 10);
        server.start(watch).unwrap();
        let client = socket();
        connect(&client, &address).unwrap();
        server.ready(10, watch, &mut |_, _| unreachable!());
        assert_eq!(*watch.0.borrow(), [10, 11]);
        (server, client)
    }

    fn ask(server: &mut Server, client: &OwnedFd, packet: &[u8]) -> Response {
        send(client.as_fd(), packet, SendFlags::empty()).unwrap();
        server.ready(11, &Remembered::default(), &mut |request, descriptors| {
            assert!(descriptors.is_empty());
            match request {
                Request::Pause => Response::Done,
                other => panic!("{other:?} was served"),
            }
        });
        let mut answer = vec![0; PACKET_BYTES];
        let (length, _) = recv(client, &mut *answer, RecvFlags::DONTWAIT).unwrap();
        serde_json::from_slice(&answer[..length]).unwrap()
    }

    #[test]
    fn a_request_is_served_and_a_malformed_one_answered_with_its_fault() {
        let watch = Remembered::default();
        let (mut server, client) = connected(&watch);
        for malformed in [
            &b"{\"reboot\":{}}"[..],
            b"\xff\xfe",
            &vec![b' '; PACKET_BYTES + 1],
        ] {
            let Response::Error(failure) = ask(&mut server, &client, malformed) else {
                panic!("a malformed request was taken");
            };
            assert!(
                failure.message.starts_with("the request is"),
                "{}",
                failure.message
            );
        }
        assert_eq!(ask(&mut server, &client, b"\"pause\""), Response::Done);
    }

    #[test]
    fn a_client_that_hangs_up_makes_room() {
        let watch = Remembered::default();
        let (mut server, client) = connected(&watch);
        drop(client);
        server.ready(11, &watch, &mut |_, _| unreachable!());
        assert!(server.clients.iter().all(Option::is_none));
    }
}
