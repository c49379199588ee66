//! The bytes of one stream, each way, between a client's connection and what it is joined to.
//!
//! A connection carries several streams, and its client is not made to wait for each alone (see [`super::spdy`]). So what came
//! and is not yet taken is kept, to a bound for each stream and one for the connection; beyond it the connection is read no
//! further. The other way a queue of a few chunks leads to the connection's writer.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Most bytes that wait in one stream.
pub const STREAM_BYTES: usize = 256 << 10;

/// Most bytes that wait in all streams of a connection.
pub const CONNECTION_BYTES: usize = 1 << 20;

/// What a chunk counts at least: keeping one takes more than its bytes.
const LEAST_COST: usize = 256;

/// Chunks that wait for a connection's writer.
const OUTGOING: usize = 4;

/// The other side of a stream is gone, or has broken it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream was broken off")]
pub struct Broken;

/// What may wait in all streams of one connection.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Semaphore>);

impl Budget {
    /// That of one connection, with [`CONNECTION_BYTES`].
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(CONNECTION_BYTES)))
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

/// A way in: one end to feed, one to take from.
pub fn inward(budget: &Budget) -> (Feed, Inlet) {
    let (sender, chunks) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(STREAM_BYTES));
    let feed = Feed {
        chunks: sender,
        room,
        budget: budget.clone(),
    };
    (feed, Inlet { chunks, ended: false })
}

/// The way out of a whole connection: what its streams have to say, for its writer.
pub fn outward() -> (mpsc::Sender<Outgoing>, mpsc::Receiver<Outgoing>) {
    mpsc::channel(OUTGOING)
}

#[derive(Debug)]
enum Chunk {
    Bytes(Bytes, [OwnedSemaphorePermit; 2]),
    End,
}

/// Where the bytes of a stream are put as they come. Dropped without [`Feed::end`], it breaks the stream off.
#[derive(Debug)]
pub struct Feed {
    chunks: mpsc::UnboundedSender<Chunk>,
    room: Arc<Semaphore>,
    budget: Budget,
}

impl Feed {
    /// Adds bytes, at most [`STREAM_BYTES`], when there is room for them.
    ///
    /// # Errors
    ///
    /// [`Broken`] when nobody takes them any more.
    pub async fn send(&self, bytes: Bytes) -> Result<(), Broken> {
        let cost = u32::try_from(bytes.len().clamp(LEAST_COST, STREAM_BYTES)).unwrap_or(u32::MAX);
        let room = async {
            let of_stream = Arc::clone(&self.room).acquire_many_owned(cost).await;
            let of_connection = Arc::clone(&self.budget.0).acquire_many_owned(cost).await;
            Ok([of_stream.map_err(|_| Broken)?, of_connection.map_err(|_| Broken)?])
        };
        let permits = tokio::select! {
            biased;
            () = self.chunks.closed() => return Err(Broken),
            permits = room => permits?,
        };
        self.chunks.send(Chunk::Bytes(bytes, permits)).map_err(|_| Broken)
    }

    /// Says that no more will come.
    pub fn end(&self) {
        let _nobody_cares = self.chunks.send(Chunk::End);
    }

    /// Whether nobody takes from it any more.
    pub fn is_closed(&self) -> bool {
        self.chunks.is_closed()
    }
}

/// Where the bytes of a stream are taken from. Dropped, what comes further is let go.
#[derive(Debug)]
pub struct Inlet {
    chunks: mpsc::UnboundedReceiver<Chunk>,
    ended: bool,
}

impl Inlet {
    /// The next bytes, never empty ones; `None` at the end. May be dropped without losing any.
    ///
    /// # Errors
    ///
    /// [`Broken`] when it ends without having been ended.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        if self.ended {
            return Ok(None);
        }
        match self.chunks.recv().await {
            Some(Chunk::Bytes(bytes, _room)) => Ok(Some(bytes)),
            Some(Chunk::End) => {
                self.ended = true;
                Ok(None)
            }
            None => Err(Broken),
        }
    }
}

/// What one stream has to say to the client.
#[derive(Debug)]
pub struct Outgoing {
    /// Number of the stream, or of the channel.
    pub stream: u32,
    /// What it says.
    pub message: Message,
}

/// What a stream can say.
#[derive(Debug)]
pub enum Message {
    /// Some bytes.
    Bytes(Bytes),
    /// That no more come.
    End,
    /// That it is broken off.
    Reset,
}

/// Where the bytes for a client are put.
#[derive(Debug)]
pub struct Outlet {
    stream: u32,
    outgoing: mpsc::Sender<Outgoing>,
}

impl Outlet {
    /// The way out of one stream of a connection.
    pub fn new(stream: u32, outgoing: mpsc::Sender<Outgoing>) -> Self {
        Self { stream, outgoing }
    }

    /// Sends bytes as soon as the connection takes them.
    ///
    /// # Errors
    ///
    /// [`Broken`] when the connection is gone.
    pub async fn send(&self, bytes: Bytes) -> Result<(), Broken> {
        self.say(Message::Bytes(bytes)).await
    }

    /// Says that no more come.
    pub async fn finish(self) {
        let _is_gone = self.say(Message::End).await;
    }

    /// Breaks the stream off.
    pub async fn reset(self) {
        let _is_gone = self.say(Message::Reset).await;
    }

    async fn say(&self, message: Message) -> Result<(), Broken> {
        let stream = self.stream;
        self.outgoing
            .send(Outgoing { stream, message })
            .await
            .map_err(|_| Broken)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn is_stuck(feed: &Feed, length: usize) -> bool {
        let sending = feed.send(vec![0; length].into());
        tokio::time::timeout(Duration::from_millis(20), sending)
            .await
            .is_err()
    }

    #[tokio::test]
    async fn a_stream_takes_its_bound_and_goes_on_when_something_is_taken() {
        let (feed, mut inlet) = inward(&Budget::new());
        feed.send(vec![7; STREAM_BYTES - 300].into()).await.unwrap();
        assert!(is_stuck(&feed, 301).await);
        feed.send(vec![8; 300].into()).await.unwrap();
        assert_eq!(inlet.next().await.unwrap().unwrap().len(), STREAM_BYTES - 300);
        feed.send(vec![9; 301].into()).await.unwrap();
        feed.end();
        assert_eq!(inlet.next().await.unwrap().unwrap(), vec![8; 300]);
        assert_eq!(inlet.next().await.unwrap().unwrap(), vec![9; 301]);
        assert_eq!(inlet.next().await, Ok(None));
        assert_eq!(inlet.next().await, Ok(None));
    }

    #[tokio::test]
    async fn a_connection_takes_less_than_all_of_its_streams() {
        let budget = Budget::new();
        let streams: Vec<_> = (0..5).map(|_| inward(&budget)).collect();
        for (feed, _) in &streams[..4] {
            feed.send(vec![0; STREAM_BYTES].into()).await.unwrap();
        }
        assert!(is_stuck(&streams[4].0, 1).await);
    }

    #[tokio::test]
    async fn many_small_chunks_count_for_what_they_take() {
        let (feed, _inlet) = inward(&Budget::new());
        let mut taken = 0;
        while !is_stuck(&feed, 1).await {
            taken += 1;
        }
        assert_eq!(taken, STREAM_BYTES / LEAST_COST);
    }

    #[tokio::test]
    async fn nobody_waits_for_whoever_is_gone() {
        let (feed, inlet) = inward(&Budget::new());
        feed.send(vec![0; STREAM_BYTES].into()).await.unwrap();
        let (sent, ()) = tokio::join!(feed.send(vec![0; 1].into()), async { drop(inlet) });
        assert_eq!(sent, Err(Broken));
        assert!(feed.is_closed());

        let (feed, mut inlet) = inward(&Budget::new());
        feed.send(vec![1].into()).await.unwrap();
        drop(feed);
        assert_eq!(inlet.next().await.unwrap().unwrap(), vec![1]);
        assert_eq!(inlet.next().await, Err(Broken), "it did not end in order");
    }
}
