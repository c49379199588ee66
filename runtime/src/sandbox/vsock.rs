//! The host's side of a machine's virtual socket device.
//!
//! The device is a unix stream socket. `CONNECT <port>\n` is answered with `OK <n>\n` and from there the bytes are those
//! of a stream to that port of the guest, or with `ERR <reason>\n`. `LISTEN <port>\n` is answered the same way, and then
//! each connection that the guest opens to that port arrives as one byte with a descriptor attached.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
};

/// Longest answer that is read, in bytes: a reason is one sentence.
const ANSWER_BYTES: usize = 512;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The unix socket does not do what it should.
    #[error("the virtual socket of the machine cannot be used: {0}")]
    Socket(#[from] io::Error),
    /// The machine or its guest said no.
    #[error("the guest's port {port} cannot be reached: {reason}")]
    Refused {
        /// vsock port.
        port: u32,
        /// What was answered, at most 512 bytes.
        reason: String,
    },
}

/// Opens a stream to `port` of the guest behind the socket at `path`.
///
/// # Errors
///
/// [`VsockError`]; the caller bounds the time.
pub async fn connect(path: &Path, port: u32) -> Result<UnixStream, VsockError> {
    let mut stream = UnixStream::connect(path).await?;
    request(&mut stream, "CONNECT", port).await?;
    Ok(stream)
}

/// Streams that a guest opens to one port of the host.
#[derive(Debug)]
pub struct Listener {
    stream: UnixStream,
}

impl Listener {
    /// Registers for `port` at the socket at `path`. The machine need not run yet.
    ///
    /// # Errors
    ///
    /// [`VsockError`], also when another listener has the port. Waits until the machine answers; the caller bounds
    /// the time.
    pub async fn bind(path: &Path, port: u32) -> Result<Self, VsockError> {
        let mut stream = UnixStream::connect(path).await?;
        request(&mut stream, "LISTEN", port).await?;
        Ok(Self { stream })
    }

    /// The next stream that the guest opens.
    ///
    /// # Errors
    ///
    /// An error of the socket, or end of file when the machine is gone.
    pub async fn accept(&mut self) -> io::Result<UnixStream> {
        let descriptor = self
            .stream
            .async_io(Interest::READABLE, || receive_descriptor(&self.stream))
            .await?;
        let stream = std::os::unix::net::UnixStream::from(descriptor);
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    }
}

async fn request(stream: &mut UnixStream, verb: &str, port: u32) -> Result<(), VsockError> {
    stream.write_all(format!("{verb} {port}\n").as_bytes()).await?;
    // Byte by byte: what follows the line belongs to whoever uses the stream.
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => break,
            byte if line.len() < ANSWER_BYTES => line.push(byte),
            _ => break,
        }
    }
    let answer = String::from_utf8_lossy(&line);
    match answer.split_once(' ').unwrap_or((&answer, "")) {
        ("OK", _) => Ok(()),
        ("ERR", reason) => Err(VsockError::Refused {
            port,
            reason: reason.to_owned(),
        }),
        _ => Err(VsockError::Refused {
            port,
            reason: format!("the machine answered {answer:?}"),
        }),
    }
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    descriptors
        .next()
        .and_then(|mut descriptors| descriptors.next())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the machine sent a byte without a descriptor",
            )
        })
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use tokio::{io::AsyncBufReadExt, net::UnixListener};

    use super::*;

    #[tokio::test]
    async fn a_stream_begins_right_behind_the_answer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let machine = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tokio::io::BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            stream.write_all(b"OK 7\nfirst bytes").await.unwrap();
            line
        });
        let mut stream = connect(&path, 1024).await.unwrap();
        assert_eq!(machine.await.unwrap(), "CONNECT 1024\n");
        let mut bytes = String::new();
        stream.read_to_string(&mut bytes).await.unwrap();
        assert_eq!(bytes, "first bytes");
    }

    async fn accept_request(listener: &UnixListener) -> UnixStream {
        let (mut stream, _) = listener.accept().await.unwrap();
        while stream.read_u8().await.unwrap() != b'\n' {}
        stream
    }

    #[tokio::test]
    async fn a_refusal_is_told_and_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        for answer in ["ERR nobody listens there\n".to_owned(), "x".repeat(100_000)] {
            let machine = async {
                let mut stream = accept_request(&listener).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            };
            let (result, ()) = tokio::join!(connect(&path, 9), machine);
            let message = result.unwrap_err().to_string();
            assert!(message.contains("port 9"), "{message}");
            assert!(message.len() < 1000);
        }
    }

    #[tokio::test]
    async fn a_guests_connection_arrives_as_a_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let machine = tokio::spawn(async move {
            let mut stream = accept_request(&listener).await;
            stream.write_all(b"OK 1\n").await.unwrap();
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            let rights = [std::os::fd::AsFd::as_fd(&theirs)];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&rights));
            sendmsg(&stream, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty()).unwrap();
            io::Write::write_all(&mut &ours, b"ding").unwrap();
        });
        let mut listener = Listener::bind(&path, 1).await.unwrap();
        let mut stream = listener.accept().await.unwrap();
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ding");
        machine.await.unwrap();
        assert_eq!(
            listener.accept().await.unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
