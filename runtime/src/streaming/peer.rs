//! Whether a client is still there, also while nothing is read from it.
//!
//! A session that holds its client up does not read the connection and would not see its end for as long. So the socket is
//! looked at beside it, now and then; and the kernel is told to look for clients that vanish without a word.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt,
};
use tokio::net::TcpStream;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// How long a client's last bytes may wait to be read after it has left.
const GRACE: Duration = Duration::from_secs(5);

/// Silence of a connection after which the kernel asks whether the other side is there, how often, and how many answers may
/// be missing.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_mins(1), Duration::from_secs(15), 4);

/// The socket of a client.
#[derive(Debug)]
pub struct Peer {
    socket: OwnedFd,
}

impl Peer {
    /// Prepares a new connection.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn new(stream: &TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let (idle, interval, count) = KEEPALIVE;
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, idle)?;
        sockopt::set_tcp_keepintvl(stream, interval)?;
        sockopt::set_tcp_keepcnt(stream, count)?;
        Ok(Self {
            socket: rustix::io::fcntl_dupfd_cloexec(stream, 0)?,
        })
    }

    /// Waits until the client has left and its last bytes have had their time.
    pub async fn left(&self) {
        while !self.has_left() {
            tokio::time::sleep(LOOK).await;
        }
        tokio::time::sleep(GRACE).await;
    }

    fn has_left(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let looked = poll(&mut fds, Some(&at_once));
        let [fd] = &fds;
        looked.is_ok() && !fd.revents().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    #[tokio::test]
    async fn a_client_that_left_is_seen_behind_what_it_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let peer = Peer::new(&stream).unwrap();
        client.write_all(b"unread").await.unwrap();
        assert!(!peer.has_left());
        drop(client);
        tokio::time::timeout(Duration::from_secs(20), peer.left())
            .await
            .unwrap();
    }
}
