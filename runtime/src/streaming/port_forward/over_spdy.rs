//! Port-forward over SPDY: streams come in pairs that share a header `requestID`, each with a `port` and a `streamType`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{Dial, forward};
use crate::streaming::{
    flow::{Inlet, Outlet},
    spdy::{Incoming, Streams},
};

/// How long one stream of a pair waits for the other.
const PAIRING: Duration = Duration::from_secs(30);

/// Forwards until the client leaves.
pub async fn serve(mut streams: Streams, dial: Arc<dyn Dial>) {
    let mut pairs: HashMap<String, Half> = HashMap::new();
    let mut connections = JoinSet::new();
    loop {
        let oldest = pairs.values().map(|half| half.since).min();
        let waited = async {
            match oldest {
                Some(since) => sleep_until(since + PAIRING).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            stream = streams.next() => match stream {
                Some(stream) => {
                    if let Some(pair) = paired(&mut pairs, stream).await {
                        let dial = Arc::clone(&dial);
                        connections.spawn(async move {
                            let Pair { port, data: (inlet, outlet), errors } = pair;
                            forward(dial.as_ref(), port, inlet, outlet, errors).await;
                        });
                    }
                }
                None => return,
            },
            Some(_) = connections.join_next() => {}
            () = waited => give_up(&mut pairs).await,
        }
    }
}

/// A stream that waits for the other of its pair.
struct Half {
    since: Instant,
    port: u16,
    data: Option<(Inlet, Outlet)>,
    errors: Option<Outlet>,
}

struct Pair {
    port: u16,
    data: (Inlet, Outlet),
    errors: Outlet,
}

/// Finds the pair that a stream completes. One that belongs to none is broken off.
async fn paired(pairs: &mut HashMap<String, Half>, stream: Incoming) -> Option<Pair> {
    let Incoming {
        id,
        headers,
        inlet,
        outlet,
    } = stream;
    let port = headers.get("port").and_then(|port| port.parse().ok());
    let kind = headers.get("streamtype").unwrap_or_default();
    let (Some(port), "data" | "error") = (port.filter(|port| *port != 0), kind) else {
        outlet.reset().await;
        return None;
    };
    let request = match headers.get("requestid") {
        Some(id) => format!("r{id}"),
        // Very old clients open the error stream first, and the data stream next.
        None if kind == "data" => format!("s{}", id.saturating_sub(2)),
        None => format!("s{id}"),
    };
    let half = pairs.entry(request.clone()).or_insert_with(|| Half {
        since: Instant::now(),
        port,
        data: None,
        errors: None,
    });
    let fits = half.port == port
        && if kind == "data" {
            half.data.is_none()
        } else {
            half.errors.is_none()
        };
    if !fits {
        outlet.reset().await;
        return None;
    }
    if kind == "data" {
        half.data = Some((inlet, outlet));
    } else {
        // The client says nothing on it.
        half.errors = Some(outlet);
    }
    match pairs.remove(&request)? {
        Half {
            port,
            data: Some(data),
            errors: Some(errors),
            ..
        } => Some(Pair { port, data, errors }),
        half => {
            pairs.insert(request, half);
            None
        }
    }
}

/// Breaks off what has waited too long.
async fn give_up(pairs: &mut HashMap<String, Half>) {
    let now = Instant::now();
    let late = pairs.extract_if(|_, half| half.since + PAIRING <= now);
    for (_, half) in late.collect::<Vec<_>>() {
        if let Some(errors) = half.errors {
            let text = Bytes::from_static(b"the stream for the data of this connection has not been opened");
            let _is_gone = errors.send(text).await;
            errors.finish().await;
        }
        if let Some((_, outlet)) = half.data {
            outlet.reset().await;
        }
    }
}
