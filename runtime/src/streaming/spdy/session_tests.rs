//! Tests of one connection, with a client that is not Go's and is rude when it wants.

use tokio::{
    io::{DuplexStream, duplex},
    task::JoinHandle,
};

use super::{super::dictionary, *};
use crate::streaming::flow::STREAM_BYTES;

#[path = "../../../tests/cri/spdy.rs"]
mod client;

use client::{Event, Reader as ClientReader, Writer as ClientWriter, control};

type Client = (ClientWriter<DuplexStream>, ClientReader<DuplexStream>);

/// A client of a server that echoes each stream, behind a pipe of `pipe` bytes.
fn echo(pipe: usize) -> (Client, JoinHandle<Result<(), SpdyError>>) {
    serve_with(pipe, async |mut streams: Streams| {
        let mut echoes = tokio::task::JoinSet::new();
        while let Some(Incoming {
            mut inlet, outlet, ..
        }) = streams.next().await
        {
            echoes.spawn(async move {
                while let Some(bytes) = inlet.next().await? {
                    outlet.send(bytes).await?;
                }
                outlet.finish().await;
                Ok::<_, flow::Broken>(())
            });
        }
    })
}

fn serve_with<A>(
    pipe: usize,
    application: impl FnOnce(Streams) -> A + Send + 'static,
) -> (Client, JoinHandle<Result<(), SpdyError>>)
where
    A: Future<Output = ()> + Send,
{
    let (ours, theirs) = duplex(pipe);
    let served = tokio::spawn(async move { serve(ours, Activity::new(), application).await });
    (client::client(theirs, dictionary()), served)
}

#[tokio::test]
async fn streams_are_opened_echoed_and_half_closed() {
    let ((mut to, mut from), served) = echo(1 << 16);
    let one = to.open(&[("streamType", "data")]).await;
    let other = to.open(&[("streamType", "data"), ("port", "80")]).await;
    assert_eq!(from.next().await, Some(Event::Opened(one)));
    assert_eq!(from.next().await, Some(Event::Opened(other)));
    to.data(other, b"hello", false).await;
    assert_eq!(
        from.next().await,
        Some(Event::Data(other, b"hello".to_vec(), false))
    );
    to.data(other, b"", true).await;
    assert_eq!(from.next().await, Some(Event::Data(other, Vec::new(), true)));
    to.ping(7).await;
    assert_eq!(from.next().await, Some(Event::Ping(7)));
    drop((to, from));
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn frames_arrive_whole_however_they_are_cut() {
    let ((mut to, mut from), _served) = echo(1 << 16);
    let opening = to.opening(1, &client::header_block(&[("a", "b")]));
    let data = b"\0\0\0\x01\x01\0\0\x05hello".to_vec();
    let reading = async {
        let mut text = Vec::new();
        loop {
            match from.next().await.unwrap() {
                Event::Opened(1) => {}
                Event::Data(1, bytes, fin) => {
                    text.extend(bytes);
                    if fin {
                        return text;
                    }
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
    };
    let writing = async {
        for byte in [opening, data].concat() {
            to.raw(&[byte]).await;
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(tokio::join!(reading, writing).0, b"hello");
}

#[tokio::test]
async fn much_goes_both_ways_through_a_narrow_pipe() {
    const TOTAL: usize = 8 << 20;
    let ((mut to, mut from), _served) = echo(1 << 12);
    let stream = to.open(&[]).await;
    let writing = async {
        let part: Vec<u8> = (0..=250).cycle().take(100_000).collect();
        for sent in (0..TOTAL).step_by(part.len()) {
            let last = sent + part.len() >= TOTAL;
            to.data(stream, &part, last).await;
        }
    };
    let reading = async {
        let mut got = 0usize;
        while let Some(event) = from.next().await {
            if let Event::Data(_, bytes, fin) = event {
                for byte in &bytes {
                    assert_eq!(usize::from(*byte), got % 100_000 % 251);
                    got += 1;
                }
                if fin {
                    break;
                }
            }
        }
        got
    };
    let ((), got) = tokio::join!(writing, reading);
    assert_eq!(got, TOTAL.div_ceil(100_000) * 100_000);
}

/// A server that takes its streams up and never reads from them.
fn deaf() -> (Client, JoinHandle<Result<(), SpdyError>>) {
    serve_with(1 << 12, async |mut streams: Streams| {
        let mut kept = Vec::new();
        while let Some(stream) = streams.next().await {
            kept.push(stream);
        }
    })
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_the_connection_at_its_bound() {
    let ((mut to, mut from), _served) = deaf();
    let (stuck, other) = (to.open(&[]).await, to.open(&[]).await);
    for stream in [stuck, other] {
        assert_eq!(from.next().await, Some(Event::Opened(stream)));
    }
    let mut sent = 0;
    let pushing = async {
        loop {
            to.data(stuck, &[0; 4096], false).await;
            sent += 4096;
        }
    };
    let stalled = timeout(Duration::from_millis(300), pushing).await;
    assert!(stalled.is_err());
    assert!(
        (STREAM_BYTES..STREAM_BYTES + (64 << 10)).contains(&sent),
        "{sent}"
    );
}

#[tokio::test]
async fn a_stream_that_broke_off_or_is_not_wanted_holds_nobody_up() {
    let ((mut to, mut from), _served) = serve_with(1 << 12, async |mut streams: Streams| {
        let first = streams.next().await.unwrap();
        let second = streams.next().await.unwrap();
        drop(first.inlet);
        first.outlet.send(Bytes::from_static(b"go on")).await.unwrap();
        let mut inlet = second.inlet;
        assert_eq!(inlet.next().await, Err(flow::Broken), "it was reset");
        second.outlet.reset().await;
        first.outlet.finish().await;
    });
    let (first, second) = (to.open(&[]).await, to.open(&[]).await);
    let pushing = async {
        for _ in 0..200 {
            to.data(first, &[0; 4096], false).await;
        }
        to.reset(second).await;
    };
    let reading = async {
        let mut events = Vec::new();
        while let Some(event) = from.next().await {
            events.push(event);
        }
        events
    };
    let ((), events) = tokio::join!(pushing, reading);
    assert_eq!(
        events,
        [
            Event::Opened(first),
            Event::Opened(second),
            Event::Data(first, b"go on".to_vec(), false),
            Event::Reset(second, ResetStatus::Cancel as u32),
            Event::Data(first, Vec::new(), true),
        ]
    );
}

#[tokio::test]
async fn thousands_of_streams_are_refused_beyond_the_bound() {
    let ((mut to, mut from), _served) = deaf();
    let opening = async {
        for _ in 0..STREAMS + 500 {
            to.open(&[("streamType", "data")]).await;
        }
        to.ping(9).await;
    };
    let counting = async {
        let (mut opened, mut refused) = (0, 0);
        loop {
            match from.next().await.unwrap() {
                Event::Opened(_) => opened += 1,
                Event::Reset(_, 3) => refused += 1,
                Event::Ping(9) => return (opened, refused),
                other => panic!("unexpected: {other:?}"),
            }
        }
    };
    let ((), counted) = tokio::join!(opening, counting);
    assert_eq!(counted, (STREAMS, 500));
}

#[tokio::test]
async fn streams_that_have_ended_here_make_room() {
    let ((mut to, mut from), _served) = serve_with(1 << 16, async |mut streams: Streams| {
        while let Some(stream) = streams.next().await {
            stream.outlet.reset().await;
        }
    });
    for _ in 0..3 * STREAMS {
        let stream = to.open(&[]).await;
        assert_eq!(from.next().await, Some(Event::Opened(stream)));
        assert_eq!(from.next().await, Some(Event::Reset(stream, 5)));
    }
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection_and_is_told() {
    let bomb = client::header_block(&[("a", &"0".repeat(1 << 20))]);
    let openings: [(&str, Vec<Vec<u8>>); 8] = [
        ("another version", vec![vec![0x80, 2, 0, 1, 0, 0, 0, 0]]),
        (
            "a long control frame",
            vec![vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]],
        ),
        ("an even stream", vec![b"even".to_vec()]),
        ("a stream twice", vec![b"once".to_vec(), b"once".to_vec()]),
        ("a bomb", vec![bomb]),
        (
            "headers that are none",
            vec![control(1, 0, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xff, 0xff])],
        ),
        ("a cut frame", vec![control(6, 0, &[0, 0])]),
        (
            "more headers that are none",
            vec![control(8, 0, &[0, 0, 0, 1, 0x78])],
        ),
    ];
    for (what, frames) in openings {
        let ((mut to, mut from), served) = echo(1 << 16);
        for frame in frames {
            let frame = match frame.as_slice() {
                b"even" => to.opening(2, &client::header_block(&[])),
                b"once" => to.opening(1, &client::header_block(&[])),
                [0x80, ..] => frame,
                block => to.opening(1, block),
            };
            to.raw(&frame).await;
        }
        let ended = async {
            let mut last = None;
            while let Some(event) = from.next().await {
                last = Some(event);
            }
            last
        };
        let last = timeout(Duration::from_secs(10), ended).await.expect(what);
        assert_eq!(last, Some(Event::GoAway), "{what}");
        let error = served.await.unwrap().expect_err(what);
        assert!(matches!(error, SpdyError::Protocol(_)), "{what}: {error}");
    }
}

#[tokio::test]
async fn what_means_nothing_here_is_tolerated() {
    let ((mut to, mut from), _served) = echo(1 << 16);
    to.raw(&control(4, 0, &[0, 0, 0, 0])).await;
    to.raw(&control(9, 0, &[0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff]))
        .await;
    to.raw(&control(9, 0, &[0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff]))
        .await;
    to.raw(&control(7, 0, &[0; 8])).await;
    to.raw(&control(99, 7, &[1, 2, 3])).await;
    to.data(77, b"for nobody", true).await;
    to.reset(78).await;
    to.ping(2).await;
    to.ping(3).await;
    assert_eq!(
        from.next().await,
        Some(Event::Ping(3)),
        "an even one is an answer, not a question"
    );
}

#[tokio::test]
async fn a_client_that_pings_and_does_not_read_is_not_read_for_ever() {
    let ((mut to, _from), _served) = echo(1 << 12);
    let pinging = async {
        for id in 0..1_000_000u32 {
            to.ping(2 * id + 1).await;
        }
    };
    assert!(timeout(Duration::from_millis(500), pinging).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_last_words_reach_a_client_that_still_talks() {
    let ((mut to, mut from), served) = serve_with(1 << 12, async |mut streams: Streams| {
        let stream = streams.next().await.unwrap();
        stream.outlet.send(Bytes::from_static(b"the end")).await.unwrap();
        stream.outlet.finish().await;
    });
    let stream = to.open(&[]).await;
    let talking = async {
        while timeout(Duration::from_secs(1), to.data(stream, &[0; 1024], false))
            .await
            .is_ok()
        {}
    };
    let reading = async {
        let mut events = Vec::new();
        while let Some(event) = from.next().await {
            events.push(event);
        }
        events
    };
    tokio::select! {
        events = reading => assert_eq!(
            events,
            [
                Event::Opened(stream),
                Event::Data(stream, b"the end".to_vec(), false),
                Event::Data(stream, Vec::new(), true),
            ]
        ),
        () = talking => panic!("the server went deaf before its last words were read"),
    }
    served.await.unwrap().unwrap();
}
