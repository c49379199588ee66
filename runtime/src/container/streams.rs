//! The standard streams of processes: raw bytes from the agent, acknowledged when they are safe.

use std::{io, sync::Arc, time::Duration};

use bulkhead_proto::agent::{STREAM_PORT, StreamHeader, StreamKind, StreamReply, wire};
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::{
    logs::{Stream, writer::LogInput},
    sandbox::{
        agent::Agent,
        machine::Machine,
        paths::SocketPath,
        vsock::{self, VsockError},
    },
};

/// Bytes read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// How often a broken stream of a running machine is opened again before it is given up.
const REOPENINGS: usize = 3;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The virtual socket device.
    #[error("a stream to the pod's agent cannot be opened: {0}")]
    Vsock(#[from] VsockError),
    /// The connection.
    #[error("a stream to the pod's agent is broken: {0}")]
    Io(#[from] io::Error),
    /// What came is not of the protocol.
    #[error("a stream to the pod's agent is of another protocol: {0}")]
    Frame(#[from] wire::FrameError),
    /// The agent will not have it.
    #[error("the pod's agent refuses a stream: {0}")]
    Refused(String),
    /// The agent said nothing.
    #[error("the pod's agent has not answered a stream within {} s; stop the pod, or raise `timeouts.agent_seconds`", .0.as_secs())]
    Silent(Duration),
}

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
        };
        tokio::time::timeout(agent.timeout(), Self::handshake(agent, &header))
            .await
            .unwrap_or(Err(StreamError::Silent(agent.timeout())))
    }

    async fn handshake(agent: &Agent, header: &StreamHeader) -> Result<Self, StreamError> {
        let socket = SocketPath::new(agent.socket())?;
        let mut stream = vsock::connect(socket.get(), STREAM_PORT).await?;
        stream.write_all(&wire::encode(header)).await?;
        let mut received = BytesMut::new();
        loop {
            if let Some((reply, length)) = wire::decode::<StreamReply>(&received)? {
                if !reply.refusal.is_empty() {
                    return Err(StreamError::Refused(
                        reply.refusal.chars().filter(|c| !c.is_control()).collect(),
                    ));
                }
                return Ok(Self {
                    stream,
                    head: received.split_off(length).freeze(),
                });
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// The next bytes; none at the end of the stream. May be dropped without losing any.
    ///
    /// # Errors
    ///
    /// What the socket says.
    async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<Bytes> {
        if !self.head.is_empty() {
            return Ok(std::mem::take(&mut self.head));
        }
        buffer.reserve(CHUNK_BYTES);
        self.stream.read_buf(buffer).await?;
        Ok(buffer.split().freeze())
    }

    /// Tells the agent that the first `total` bytes of the stream are safe. One that is gone needs not know.
    async fn acknowledge(&mut self, total: u64) {
        let _ = self.stream.write_all(&total.to_le_bytes()).await;
    }
}

/// Takes a stream of a container's first process to its log until it ends, and acknowledges what is written.
pub(super) async fn pump(
    machine: Arc<Machine>,
    container: String,
    kind: Stream,
    mut stream: OutputStream,
    mut log: LogInput,
) {
    let mut received = log.written();
    let mut reopenings = 0;
    loop {
        match drain(&mut stream, &mut log, &mut received).await {
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

async fn drain(stream: &mut OutputStream, log: &mut LogInput, received: &mut u64) -> io::Result<()> {
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
        if log.write(chunk).await.is_err() {
            return Ok(());
        }
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
