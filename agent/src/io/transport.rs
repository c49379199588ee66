//! How the host reaches the agent: vsock in a guest; unix sockets in a directory where the agent runs in namespaces of a
//! developer's machine instead of a virtual one.

use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
};

use bulkhead_proto::agent::{CONTROL_PORT, DOORBELL_PORT, STREAM_PORT};
use rustix::io::ioctl_fionbio;
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

use super::connection::{Connection, Listener};

/// Where the agent listens and whom it tells that it does.
#[derive(Clone, Debug)]
pub enum Transport {
    /// The guest's vsock device.
    Vsock,
    /// Unix sockets in this directory, named as the port is.
    Directory(PathBuf),
}

/// A port cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Nobody can connect.
    #[error("cannot listen on port {port}")]
    Listen {
        /// The port.
        port: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host cannot be told.
    #[error("cannot tell the host on its port {DOORBELL_PORT} that the agent is ready")]
    Ring(#[source] io::Error),
}

impl TransportError {
    /// Whether the device that carries the transport is not there (yet).
    pub fn is_missing_device(&self) -> bool {
        matches!(self, Self::Ring(source) if source.raw_os_error() == Some(libc::ENODEV))
    }

    /// Whether the host did not answer in time.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Ring(source) if source.kind() == io::ErrorKind::TimedOut)
    }
}

impl Transport {
    /// Listens for calls.
    pub fn listen_control(&self) -> Result<Listener, TransportError> {
        self.listen(CONTROL_PORT)
    }

    /// Listens for standard streams.
    pub fn listen_streams(&self) -> Result<Listener, TransportError> {
        self.listen(STREAM_PORT)
    }

    /// Connects to the host's doorbell. Blocks until the host accepted or refused.
    pub fn connect_doorbell(&self) -> Result<Connection, TransportError> {
        let connect = || -> io::Result<OwnedFd> {
            Ok(match self {
                Self::Vsock => VsockStream::connect_with_cid_port(VMADDR_CID_HOST, DOORBELL_PORT)?.into(),
                Self::Directory(path) => UnixStream::connect(path.join(DOORBELL_PORT.to_string()))?.into(),
            })
        };
        connect()
            .and_then(|socket| Connection::new(nonblocking(socket)?))
            .map_err(TransportError::Ring)
    }

    fn listen(&self, port: u32) -> Result<Listener, TransportError> {
        let listen = || -> io::Result<OwnedFd> {
            Ok(match self {
                Self::Vsock => VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?.into(),
                Self::Directory(path) => UnixListener::bind(path.join(port.to_string()))?.into(),
            })
        };
        listen()
            .and_then(|socket| Listener::new(nonblocking(socket)?))
            .map_err(|source| TransportError::Listen { port, source })
    }
}

fn nonblocking(socket: OwnedFd) -> io::Result<OwnedFd> {
    ioctl_fionbio(&socket, true)?;
    Ok(socket)
}
