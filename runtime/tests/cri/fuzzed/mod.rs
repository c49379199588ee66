//! Requests that nobody would send: of every call, with fields missing, contradictory, huge or of no meaning. The daemon answers
//! each, and its other pods and its memory are as before.

pub mod apart;
mod requests;

use std::{collections::BTreeMap, error::Error, sync::Mutex, time::Duration};

use bytes::Buf;
use futures_util::StreamExt;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

use apart::Apart;
use requests::{Made, Requests};

use crate::node::channel;

/// Another makes other requests.
const SEED: u64 = 6;

/// Requests of a round, rounds, and requests under way at the same time.
const REQUESTS: usize = 300;
const ROUNDS: usize = 5;
const TOGETHER: usize = 8;

/// Requests that are about the same pod: some of them remove it.
const OF_A_VICTIM: usize = 30;

/// How long a call may take; those that wait for something (a stop, a command, events) are given up then.
const CALL: Duration = Duration::from_millis(1500);

/// What the daemon may hold more after the last round than after the second, when what is made once is there: less than half of
/// it is seen, for its threads and the store's cache, and a single request may have more.
const GROWTH_BYTES: u64 = 3 << 19;

/// What its resident memory may be then, free parts of its heaps with it: that of so many of the largest requests that it takes.
const RESIDENT_BYTES: u64 = TOGETHER as u64 * (16 << 20);

/// Calls that must have been served and refused: else the requests are no test.
const GET_FAR: [&str; 8] = [
    "RunPodSandbox",
    "PodSandboxStatus",
    "CreateContainer",
    "ContainerStatus",
    "StopContainer",
    "ReopenContainerLog",
    "PortForward",
    "PodSandboxStats",
];

/// Sends a request, and gives the error if there is one in time.
async fn send(channel: &Channel, made: Made) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    let call = async {
        let ready = grpc.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = made.path.parse().unwrap();
        let mut answers = grpc
            .server_streaming(Request::new(made.bytes), path, Raw)
            .await?
            .into_inner();
        while answers.message().await?.is_some() {}
        Ok(())
    };
    let over = Err(Status::cancelled("it was given up by this test"));
    tokio::time::timeout(CALL, call).await.unwrap_or(over)
}

#[test]
fn whatever_is_asked_is_answered_and_other_pods_go_on() {
    let (mut node, start) = Apart::start();
    let mut requests = Requests::new(SEED, &start.run(), &start.create());
    requests.learn(start.texts.clone());
    println!("seed {SEED}");
    let client = tokio::runtime::Runtime::new().unwrap();
    let channel = channel(&client, start.socket.clone());
    let answers = Mutex::new(BTreeMap::<(String, String), usize>::new());

    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let numbers = round * REQUESTS..(round + 1) * REQUESTS;
        let made = numbers.map(|number| {
            if number % OF_A_VICTIM == 0 {
                let victim = node.victim();
                requests.aim(&victim.pod, &victim.container);
            }
            (number, requests.next(number))
        });
        let sent = futures_util::stream::iter(made).for_each_concurrent(TOGETHER, async |(number, made)| {
            let path = made.path.clone();
            let answer = send(&channel, made).await;
            let code = answer.as_ref().map_or_else(Status::code, |()| Code::Ok);
            if let Err(status) = answer {
                // Only what this side makes of a connection that broke has a source.
                assert!(
                    status.source().is_none() && !status.message().contains("ended unexpectedly"),
                    "request {number} of seed {SEED} to {path}: {status:?}"
                );
            }
            let mut answers = answers.lock().unwrap();
            *answers.entry((path, format!("{code:?}"))).or_default() += 1;
        });
        client.block_on(sent);
        let held = node.clean();
        println!("round {round}: {held:?}");
        rounds.push(held);
    }
    let answers = answers.into_inner().unwrap();
    println!("{answers:#?}");
    node.end();

    for call in GET_FAR {
        for code in ["Ok", "InvalidArgument"] {
            let key = (format!("/runtime.v1.RuntimeService/{call}"), code.to_owned());
            assert!(answers.contains_key(&key), "no request of seed {SEED} is {key:?}");
        }
    }
    let (warm, last) = (rounds[1], rounds[ROUNDS - 1]);
    assert_eq!(last.panics, 0);
    let grown = last.allocated.saturating_sub(warm.allocated);
    assert!(
        grown < GROWTH_BYTES,
        "seed {SEED}: the daemon has kept {grown} bytes: {rounds:?}"
    );
    assert!(last.resident < RESIDENT_BYTES, "seed {SEED}: {rounds:?}");
}

/// Bytes as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = usize;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    /// Of an answer, only its length is of interest.
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let length = buffer.remaining();
        buffer.advance(length);
        Ok(Some(length))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}
