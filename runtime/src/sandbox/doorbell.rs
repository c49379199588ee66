//! The end of a boot: the agent opens a connection to the host and says who it is.

use std::{io, path::Path};

use bulkhead_proto::agent::{DOORBELL_PORT, HelloResponse, wire};
use tokio::{io::AsyncReadExt, net::UnixStream};

use super::{
    agent::{AgentError, check_hello},
    vsock::{Listener, VsockError},
};

/// Why the doorbell did not ring.
#[derive(Debug, thiserror::Error)]
pub enum DoorbellError {
    /// The virtual socket device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// What was sent is no hello.
    #[error("what the guest says when it is up cannot be understood: {0}")]
    Frame(#[from] wire::FrameError),
    /// The agent is of another release.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Waits until the agent of the machine with this virtual socket device says hello. The machine need not run yet; the
/// caller bounds the time.
///
/// A connection that ends before the message does is one that the guest has given up: its clock goes on while the machine is
/// held up, and it rings again.
///
/// # Errors
///
/// [`DoorbellError`].
pub(super) async fn wait(socket: &Path) -> Result<HelloResponse, DoorbellError> {
    let mut listener = Listener::bind(socket, DOORBELL_PORT).await?;
    loop {
        let stream = listener.accept().await.map_err(VsockError::Socket)?;
        if let Some(hello) = read_hello(stream).await? {
            return Ok(check_hello(&hello)?);
        }
    }
}

/// Reads the message; `None` when the connection ends before it does.
async fn read_hello(mut stream: UnixStream) -> Result<Option<HelloResponse>, DoorbellError> {
    let mut received = Vec::new();
    loop {
        if let Some((hello, _)) = wire::decode(&received)? {
            return Ok(Some(hello));
        }
        match stream.read_buf(&mut received).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(VsockError::Socket(error).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use bulkhead_proto::agent::PROTOCOL_VERSION;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::UnixListener,
    };

    use super::*;

    /// What the device does when the guest connects: hands over one end, and keeps the other.
    fn connect(listener: &UnixStream) -> UnixStream {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let descriptors = [std::os::fd::AsFd::as_fd(&theirs)];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(
            listener,
            &[IoSlice::new(&[0])],
            &mut ancillary,
            SendFlags::empty(),
        )
        .unwrap();
        ours.set_nonblocking(true).unwrap();
        UnixStream::from_std(ours).unwrap()
    }

    #[tokio::test]
    async fn a_connection_that_the_guest_gives_up_is_not_the_last_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let device = UnixListener::bind(&path).unwrap();
        let waiting = tokio::spawn(async move { wait(&path).await });
        let (stream, _) = device.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut request = String::new();
        stream.read_line(&mut request).await.unwrap();
        assert_eq!(request, format!("LISTEN {DOORBELL_PORT}\n"));
        stream.write_all(b"OK 1\n").await.unwrap();

        drop(connect(stream.get_ref()));
        let hello = HelloResponse {
            protocol_version: PROTOCOL_VERSION,
            ..HelloResponse::default()
        };
        let message = wire::encode(&hello);
        let (begun, _) = message.split_at(message.len() / 2);
        connect(stream.get_ref()).write_all(begun).await.unwrap();
        let mut whole = connect(stream.get_ref());
        whole.write_all(&message).await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap(), hello);
    }
}
