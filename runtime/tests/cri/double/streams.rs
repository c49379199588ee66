//! Stream connections: bytes of a process from the offset on, until they are acknowledged.

use bulkhead_proto::agent::{StreamHeader, StreamKind, StreamReply, wire};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::processes::{Guest, Output};

/// Serves one connection.
pub async fn serve(mut stream: UnixStream, guest: Guest) {
    let mut received = Vec::new();
    let header: StreamHeader = loop {
        match wire::decode(&received).unwrap() {
            Some((header, _)) => break header,
            None => {
                if stream.read_buf(&mut received).await.unwrap() == 0 {
                    return;
                }
            }
        }
    };
    // The streams of an exec are opened before it is there.
    let process = loop {
        let made = guest.made.notified();
        if let Some(process) = guest.process(&header.container_id, &header.exec_id) {
            stream
                .write_all(&wire::encode(&StreamReply::default()))
                .await
                .unwrap();
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
        stream
            .write_all(&wire::encode(&StreamReply::default()))
            .await
            .unwrap();
        made.await;
        if let Some(process) = guest.process(&header.container_id, &header.exec_id) {
            break process;
        }
    };
    let output = match header.kind() {
        StreamKind::Stdout => process.stdout,
        StreamKind::Stderr => process.stderr,
        StreamKind::Stdin => return,
    };
    let _ = flow(stream, &output, usize::try_from(header.offset).unwrap()).await;
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
            (
                printed.bytes.get(sent..).unwrap_or_default().to_vec(),
                printed.closed,
            )
        };
        // As the agent does: no more than a window beyond what was acknowledged.
        let room = (256 << 10) - (sent - output.state.borrow().acknowledged.min(sent));
        let part = &part[..part.len().min(room)];
        to_host.write_all(part).await?;
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
