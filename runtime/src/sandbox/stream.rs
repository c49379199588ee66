//! Streams of bytes to a pod's agent: standard streams of processes, and connections to ports.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bulkhead_proto::agent::{STREAM_PORT, StreamHeader, StreamKind, StreamReply, wire};
use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::UnixStream,
};

use super::{
    agent::{Agent, clean},
    paths::SocketPath,
    vsock::{self, VsockError},
};

/// Longest refusal that is passed on, in characters.
const REFUSAL_CHARS: usize = 1024;

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

/// A stream that the agent has accepted.
#[derive(Debug)]
pub struct AgentStream {
    /// The connection.
    pub stream: UnixStream,
    /// What came together with the agent's reply: to be read first.
    pub head: Bytes,
}

impl AgentStream {
    /// Opens the stream that `header` names.
    ///
    /// # Errors
    ///
    /// [`StreamError`].
    pub async fn open(agent: &Agent, header: &StreamHeader) -> Result<Self, StreamError> {
        tokio::time::timeout(agent.timeout(), Self::handshake(agent, header))
            .await
            .unwrap_or(Err(StreamError::Silent(agent.timeout())))
    }

    /// Connects to a port on the pod's loopback.
    ///
    /// # Errors
    ///
    /// [`StreamError`]; refused where nobody listens.
    pub async fn connect(agent: &Agent, port: u16) -> Result<Self, StreamError> {
        let header = StreamHeader {
            kind: StreamKind::Port.into(),
            port: port.into(),
            ..StreamHeader::default()
        };
        Self::open(agent, &header).await
    }

    async fn handshake(agent: &Agent, header: &StreamHeader) -> Result<Self, StreamError> {
        let socket = SocketPath::new(agent.socket())?;
        let mut stream = vsock::connect(socket.get(), STREAM_PORT).await?;
        stream.write_all(&wire::encode(header)).await?;
        let mut received = BytesMut::new();
        loop {
            if let Some((reply, length)) = wire::decode::<StreamReply>(&received)? {
                if !reply.refusal.is_empty() {
                    return Err(StreamError::Refused(clean(&reply.refusal, REFUSAL_CHARS)));
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
}

impl AsyncRead for AgentStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.head.len().min(buffer.remaining());
        buffer.put_slice(self.head.get(..length).unwrap_or_default());
        self.head.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
