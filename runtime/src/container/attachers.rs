//! The clients that are attached to a container: each sees what its first process prints from then on.
//!
//! A client that reads slowly slows the container down, as a reader of a pipe does: nothing is thrown away. But one that takes
//! nothing at all for [`PATIENCE`] is cut off and told so, because a forgotten terminal must not stop a service. The log
//! comes first and waits for no client.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::timeout;

use crate::{
    logs::Stream,
    streaming::flow::{self, Budget, Feed, Inlet},
};

/// Most streams of all clients of a container.
pub(super) const STREAMS: usize = 64;

/// How long is waited for a client whose queue is full.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The clients of one container.
#[derive(Debug, Default)]
pub(super) struct Attachers {
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    closed: bool,
    feeds: Vec<(Stream, Arc<Feed>)>,
}

impl Attachers {
    /// Adds a client for these streams. Each ends with the container, and breaks off when the client falls behind. `None`
    /// where there are too many.
    pub(super) fn attach<const N: usize>(&self, streams: [Option<Stream>; N]) -> Option<[Option<Inlet>; N]> {
        let budget = Budget::new();
        let mut list = self.locked();
        list.feeds.retain(|(_, feed)| !feed.is_closed());
        if list.feeds.len() + N > STREAMS {
            return None;
        }
        Some(streams.map(|stream| {
            let stream = stream?;
            let (feed, inlet) = flow::inward(&budget);
            if list.closed {
                feed.end();
            } else {
                list.feeds.push((stream, Arc::new(feed)));
            }
            Some(inlet)
        }))
    }

    /// Gives every client of a stream what was printed there.
    pub(super) async fn send(&self, stream: Stream, bytes: Bytes) {
        let feeds: Vec<Arc<Feed>> = {
            let list = self.locked();
            let of_stream = list.feeds.iter().filter(|(known, _)| *known == stream);
            of_stream.map(|(_, feed)| Arc::clone(feed)).collect()
        };
        if feeds.is_empty() {
            return;
        }
        let sending = feeds.iter().map(|feed| {
            let bytes = bytes.clone();
            async { matches!(timeout(PATIENCE, feed.send(bytes)).await, Ok(Ok(()))) }
        });
        let sent = join_all(sending).await;
        if sent.contains(&false) {
            let lost = feeds.iter().zip(sent).filter(|(_, sent)| !sent);
            let lost: Vec<_> = lost.map(|(feed, _)| feed).collect();
            self.locked()
                .feeds
                .retain(|(_, feed)| !lost.iter().any(|lost| Arc::ptr_eq(lost, feed)));
        }
    }

    /// Ends all clients' streams, now and from now on.
    pub(super) fn close(&self) {
        let mut list = self.locked();
        list.closed = true;
        for (_, feed) in list.feeds.drain(..) {
            feed.end();
        }
    }

    fn locked(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::flow::{Broken, STREAM_BYTES};

    fn both(attachers: &Attachers) -> (Inlet, Inlet) {
        let [out, err] = attachers
            .attach([Some(Stream::Stdout), Some(Stream::Stderr)])
            .unwrap();
        (out.unwrap(), err.unwrap())
    }

    #[tokio::test]
    async fn every_client_sees_what_comes_after_it() {
        let attachers = Attachers::default();
        attachers
            .send(Stream::Stdout, Bytes::from_static(b"before"))
            .await;
        let (mut out, mut err) = both(&attachers);
        let (mut other, _) = both(&attachers);
        attachers.send(Stream::Stdout, Bytes::from_static(b"out")).await;
        attachers.send(Stream::Stderr, Bytes::from_static(b"err")).await;
        attachers.close();
        assert_eq!(out.next().await.unwrap().unwrap(), "out");
        assert_eq!(out.next().await, Ok(None));
        assert_eq!(other.next().await.unwrap().unwrap(), "out");
        assert_eq!(err.next().await.unwrap().unwrap(), "err");
        let (mut late, _) = both(&attachers);
        assert_eq!(late.next().await, Ok(None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_off_and_holds_the_others_up_only_so_long() {
        let attachers = Attachers::default();
        let (mut stalled, _) = both(&attachers);
        let (mut reading, _) = both(&attachers);
        let begun = tokio::time::Instant::now();
        let writing = async {
            for _ in 0..40 {
                attachers
                    .send(Stream::Stdout, vec![7; STREAM_BYTES / 16].into())
                    .await;
            }
            attachers.close();
        };
        let taking = async {
            let mut taken = 0;
            while let Some(bytes) = reading.next().await.unwrap() {
                taken += bytes.len();
            }
            taken
        };
        let ((), taken) = tokio::join!(writing, taking);
        assert_eq!(taken, 40 * STREAM_BYTES / 16);
        assert!(
            (PATIENCE..2 * PATIENCE).contains(&begun.elapsed()),
            "{:?}",
            begun.elapsed()
        );
        let mut kept = 0;
        while let Ok(Some(bytes)) = stalled.next().await {
            kept += bytes.len();
        }
        assert_eq!(kept, STREAM_BYTES, "what it had not taken is still its own");
        assert_eq!(stalled.next().await, Err(Broken));
    }

    #[test]
    fn clients_are_counted_while_they_are_there() {
        let attachers = Attachers::default();
        let all: Vec<_> = (0..STREAMS / 2).map(|_| both(&attachers)).collect();
        assert!(attachers.attach([Some(Stream::Stdout)]).is_none());
        drop(all);
        assert!(attachers.attach([Some(Stream::Stdout)]).is_some());
    }
}
