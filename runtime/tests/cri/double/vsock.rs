//! The host's side of the virtual socket device.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use bulkhead_proto::agent::{
    CONTROL_PORT, DOORBELL_PORT, HelloResponse, PROTOCOL_VERSION, STREAM_PORT, agent_server::AgentServer,
    wire,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use tonic::transport::Server;

use super::{agent::Agent, processes::Guest, streams};

/// Who the double says it is.
pub fn hello(guest: &Guest) -> HelloResponse {
    HelloResponse {
        protocol_version: if guest.manners.stranger {
            99
        } else {
            PROTOCOL_VERSION
        },
        agent_version: "double".into(),
        kernel_release: "6.12-double".into(),
        agent_started_ns: 1_000_000,
        ready_ns: 2_000_000,
    }
}

/// Answers clients until the process ends.
pub async fn serve(listener: OwnedFd, guest: Guest) {
    let listener = std::os::unix::net::UnixListener::from(listener);
    listener.set_nonblocking(true).unwrap();
    let listener = UnixListener::from_std(listener).unwrap();
    let (connections, incoming) = mpsc::channel(8);
    let service = AgentServer::new(Agent::new(guest.clone()));
    let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming);
    tokio::spawn(Server::builder().serve_with_incoming(service, incoming));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(client(stream, guest.clone(), connections.clone()));
    }
}

async fn client(
    mut stream: UnixStream,
    guest: Guest,
    connections: mpsc::Sender<Result<UnixStream, std::io::Error>>,
) {
    let Some(line) = request(&mut stream).await else {
        return;
    };
    match line
        .split_once(' ')
        .map(|(verb, port)| (verb, port.parse::<u32>().unwrap()))
    {
        Some(("LISTEN", DOORBELL_PORT)) => {
            stream.write_all(b"OK 1\n").await.unwrap();
            if guest.manners.silent {
                tokio::time::sleep(Duration::MAX).await;
            }
            ring(&stream, &hello(&guest));
            // Held open: the daemon ends it.
            let _ = stream.read_u8().await;
        }
        Some(("CONNECT", CONTROL_PORT)) => {
            stream.write_all(b"OK 7\n").await.unwrap();
            connections.send(Ok(stream)).await.unwrap();
        }
        Some(("CONNECT", STREAM_PORT)) => {
            stream.write_all(b"OK 8\n").await.unwrap();
            streams::serve(stream, guest).await;
        }
        _ => {
            let _ = stream.write_all(b"ERR nobody listens there\n").await;
        }
    }
}

async fn request(stream: &mut UnixStream) -> Option<String> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await.ok()? {
            b'\n' => return String::from_utf8(line).ok(),
            byte => line.push(byte),
        }
    }
}

fn ring(stream: &UnixStream, hello: &HelloResponse) {
    let (guest, host) = std::os::unix::net::UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut &guest, &wire::encode(hello)).unwrap();
    let rights = [host.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&rights));
    sendmsg(stream, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
}
