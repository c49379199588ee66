//! The standard streams of processes: raw bytes from the agent, acknowledged when they are safe.

use std::{io, sync::Arc, time::Duration};

use bulkhead_proto::agent::{StreamHeader, StreamKind};
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::attachers::Attachers;
use crate::{
    logs::{Stream, writer::LogInput},
    sandbox::{
        agent::Agent,
        machine::Machine,
        stream::{AgentStream, StreamError},
    },
    streaming::flow::{Broken, Outlet},
};

/// Bytes read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// How often a broken stream of a running machine is opened again before it is given up.
const REOPENINGS: usize = 3;

/// An output stream of a process.
#[derive(Debug)]
pub(super) struct OutputStream {
    stream: UnixStream,
    /// What came together with the agent's reply.
    head: Bytes,
}

impl OutputStream {
    /// Opens a stream of a process; `exec` is empty for the container's first one. The first `offset` bytes are here
    /// already.
    ///
    /// # Errors
    ///
    /// [`StreamError`].
    pub(super) async fn open(
        agent: &Agent,
        container: &str,
        exec: &str,
        stream: Stream,
        offset: u64,
    ) -> Result<Self, StreamError> {
        let kind = match stream {
            Stream::Stdout => StreamKind::Stdout,
            Stream::Stderr => StreamKind::Stderr,
        };
        let header = StreamHeader {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            kind: kind.into(),
            offset,
            port: 0,
        };
        let AgentStream { stream, head } = AgentStream::open(agent, &header).await?;
        Ok(Self { stream, head })
    }

    /// The next bytes; none at the end of the stream. May be dropped without losing any.
    ///
    /// # Errors
    ///
    /// What the socket says.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<Bytes> {
        if !self.head.is_empty() {
            return Ok(std::mem::take(&mut self.head));
        }
        buffer.reserve(CHUNK_BYTES);
        self.stream.read_buf(buffer).await?;
        Ok(buffer.split().freeze())
    }

    /// Tells the agent that the first `total` bytes of the stream are safe. One that is gone needs not know.
    pub(super) async fn acknowledge(&mut self, total: u64) {
        let _ = self.stream.write_all(&total.to_le_bytes()).await;
    }
}

/// Takes a stream of a container's first process to its log and to who is attached to it until it ends, and acknowledges
/// what is written.
pub(super) async fn pump(
    machine: Arc<Machine>,
    container: String,
    kind: Stream,
    mut stream: OutputStream,
    mut log: LogInput,
    attachers: Arc<Attachers>,
) {
    let mut received = log.written();
    let mut reopenings = 0;
    loop {
        match drain(&mut stream, &mut log, &attachers, kind, &mut received).await {
            Ok(()) => break,
            Err(error) if machine.end().is_some() => {
                tracing::debug!(container, %error, "a stream ended with its machine");
                break;
            }
            Err(error) if reopenings == REOPENINGS => {
                tracing::error!(container, stream = kind.name(), %error, "output is lost: its stream is broken");
                break;
            }
            Err(error) => {
                tracing::warn!(container, stream = kind.name(), %error, "a stream broke; opening it again");
            }
        }
        reopenings += 1;
        match OutputStream::open(machine.agent(), &container, "", kind, received).await {
            Ok(again) => stream = again,
            Err(error) => {
                tracing::warn!(container, stream = kind.name(), %error, "a broken stream cannot be opened again");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    // The rest of the last line; then the agent may let everything go.
    if log.end().await.is_ok() {
        let mut written = log.written();
        while written < received {
            match log.progress().await {
                Ok(more) => written = more,
                Err(_) => break,
            }
        }
        stream.acknowledge(written).await;
    }
}

async fn drain(
    stream: &mut OutputStream,
    log: &mut LogInput,
    attachers: &Attachers,
    kind: Stream,
    received: &mut u64,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        let chunk = tokio::select! {
            chunk = stream.read(&mut buffer) => chunk?,
            written = log.progress() => {
                match written {
                    Ok(written) => stream.acknowledge(written).await,
                    Err(_) => return Ok(()),
                }
                continue;
            }
        };
        if chunk.is_empty() {
            return Ok(());
        }
        *received += chunk.len() as u64;
        let to_log = chunk.clone();
        if log.write(to_log).await.is_err() {
            return Ok(());
        }
        attachers.send(kind, chunk).await;
    }
}

/// Takes all of a stream and keeps the first `limit` bytes.
///
/// # Errors
///
/// What the socket says.
pub(super) async fn collect(mut stream: OutputStream, limit: usize) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let mut received = 0u64;
    let mut buffer = BytesMut::new();
    loop {
        let chunk = stream.read(&mut buffer).await?;
        if chunk.is_empty() {
            return Ok(kept);
        }
        received += chunk.len() as u64;
        let room = limit.saturating_sub(kept.len()).min(chunk.len());
        kept.extend_from_slice(chunk.get(..room).unwrap_or_default());
        stream.acknowledge(received).await;
    }
}

/// Takes all of a stream to a client, and finishes the way there.
///
/// # Errors
///
/// What the socket says, or that the client is gone.
pub(super) async fn pass_on(mut stream: OutputStream, client: Outlet) -> io::Result<()> {
    let mut received = 0u64;
    let mut buffer = BytesMut::new();
    loop {
        let chunk = stream.read(&mut buffer).await?;
        if chunk.is_empty() {
            client.finish().await;
            return Ok(());
        }
        received += chunk.len() as u64;
        let gone = |Broken| io::Error::other("the client is gone");
        client.send(chunk).await.map_err(gone)?;
        stream.acknowledge(received).await;
    }
}
