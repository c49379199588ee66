//! One stream socket of either transport, and the listener that gives such sockets.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, Shutdown, SocketFlags, accept_with, recv, send, shutdown},
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use crate::sys::reactor;

/// Most bytes that are received at once.
pub const PART_BYTES: usize = 16 * 1024;

/// A connected socket.
#[derive(Debug)]
pub struct Connection {
    socket: AsyncFd<OwnedFd>,
}

impl Connection {
    /// Wraps a non-blocking, connected socket.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: reactor::register(socket)?,
        })
    }

    /// Receives what there is; 0 at the end of the peer's sending.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket
            .async_io(Interest::READABLE, |socket| {
                Ok(recv(socket, &mut *buffer, RecvFlags::empty())?.0)
            })
            .await
    }

    /// Receives what there is, at most [`PART_BYTES`]; nothing at the end of the peer's sending. While it waits, no buffer is
    /// held.
    pub async fn receive_part(&self) -> io::Result<Vec<u8>> {
        self.socket
            .async_io(Interest::READABLE, |socket| {
                let mut part = [0; PART_BYTES];
                let (length, _) = recv(socket, &mut part, RecvFlags::empty())?;
                Ok(part.get(..length).unwrap_or_default().to_vec())
            })
            .await
    }

    /// Sends a part of `bytes`, as many as there is room for.
    pub async fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.socket
            .async_io(Interest::WRITABLE, |socket| {
                Ok(send(socket, bytes, SendFlags::NOSIGNAL)?)
            })
            .await
    }

    /// Sends all of `bytes`.
    pub async fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.send(bytes).await?;
            bytes = bytes.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Tells the peer that nothing more will be sent. A peer that is gone already is told nothing.
    pub fn shut_down_sending(&self) {
        let _peer_is_gone = shutdown(&self.socket, Shutdown::Write);
    }

    /// Whether the peer no longer receives: it closed the connection, and did not merely end its sending.
    ///
    /// An empty send meets the check for a closed peer and then does nothing.
    pub fn is_gone(&self) -> bool {
        matches!(
            send(&self.socket, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT),
            Err(Errno::PIPE | Errno::NOTCONN | Errno::CONNRESET)
        )
    }

    fn poll_io<R>(
        &self,
        context: &mut Context<'_>,
        interest: Interest,
        mut operation: impl FnMut(&OwnedFd) -> Result<R, Errno>,
    ) -> Poll<io::Result<R>> {
        loop {
            let mut ready = if interest.is_readable() {
                ready!(self.socket.poll_read_ready(context))?
            } else {
                ready!(self.socket.poll_write_ready(context))?
            };
            if let Ok(result) = ready.try_io(|socket| Ok(operation(socket.get_ref())?)) {
                return Poll::Ready(result);
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let received = ready!(self.poll_io(context, Interest::READABLE, |socket| {
            Ok(recv(socket, buffer.initialize_unfilled(), RecvFlags::empty())?.0)
        }))?;
        buffer.advance(received);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_io(context, Interest::WRITABLE, |socket| {
            send(socket, bytes, SendFlags::NOSIGNAL)
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut_down_sending();
        Poll::Ready(Ok(()))
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

/// A listening socket; as a stream, all connections that come.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
}

impl Listener {
    /// Wraps a non-blocking, listening socket.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: reactor::register(socket)?,
        })
    }

    /// Takes the next connection.
    pub async fn accept(&self) -> io::Result<Connection> {
        let socket = self
            .socket
            .async_io(Interest::READABLE, |socket| Ok(accept(socket)?))
            .await?;
        Connection::new(socket)
    }
}

impl Stream for Listener {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            if let Ok(socket) = ready.try_io(|socket| Ok(accept(socket)?)) {
                return Poll::Ready(Some(socket.and_then(Connection::new)));
            }
        }
    }
}

fn accept(socket: impl AsFd) -> Result<OwnedFd, Errno> {
    accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
}
