//! Streams as channels of a WebSocket: the first byte of each message says whose it is. Where bytes travel as text, it is a
//! digit, and the rest is base64.

use std::{collections::HashMap, pin::pin, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::accepted;
use crate::streaming::{
    activity::Activity,
    flow::{self, Budget, Feed, Inlet, Outgoing, Outlet, STREAM_BYTES},
    port_forward::Duplex,
};

/// The channel of version 5 on which a client says which other one it has no more for.
const CLOSE_CHANNEL: u8 = 255;

/// How long a client may take to end a connection that has been ended here.
const LINGER: Duration = Duration::from_secs(5);

/// How a connection's messages look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelProtocol {
    /// Bytes travel as text.
    pub base64: bool,
    /// A client can close a channel.
    pub half_close: bool,
    /// The channel on which an empty message says that the connection stands.
    pub first: Option<u32>,
}

/// The channels of a connection. The connection ends when it and all outlets are gone, and everything is sent.
#[derive(Debug)]
pub struct Channels {
    inlets: HashMap<u32, Inlet>,
    outgoing: mpsc::Sender<Outgoing>,
}

impl Channels {
    /// What comes on a channel, once, where it is one that the client may write to.
    pub fn inlet(&mut self, channel: u32) -> Option<Inlet> {
        self.inlets.remove(&channel)
    }

    /// What goes out on a channel.
    pub fn outlet(&self, channel: u32) -> Outlet {
        Outlet::new(channel, self.outgoing.clone())
    }
}

/// Serves a connection with `application`, which is dropped when the client leaves. The client may write to `writable`.
///
/// # Errors
///
/// What broke the connection; a client that leaves does not.
pub async fn serve<T, A>(
    connection: T,
    activity: Activity,
    protocol: ChannelProtocol,
    writable: impl IntoIterator<Item = u32>,
    application: impl FnOnce(Channels) -> A,
) -> Result<(), Error>
where
    T: Duplex,
    A: Future<Output = ()>,
{
    let (sink, mut stream) = accepted(connection).await.split();
    let (outgoing, said) = flow::outward();
    let budget = Budget::new();
    let (mut feeds, mut inlets) = (HashMap::new(), HashMap::new());
    for channel in writable {
        let (feed, inlet) = flow::inward(&budget);
        feeds.insert(channel, feed);
        inlets.insert(channel, inlet);
    }
    let mut writing = pin!(write(sink, said, protocol, activity.clone()));
    let read = {
        let mut reading = pin!(read(&mut stream, &mut feeds, protocol, activity));
        let mut applied = pin!(application(Channels { inlets, outgoing }));
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
    let Some(read) = read else {
        let leaving = async { while let Some(Ok(_)) = stream.next().await {} };
        let _in_its_own_time = timeout(LINGER, leaving).await;
        return Ok(());
    };
    read
}

/// Gives each channel its bytes until the client leaves.
async fn read<T: Duplex>(
    stream: &mut SplitStream<WebSocketStream<T>>,
    feeds: &mut HashMap<u32, Feed>,
    protocol: ChannelProtocol,
    activity: Activity,
) -> Result<(), Error> {
    while let Some(message) = stream.next().await {
        let bytes = match message? {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            Message::Close(_) => return Ok(()),
            _ => continue,
        };
        activity.touch();
        let Some((channel, mut bytes)) = parse(&bytes, protocol.base64) else {
            continue;
        };
        if channel == CLOSE_CHANNEL && protocol.half_close {
            let closed = bytes.first().copied().map(u32::from);
            if let Some(feed) = closed.and_then(|channel| feeds.remove(&channel)) {
                feed.end();
            }
        } else if let Some(feed) = feeds.get(&channel.into()) {
            while !bytes.is_empty() {
                let part = bytes.split_to(bytes.len().min(STREAM_BYTES / 4));
                let _is_let_go = feed.send(part).await;
            }
        }
    }
    Ok(())
}

/// Whose a message is, and what is in it.
fn parse(bytes: &Bytes, base64: bool) -> Option<(u8, Bytes)> {
    let (channel, rest) = (*bytes.first()?, bytes.slice(1..));
    if !base64 {
        return Some((channel, rest));
    }
    Some((channel.checked_sub(b'0')?, STANDARD.decode(rest).ok()?.into()))
}

/// Writes what the channels have to say until none is left, then closes in order.
async fn write<T: Duplex>(
    mut sink: SplitSink<WebSocketStream<T>, Message>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    protocol: ChannelProtocol,
    activity: Activity,
) -> Result<(), Error> {
    if let Some(first) = protocol.first {
        sink.send(message(first, &[], protocol.base64)).await?;
    }
    while let Some(said) = outgoing.recv().await {
        // Channels have no end of their own.
        if let flow::Message::Bytes(bytes) = said.message {
            activity.touch();
            sink.feed(message(said.stream, &bytes, protocol.base64)).await?;
        }
        if outgoing.is_empty() {
            sink.flush().await?;
        }
    }
    let close = CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    };
    sink.send(Message::Close(Some(close))).await
}

fn message(channel: u32, bytes: &[u8], base64: bool) -> Message {
    let channel = u8::try_from(channel).unwrap_or(CLOSE_CHANNEL);
    if base64 {
        let mut text = char::from(channel.saturating_add(b'0')).to_string();
        STANDARD.encode_string(bytes, &mut text);
        return Message::text(text);
    }
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel);
    message.extend_from_slice(bytes);
    Message::Binary(message.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_what_clients_read() {
        assert_eq!(
            message(1, b"out", false),
            Message::Binary(Bytes::from_static(b"\x01out"))
        );
        assert_eq!(message(2, b"out", true), Message::text("2b3V0"));
        assert_eq!(
            parse(&Bytes::from_static(b"\0in"), false),
            Some((0, Bytes::from_static(b"in")))
        );
        assert_eq!(
            parse(&Bytes::from_static(b"0aW4="), true),
            Some((0, Bytes::from_static(b"in")))
        );
        assert_eq!(parse(&Bytes::from_static(b"0aW4"), true), None);
        assert_eq!(parse(&Bytes::new(), false), None);
    }
}
