//! One connection: a reader that gives each stream its bytes, and a writer that all streams share.

use std::{collections::HashMap, io, pin::pin, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};

use super::{
    frame::{Control, FrameError, HEAD_BYTES, Head, Reply, ResetStatus, write_data, write_end},
    headers::{Decoder, Encoder, Headers},
};
use crate::streaming::{
    activity::Activity,
    flow::{self, Budget, Feed, Inlet, Message, Outgoing, Outlet},
};

/// Most streams of a connection that are open at once: a forwarded connection takes two.
pub const STREAMS: usize = 1024;

/// Most bytes of data that are passed on at once.
const PART_BYTES: usize = 16 << 10;

/// Bytes that are gathered for one write.
const WRITE_BYTES: usize = 64 << 10;

/// Answers that wait for the writer. A client that pings and does not read is not read beyond them.
const REPLIES: usize = 16;

/// Streams that have been opened and that nobody has looked at.
const INCOMING: usize = 16;

/// How long a client may take to end a connection that has been ended here. One that is closed while its bytes are unread
/// is reset, and the client loses what it has not read.
const LINGER: Duration = Duration::from_secs(5);

/// How long a client that broke the protocol may take to be told.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    /// The transport.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The client broke the protocol.
    #[error("the client breaks the protocol: {0}")]
    Protocol(#[from] FrameError),
}

/// A stream that the client has opened. It has been told that it may use it.
#[derive(Debug)]
pub struct Incoming {
    /// Its number.
    pub id: u32,
    /// What the client says of it.
    pub headers: Headers,
    /// From the client.
    pub inlet: Inlet,
    /// To the client.
    pub outlet: Outlet,
}

/// The streams that a client opens. When it is dropped, further ones are refused; the connection ends when all outlets
/// are gone as well, and everything is sent.
#[derive(Debug)]
pub struct Streams {
    incoming: mpsc::Receiver<Incoming>,
    /// Keeps the writer waiting for streams to come.
    _outgoing: mpsc::Sender<Outgoing>,
}

impl Streams {
    /// The next stream; `None` when the client has left.
    pub async fn next(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }
}

/// Serves a connection with `application`, which is dropped when the client leaves.
///
/// # Errors
///
/// [`SpdyError`]; a client that leaves between two frames is none.
pub async fn serve<T, A>(
    transport: T,
    activity: Activity,
    application: impl FnOnce(Streams) -> A,
) -> Result<(), SpdyError>
where
    T: AsyncRead + AsyncWrite,
    A: Future<Output = ()>,
{
    let (from, to) = tokio::io::split(transport);
    let (outgoing, said) = flow::outward();
    let (replies, answers) = mpsc::channel(REPLIES);
    let (opened, incoming) = mpsc::channel(INCOMING);
    let mut reader = Reader {
        from,
        buffer: BytesMut::new(),
        decoder: Decoder::new(),
        streams: HashMap::new(),
        last: 0,
        replies,
        outgoing: outgoing.downgrade(),
        incoming: opened,
        budget: Budget::new(),
        activity: activity.clone(),
    };
    let streams = Streams {
        incoming,
        _outgoing: outgoing,
    };
    let mut writing = pin!(write(to, answers, said, activity));
    let read = {
        let mut reading = pin!(reader.run());
        let mut applied = pin!(application(streams));
        let mut done = false;
        loop {
            tokio::select! {
                written = &mut writing => {
                    written?;
                    break None;
                }
                read = &mut reading => break Some(read),
                () = &mut applied, if !done => done = true,
            }
        }
    };
    match read {
        None => {
            let _in_its_own_time = timeout(LINGER, reader.discard()).await;
            Ok(())
        }
        Some(Err(error @ SpdyError::Protocol(_))) => {
            reader.streams.clear();
            let _is_busy = reader.replies.try_send(Reply::GoAway(reader.last));
            let _is_gone = timeout(FAREWELL, writing).await;
            Err(error)
        }
        Some(read) => read,
    }
}

struct Reader<R> {
    from: R,
    /// Read and not yet looked at.
    buffer: BytesMut,
    decoder: Decoder,
    /// Streams on which the client may still send.
    streams: HashMap<u32, Feed>,
    /// The number of the last one.
    last: u32,
    replies: mpsc::Sender<Reply>,
    outgoing: mpsc::WeakSender<Outgoing>,
    incoming: mpsc::Sender<Incoming>,
    budget: Budget,
    activity: Activity,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads until the client leaves.
    async fn run(&mut self) -> Result<(), SpdyError> {
        while self.fill(HEAD_BYTES).await? {
            let head = self.buffer.split_to(HEAD_BYTES);
            let head: [u8; HEAD_BYTES] = head.as_ref().try_into().unwrap_or_default();
            match Head::read(head)? {
                Head::Data { stream, fin, length } => self.data(stream, fin, length).await?,
                Head::Control { kind, flags, length } => {
                    if !self.fill(length).await? {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                    let body = self.buffer.split_to(length).freeze();
                    self.control(Control::read(kind, flags, &body)?).await?;
                }
            }
        }
        Ok(())
    }

    /// Reads until `length` bytes are there; false where the client leaves before the first of them.
    async fn fill(&mut self, length: usize) -> io::Result<bool> {
        while self.buffer.len() < length {
            self.buffer.reserve(PART_BYTES);
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(length == 0)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
        Ok(true)
    }

    async fn data(&mut self, stream: u32, fin: bool, length: usize) -> Result<(), SpdyError> {
        let mut missing = length;
        while missing > 0 {
            if !self.fill(1).await? {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let part = self
                .buffer
                .split_to(self.buffer.len().min(missing).min(PART_BYTES));
            missing -= part.len();
            self.activity.touch();
            // What comes for a stream that has ended here may have been sent before the client knew.
            if let Some(feed) = self.streams.get(&stream) {
                // Kept apart from the buffer, which a small part would keep whole.
                let _is_let_go = feed.send(Bytes::copy_from_slice(&part)).await;
            }
        }
        if fin && let Some(feed) = self.streams.remove(&stream) {
            feed.end();
        }
        Ok(())
    }

    async fn control(&mut self, control: Control<'_>) -> Result<(), SpdyError> {
        match control {
            Control::Open { stream, fin, block } => {
                let headers = self.decoder.read(block).map_err(FrameError::from)?;
                if stream % 2 == 0 || stream <= self.last {
                    return Err(FrameError::StreamNumber(stream).into());
                }
                self.last = stream;
                self.activity.touch();
                self.open(stream, fin, headers).await
            }
            Control::More { block } => {
                self.decoder.read(block).map_err(FrameError::from)?;
                Ok(())
            }
            Control::Reset { stream } => {
                self.streams.remove(&stream);
                Ok(())
            }
            // Even ones would be answers to a server's.
            Control::Ping { id } if id % 2 == 1 => self.reply(Reply::Ping(id)).await,
            Control::Ping { .. } | Control::Nothing => Ok(()),
        }
    }

    async fn open(&mut self, stream: u32, fin: bool, headers: Headers) -> Result<(), SpdyError> {
        if self.streams.len() >= STREAMS {
            self.streams.retain(|_, feed| !feed.is_closed());
        }
        let refused = Reply::Reset(stream, ResetStatus::Refused);
        let Some(outgoing) = self.outgoing.upgrade().filter(|_| self.streams.len() < STREAMS) else {
            return self.reply(refused).await;
        };
        if self.incoming.is_closed() {
            return self.reply(refused).await;
        }
        // Clients throw away what comes on a stream before this.
        self.reply(Reply::Opened(stream)).await?;
        let (feed, inlet) = flow::inward(&self.budget);
        let incoming = Incoming {
            id: stream,
            headers,
            inlet,
            outlet: Outlet::new(stream, outgoing),
        };
        if self.incoming.send(incoming).await.is_err() {
            return self.reply(refused).await;
        }
        if fin {
            feed.end();
        } else {
            self.streams.insert(stream, feed);
        }
        Ok(())
    }

    async fn reply(&mut self, reply: Reply) -> Result<(), SpdyError> {
        let sent = self.replies.send(reply).await;
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe).into())
    }

    /// Reads and keeps nothing until the client leaves.
    async fn discard(&mut self) {
        self.streams.clear();
        loop {
            self.buffer.clear();
            self.buffer.reserve(PART_BYTES);
            match self.from.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}

/// Writes what the streams have to say until none is left, and answers in between.
async fn write<W: AsyncWrite + Unpin>(
    mut to: W,
    mut replies: mpsc::Receiver<Reply>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    activity: Activity,
) -> io::Result<()> {
    let mut encoder = Encoder::default();
    let mut bytes = Vec::new();
    loop {
        let mut said = tokio::select! {
            biased;
            Some(reply) = replies.recv() => {
                reply.write(&mut encoder, &mut bytes);
                None
            }
            said = outgoing.recv() => match said {
                Some(said) => Some(said),
                None => break,
            },
        };
        loop {
            // A stream is opened before it speaks, also where both have come since.
            while let Ok(reply) = replies.try_recv() {
                reply.write(&mut encoder, &mut bytes);
            }
            match said.take() {
                Some(Outgoing { stream, message }) => match message {
                    Message::Bytes(data) => {
                        activity.touch();
                        write_data(stream, &data, &mut bytes);
                    }
                    Message::End => write_end(stream, &mut bytes),
                    Message::Reset => {
                        Reply::Reset(stream, ResetStatus::Cancel).write(&mut encoder, &mut bytes);
                    }
                },
                None => break,
            }
            if bytes.len() < WRITE_BYTES {
                said = outgoing.try_recv().ok();
            }
        }
        to.write_all(&bytes).await?;
        to.flush().await?;
        bytes.clear();
        bytes.shrink_to(2 * WRITE_BYTES);
    }
    to.shutdown().await
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
