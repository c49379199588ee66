//! SPDY/3.1, the server's side of it: as much as clients of CRI need.
//!
//! The kubelet and crictl speak it over a connection that HTTP/1.1 has upgraded, or in binary messages of a WebSocket. Their
//! library opens streams with a few headers, sends and receives data on them, half-closes and resets them, and pings. It
//! ignores flow control altogether, so windows are neither heeded nor given: what a stream does not take in time is kept to a
//! bound, and beyond it the connection is read no further.

mod dictionary;
pub mod frame;
pub mod headers;
mod session;

pub use dictionary::dictionary;
pub use session::{Incoming, SpdyError, Streams, serve};
