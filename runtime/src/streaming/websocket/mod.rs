//! WebSocket, in the two ways that Kubernetes uses it: channels, told apart by the first byte of each message, and a tunnel
//! for SPDY.

mod channels;
mod tunnel;

use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::protocol::{Role, WebSocketConfig},
};

pub use channels::{ChannelProtocol, serve};
pub use tunnel::Tunnel;

use super::port_forward::Duplex;

/// Most bytes of a message. Clients send what they read at once, some 32 KiB; some send all of what they were given.
const MESSAGE_BYTES: usize = 4 << 20;

/// Bytes of each of a connection's buffers.
const BUFFER_BYTES: usize = 16 << 10;

/// A WebSocket on a connection that HTTP has upgraded.
async fn accepted<T: Duplex>(connection: T) -> WebSocketStream<T> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES))
        .max_frame_size(Some(MESSAGE_BYTES))
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        // Beyond the buffer, one message of ours and the answers to a client's pings.
        .max_write_buffer_size(16 * BUFFER_BYTES);
    WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await
}
