//! The standard input of a process: from the host's connection to its pipe or terminal.
//!
//! The host ends its sending to close the process's stdin. A connection that is gone altogether closes nothing: it is
//! a daemon that died, and the next one goes on.

use std::{future::pending, io, os::fd::OwnedFd};

use bulkhead_proto::agent::{StreamReply, wire};
use rustix::{
    io::write,
    termios::{LocalModes, SpecialCodeIndex, tcgetattr},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, watch},
};

use super::{connection::Connection, output::Attachment};

/// Bytes taken from the host at once; no more are taken until the process has read these.
const PART_BYTES: usize = 16 * 1024;

/// What the process reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkKind {
    /// A pipe, whose end is its closing.
    Pipe,
    /// A terminal, whose end is a character.
    Terminal,
}

/// Moves the host's bytes into `sink` until the process has ended, or nobody holds the sending half of `attachments`.
pub async fn run(
    sink: AsyncFd<OwnedFd>,
    kind: SinkKind,
    mut attachments: mpsc::Receiver<Attachment>,
    mut exited: watch::Receiver<bool>,
) {
    let mut input = Input {
        sink: Some(sink),
        kind,
        connection: None,
        pending: Vec::new(),
    };
    loop {
        tokio::select! {
            biased;
            attachment = attachments.recv() => match attachment {
                Some(attachment) => input.attach(attachment).await,
                None => return,
            },
            () = ended(&mut exited), if input.sink.is_some() => {
                input.close();
                input.connection = None;
            },
            written = input.write() => input.written(&written),
            received = input.receive() => input.received(received),
        }
    }
}

/// Waits until the process has ended, or is forgotten.
async fn ended(exited: &mut watch::Receiver<bool>) {
    let _or_forgotten = exited.wait_for(|exited| *exited).await;
}

struct Input {
    /// `None` once it is closed.
    sink: Option<AsyncFd<OwnedFd>>,
    kind: SinkKind,
    connection: Option<Connection>,
    /// Received and not yet written.
    pending: Vec<u8>,
}

impl Input {
    async fn attach(&mut self, attachment: Attachment) {
        let refusal = match self.sink {
            Some(_) => String::new(),
            None => "the process's stdin is closed".to_owned(),
        };
        if !attachment.answered || !refusal.is_empty() {
            let reply = wire::encode(&StreamReply {
                refusal: refusal.clone(),
            });
            if attachment.connection.send_all(&reply).await.is_err() {
                return;
            }
        }
        if refusal.is_empty() {
            self.connection = Some(attachment.connection);
            self.pending.extend(attachment.early);
        }
    }

    async fn receive(&self) -> io::Result<Vec<u8>> {
        match &self.connection {
            Some(connection) if self.pending.is_empty() => {
                let mut part = vec![0; PART_BYTES];
                let length = connection.receive(&mut part).await?;
                part.truncate(length);
                Ok(part)
            }
            _ => pending().await,
        }
    }

    fn received(&mut self, bytes: io::Result<Vec<u8>>) {
        match bytes {
            Ok(bytes) if !bytes.is_empty() => self.pending = bytes,
            Ok(_) => {
                if !self.connection.as_ref().is_some_and(Connection::is_gone) {
                    self.end();
                }
                self.connection = None;
            }
            Err(_) => self.connection = None,
        }
    }

    async fn write(&self) -> io::Result<usize> {
        match &self.sink {
            Some(sink) if !self.pending.is_empty() => {
                sink.async_io(Interest::WRITABLE, |sink| Ok(write(sink, &self.pending)?))
                    .await
            }
            _ => pending().await,
        }
    }

    fn written(&mut self, written: &io::Result<usize>) {
        match written {
            Ok(length) => {
                self.pending.drain(..(*length).min(self.pending.len()));
                if self.pending.is_empty() {
                    self.pending = Vec::new();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Nobody reads any more: the host learns it from the closed connection.
            Err(_) => {
                self.close();
                self.connection = None;
            }
        }
    }

    /// The host has sent the last byte.
    fn end(&mut self) {
        match self.kind {
            SinkKind::Pipe => self.close(),
            // A terminal cannot be closed on one side: where it reads lines, its end-of-file character says the same.
            SinkKind::Terminal => {
                if let Some(attributes) = self.sink.as_ref().and_then(|sink| tcgetattr(sink).ok())
                    && attributes.local_modes.contains(LocalModes::ICANON)
                {
                    self.pending = vec![attributes.special_codes[SpecialCodeIndex::VEOF]];
                }
            }
        }
    }

    fn close(&mut self) {
        self.sink = None;
        self.pending = Vec::new();
    }
}
