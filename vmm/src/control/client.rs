//! The owner's side of the control socket.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, sendmsg, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use super::protocol::{MachineState, PACKET_BYTES, PACKET_FDS, Request, Response};
use crate::config::{DiskConfig, FileSource, NetConfig, SegmentConfig};

/// Why a control request failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The machine's socket could not be reached, or the machine ended or did not answer in time.
    #[error("the control socket of the virtual machine does not answer: {0}; its process may have ended")]
    Unreachable(#[source] io::Error),
    /// The machine refused.
    #[error("the virtual machine refused: {0}")]
    Refused(String),
    /// The answer is not of this protocol.
    #[error(
        "the virtual machine gave an answer of another protocol: {0}; its binary may be of another version"
    )]
    Protocol(String),
}

/// A connection to a machine's control socket. Blocking; every call is bounded by the timeout given at the start.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
}

impl Client {
    /// Connects to the socket at `path`; each request may take `timeout`.
    ///
    /// # Errors
    ///
    /// [`ControlError::Unreachable`] when nobody listens there.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ControlError> {
        let unreachable = |error: rustix::io::Errno| ControlError::Unreachable(error.into());
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(unreachable)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(timeout)).map_err(unreachable)?;
        set_socket_timeout(&socket, Timeout::Send, Some(timeout)).map_err(unreachable)?;
        connect(&socket, &SocketAddrUnix::new(path).map_err(unreachable)?).map_err(unreachable)?;
        Ok(Self { socket })
    }

    /// Puts a disk on the bus: `segments` are open files with the bytes each gives to the disk.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] for a serial in use, a full bus or a file that is too short.
    pub fn add_disk(
        &self,
        serial: &str,
        access: crate::config::DiskAccess,
        segments: &[(BorrowedFd<'_>, u64)],
    ) -> Result<(), ControlError> {
        let disk = DiskConfig {
            serial: serial.to_owned(),
            access,
            segments: (0..)
                .zip(segments)
                .map(|(index, (_, length))| SegmentConfig {
                    file: FileSource::Fd(index),
                    length: Some(*length),
                })
                .collect(),
        };
        let files: Vec<BorrowedFd<'_>> = segments.iter().map(|(file, _)| *file).collect();
        self.done(&Request::AddDisk(disk), &files)
    }

    /// Puts a network interface on the bus: `taps` are open queues of a tap, see [`NetConfig::taps`].
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] for a hardware address in use, a full bus or what is no tap.
    pub fn add_net(&self, mac: String, mtu: u16, taps: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
        let net = NetConfig {
            mac,
            mtu,
            taps: (0..).take(taps.len()).collect(),
        };
        self.done(&Request::AddNet(net), taps)
    }

    /// Stops vCPUs and devices.
    ///
    /// # Errors
    ///
    /// As every request.
    pub fn pause(&self) -> Result<(), ControlError> {
        self.done(&Request::Pause, &[])
    }

    /// Lets vCPUs and devices go on.
    ///
    /// # Errors
    ///
    /// As every request.
    pub fn resume(&self) -> Result<(), ControlError> {
        self.done(&Request::Resume, &[])
    }

    /// Ends the machine.
    ///
    /// # Errors
    ///
    /// As every request.
    pub fn quit(&self) -> Result<(), ControlError> {
        self.done(&Request::Quit, &[])
    }

    /// Asks how the machine is.
    ///
    /// # Errors
    ///
    /// As every request.
    pub fn state(&self) -> Result<MachineState, ControlError> {
        match self.request(&Request::State, &[])? {
            Response::State(state) => Ok(state),
            other => Err(ControlError::Protocol(format!(
                "{other:?} to a question about state"
            ))),
        }
    }

    fn done(&self, request: &Request, files: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
        match self.request(request, files)? {
            Response::Done => Ok(()),
            other => Err(ControlError::Protocol(format!("{other:?} to {request:?}"))),
        }
    }

    fn request(&self, request: &Request, files: &[BorrowedFd<'_>]) -> Result<Response, ControlError> {
        if files.len() > PACKET_FDS {
            return Err(ControlError::Refused(format!(
                "a device of {} files cannot be handed over, at most {PACKET_FDS} can",
                files.len()
            )));
        }
        let packet =
            serde_json::to_vec(request).map_err(|error| ControlError::Protocol(error.to_string()))?;
        let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(files).size()];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(files));
        }
        sendmsg(
            &self.socket,
            &[IoSlice::new(&packet)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .map_err(|error| ControlError::Unreachable(error.into()))?;
        let mut answer = vec![0; PACKET_BYTES];
        let (length, _) = recv(
            &self.socket,
            &mut *IoSliceMut::new(&mut answer),
            RecvFlags::empty(),
        )
        .map_err(|error| ControlError::Unreachable(error.into()))?;
        if length == 0 {
            return Err(ControlError::Unreachable(io::ErrorKind::ConnectionReset.into()));
        }
        let answer = answer.get(..length).unwrap_or_default();
        match serde_json::from_slice(answer).map_err(|error| ControlError::Protocol(error.to_string()))? {
            Response::Error(failure) => Err(ControlError::Refused(failure.message)),
            response => Ok(response),
        }
    }
}
