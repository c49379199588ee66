//! One output stream of a process: from its pipe or terminal through the window to the host's connection.
//!
//! A stream ends when every writer of it is gone. What a process leaves behind in the background may hold it open for
//! ever, so once the process itself has ended the stream also ends when nothing has come for [`DRAIN`]. What comes
//! later is read and thrown away: closing it instead would kill the writer with SIGPIPE.

use std::{future::pending, io, os::fd::OwnedFd, time::Duration};

use bulkhead_proto::agent::{
    StreamReply,
    wire::{self, ACKNOWLEDGEMENT_BYTES},
};
use rustix::io::read;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{connection::Connection, pipe, window::Window};
use crate::init::log;

/// How long an ended process's stream may be silent before it is taken to have ended as well.
const DRAIN: Duration = Duration::from_secs(1);

/// Bytes read from a process at once.
const PART_BYTES: usize = 16 * 1024;

/// A host's connection for a stream.
#[derive(Debug)]
pub struct Attachment {
    /// The connection, behind its header.
    pub connection: Connection,
    /// Bytes of the stream that the host has.
    pub offset: u64,
    /// What the host sent behind its header before the answer.
    pub early: Vec<u8>,
    /// Whether the header has been answered.
    pub answered: bool,
}

/// Moves the bytes of `source` until nobody holds the sending half of `attachments` any more.
///
/// `exited` tells when the process has ended; `ended` is set once the stream has ended and the host has acknowledged
/// all of it.
pub async fn run(
    source: AsyncFd<OwnedFd>,
    mut attachments: mpsc::Receiver<Attachment>,
    mut exited: watch::Receiver<bool>,
    ended: watch::Sender<bool>,
) {
    let mut output = Output {
        source: Some(source),
        window: Window::default(),
        peer: None,
        last_heard: Instant::now(),
    };
    loop {
        output.finish_sending();
        if output.source.is_none() && output.window.is_empty() {
            ended.send_replace(true);
        }
        let drained_at = (*exited.borrow_and_update()).then(|| output.last_heard + DRAIN);
        let mut words = [0; 64 * ACKNOWLEDGEMENT_BYTES];
        tokio::select! {
            biased;
            attachment = attachments.recv() => match attachment {
                Some(attachment) => output.attach(attachment).await,
                None => return,
            },
            Ok(()) = exited.changed() => output.last_heard = Instant::now(),
            received = output.receive(&mut words) => output.acknowledge(&received, &words),
            sent = output.send() => output.mark_sent(&sent),
            bytes = output.read() => output.push(bytes),
            () = output.silent(drained_at) => output.abandon_source(),
        }
    }
}

struct Output {
    /// `None` once it has ended.
    source: Option<AsyncFd<OwnedFd>>,
    window: Window,
    peer: Option<Peer>,
    /// When the process last wrote, ended, or had room to write again.
    last_heard: Instant,
}

/// The present connection.
struct Peer {
    connection: Connection,
    /// The bytes of an acknowledgement that has come in part.
    partial: Vec<u8>,
    shut_down: bool,
}

impl Output {
    async fn attach(&mut self, attachment: Attachment) {
        let refusal = match self.window.resume(attachment.offset) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        let refused = !refusal.is_empty();
        if !attachment.answered || refused {
            let reply = wire::encode(&StreamReply { refusal });
            if attachment.connection.send_all(&reply).await.is_err() {
                return;
            }
        }
        if !refused {
            // The latest wins: a daemon that comes back may be here before its old connection is seen to be dead.
            self.peer = Some(Peer {
                connection: attachment.connection,
                partial: Vec::with_capacity(ACKNOWLEDGEMENT_BYTES),
                shut_down: false,
            });
            if !attachment.early.is_empty() {
                self.acknowledge(&Ok(attachment.early.len()), &attachment.early);
            }
        }
    }

    /// Tells the host that the stream has ended, once all of it is sent.
    fn finish_sending(&mut self) {
        if self.source.is_none()
            && self.window.unsent().is_empty()
            && let Some(peer) = &mut self.peer
            && !peer.shut_down
        {
            peer.connection.shut_down_sending();
            peer.shut_down = true;
        }
    }

    /// Waits for acknowledgements.
    async fn receive(&self, words: &mut [u8]) -> io::Result<usize> {
        match &self.peer {
            Some(peer) => peer.connection.receive(words).await,
            None => pending().await,
        }
    }

    fn acknowledge(&mut self, received: &io::Result<usize>, words: &[u8]) {
        let Some(peer) = &mut self.peer else { return };
        let length = match received {
            Ok(0) | Err(_) => {
                self.peer = None;
                return;
            }
            Ok(length) => *length,
        };
        let words = words.get(..length).unwrap_or_default();
        peer.partial.extend(words);
        let (whole, rest) = peer.partial.as_chunks::<ACKNOWLEDGEMENT_BYTES>();
        let latest = whole.last().map(|bytes| u64::from_le_bytes(*bytes));
        peer.partial = rest.to_vec();
        let Some(position) = latest else { return };
        if self.window.room() == 0 {
            self.last_heard = Instant::now();
        }
        if let Err(error) = self.window.acknowledge(position) {
            log::warning!("the host acknowledges what it cannot have, its connection is closed: {error}");
            self.peer = None;
        }
    }

    /// Waits for room in the connection and sends a part of what is to be sent.
    async fn send(&self) -> io::Result<usize> {
        match &self.peer {
            Some(peer) if !self.window.unsent().is_empty() => {
                peer.connection.send(self.window.unsent()).await
            }
            _ => pending().await,
        }
    }

    fn mark_sent(&mut self, sent: &io::Result<usize>) {
        match sent {
            Ok(length) => self.window.mark_sent(*length),
            Err(_) => self.peer = None,
        }
    }

    /// Waits until the process has written and the window has room for it.
    async fn read(&self) -> io::Result<Vec<u8>> {
        match &self.source {
            Some(source) if self.window.room() > 0 => {
                let most = self.window.room().min(PART_BYTES);
                source
                    .async_io(Interest::READABLE, |source| {
                        // On the stack and only for the call: a stream that waits holds no buffer.
                        let mut part = [0; PART_BYTES];
                        let room = part.get_mut(..most).unwrap_or_default();
                        let length = read(source, &mut *room)?;
                        Ok(room.get(..length).unwrap_or_default().to_vec())
                    })
                    .await
            }
            _ => pending().await,
        }
    }

    fn push(&mut self, bytes: io::Result<Vec<u8>>) {
        match bytes {
            Ok(bytes) if !bytes.is_empty() => {
                self.window.push(&bytes);
                self.last_heard = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Its end; EIO is how a terminal says that nobody has its other side open.
            _ => self.source = None,
        }
    }

    /// Waits until the stream has been silent for too long, where `drained_at` says when that is.
    async fn silent(&self, drained_at: Option<Instant>) {
        match drained_at {
            Some(at) if self.source.is_some() && self.window.room() > 0 => sleep_until(at).await,
            _ => pending().await,
        }
    }

    fn abandon_source(&mut self) {
        if let Some(source) = self.source.take() {
            tokio::spawn(discard(source));
        }
    }
}

/// Reads `source` to its end and keeps nothing.
pub async fn discard(source: AsyncFd<OwnedFd>) {
    let mut part = [0; 512];
    while pipe::read_part(&source, &mut part)
        .await
        .is_ok_and(|length| length > 0)
    {}
}
