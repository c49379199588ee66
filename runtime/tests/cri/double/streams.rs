//! Stream connections: bytes of a process from the offset on, until they are acknowledged.

use std::sync::atomic::Ordering;

use bulkhead_proto::agent::{StreamHeader, StreamKind, StreamReply, wire};
use rustix::net::{SendFlags, send};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::{
    ports,
    processes::{Guest, Output, Process},
};

/// Serves one connection.
pub async fn serve(mut stream: UnixStream, guest: Guest) {
    let mut received = Vec::new();
    let header: StreamHeader = loop {
        match wire::decode(&received).unwrap() {
            Some((header, length)) => {
                received.drain(..length);
                break header;
            }
            None => {
                if stream.read_buf(&mut received).await.unwrap() == 0 {
                    return;
                }
            }
        }
    };
    if header.kind() == StreamKind::Port {
        ports::serve(stream, header.port).await;
        return;
    }
    // The streams of an exec are opened before it is there.
    let mut answered = false;
    let process = loop {
        let made = guest.made.notified();
        if let Some(process) = guest.process(&header.container_id, &header.exec_id) {
            if header.kind() == StreamKind::Stdin && process.stdin.closed.load(Ordering::Relaxed) {
                let refusal = StreamReply {
                    refusal: "the process's stdin is closed".to_owned(),
                };
                let _ = stream.write_all(&wire::encode(&refusal)).await;
                return;
            }
            if !answered {
                accept(&mut stream).await;
            }
            break process;
        }
        if header.exec_id.is_empty() {
            let refusal = StreamReply {
                refusal: format!("there is no container {}", header.container_id),
            };
            let _ = stream.write_all(&wire::encode(&refusal)).await;
            return;
        }
        if !guest
            .containers
            .lock()
            .unwrap()
            .contains_key(&header.container_id)
        {
            return;
        }
        // Answered at once, as the agent does it.
        if !answered {
            accept(&mut stream).await;
            answered = true;
        }
        made.await;
    };
    let output = match header.kind() {
        StreamKind::Stdout => process.stdout,
        StreamKind::Stderr => process.stderr,
        StreamKind::Stdin => {
            let _ = take(stream, received, &process).await;
            return;
        }
        StreamKind::Port => unreachable!("it was served before"),
    };
    let _ = flow(stream, &output, usize::try_from(header.offset).unwrap()).await;
}

async fn accept(stream: &mut UnixStream) {
    let reply = wire::encode(&StreamReply::default());
    stream.write_all(&reply).await.unwrap();
}

/// Takes a host's bytes to a process. The end of its sending closes the process's stdin, the end of its connection does not.
async fn take(mut stream: UnixStream, mut received: Vec<u8>, process: &Process) -> std::io::Result<()> {
    let mut ended = process.ended.subscribe();
    loop {
        if !received.is_empty() && process.stdin.typed.send(received.split_off(0)).await.is_err() {
            return Ok(());
        }
        received.reserve(16 << 10);
        let read = tokio::select! {
            read = stream.read_buf(&mut received) => read?,
            _ = ended.wait_for(Option::is_some) => return Ok(()),
        };
        if read == 0 {
            let gone = send(&stream, &[], SendFlags::NOSIGNAL).is_err();
            if !gone {
                process.stdin.closed.store(true, Ordering::Relaxed);
                let _ = process.stdin.typed.send(Vec::new()).await;
            }
            return Ok(());
        }
    }
}

async fn flow(stream: UnixStream, output: &Output, offset: usize) -> std::io::Result<()> {
    let (mut from_host, mut to_host) = stream.into_split();
    let mut state = output.state.subscribe();
    let mut sent = offset;
    let mut acknowledgement = [0; 8];
    let mut filled = 0;
    loop {
        let (part, closed) = {
            let printed = state.borrow_and_update();
            assert!(offset >= printed.acknowledged.min(offset), "the host went back");
            // As the agent does: no more than a window beyond what was acknowledged.
            let room = (256 << 10) - (sent - printed.acknowledged.min(sent));
            let unsent = printed.bytes.get(sent..).unwrap_or_default();
            (unsent[..unsent.len().min(room)].to_vec(), printed.closed)
        };
        to_host.write_all(&part).await?;
        sent += part.len();
        if closed && sent == output.state.borrow().bytes.len() {
            to_host.shutdown().await?;
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return Ok(()) },
            read = from_host.read(&mut acknowledgement[filled..]) => match read? {
                0 => return Ok(()),
                length => {
                    filled += length;
                    if filled == 8 {
                        filled = 0;
                        let total = usize::try_from(u64::from_le_bytes(acknowledgement)).unwrap();
                        assert!(total <= sent, "the host acknowledges what it was not sent");
                        output.state.send_modify(|printed| {
                            printed.acknowledged = printed.acknowledged.max(total);
                        });
                    }
                }
            },
        }
    }
}
