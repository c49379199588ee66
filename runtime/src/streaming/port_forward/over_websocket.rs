//! Port-forward over the channels of a WebSocket, as before it carried SPDY: two channels for each port of the request,
//! data and errors, and on each the port comes first.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio_tungstenite::tungstenite::Error;

use super::{Dial, Duplex, forward};
use crate::streaming::{
    activity::Activity,
    websocket::{self, ChannelProtocol},
};

/// Most ports of a request: a channel's number has eight bits, and the last ones are taken.
pub const PORTS: usize = 100;

/// Forwards one connection to each of `ports`, over a connection that HTTP has upgraded.
///
/// # Errors
///
/// What broke the connection.
pub async fn serve(
    connection: impl Duplex,
    activity: Activity,
    base64: bool,
    ports: Vec<u16>,
    dial: Arc<dyn Dial>,
) -> Result<(), Error> {
    let protocol = ChannelProtocol {
        base64,
        half_close: false,
        first: None,
    };
    let numbered: Vec<(u32, u16)> = (0u32..).step_by(2).zip(ports).collect();
    let writable: Vec<u32> = numbered.iter().map(|(channel, _)| *channel).collect();
    websocket::serve(connection, activity, protocol, writable, async |mut channels| {
        let mut forwarded = Vec::new();
        for (channel, port) in numbered {
            let Some(inlet) = channels.inlet(channel) else {
                continue;
            };
            let (outlet, errors) = (channels.outlet(channel), channels.outlet(channel + 1));
            let dial = Arc::clone(&dial);
            forwarded.push(async move {
                let name = Bytes::copy_from_slice(&port.to_le_bytes());
                if outlet.send(name.clone()).await.is_ok() && errors.send(name).await.is_ok() {
                    forward(dial.as_ref(), port, inlet, outlet, errors).await;
                }
            });
        }
        drop(channels);
        join_all(forwarded).await;
    })
    .await
}
