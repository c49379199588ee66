//! Connections to ports of a pod, for a client that listens elsewhere.
//!
//! Each has two streams: one for its bytes, and one on which the server says what went wrong.

mod over_spdy;
mod over_websocket;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::flow::{Broken, Inlet, Outlet};

pub use over_spdy::serve as over_spdy;
pub use over_websocket::{PORTS, serve as over_websocket};

/// The protocol over SPDY.
pub const SPDY_PROTOCOL: &str = "portforward.k8s.io";

/// Bytes that are taken from a port at once.
const PART_BYTES: usize = 16 << 10;

/// A connection to a port.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What connects to the ports of a pod.
pub trait Dial: Send + Sync {
    /// Connects to a port, or says in words why not.
    fn dial(&self, port: u16) -> BoxFuture<'_, Result<Box<dyn Duplex>, String>>;
}

/// Joins a client's streams to a port until both directions have ended, or one has broken.
async fn forward(dial: &dyn Dial, port: u16, inlet: Inlet, outlet: Outlet, errors: Outlet) {
    match dial.dial(port).await {
        Ok(connection) => join(connection, inlet, outlet).await,
        Err(reason) => {
            let text = format!("error forwarding port {port}: {reason}");
            let _is_gone = errors.send(Bytes::from(text)).await;
            outlet.finish().await;
        }
    }
    errors.finish().await;
}

async fn join(connection: Box<dyn Duplex>, mut inlet: Inlet, outlet: Outlet) {
    let (mut from, mut to) = tokio::io::split(connection);
    let inward = async {
        while let Some(bytes) = inlet.next().await? {
            to.write_all(&bytes).await.map_err(|_| Broken)?;
        }
        // What the pod still has to say comes all the same.
        to.shutdown().await.map_err(|_| Broken)
    };
    let outward = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PART_BYTES);
            match from.read_buf(&mut buffer).await {
                Ok(0) => break,
                Ok(_) => outlet.send(buffer.split().freeze()).await?,
                Err(_) => return Err(Broken),
            }
        }
        outlet.finish().await;
        Ok(())
    };
    let _broken = tokio::try_join!(inward, outward);
}

/// What reaches no port, for tests of others.
#[cfg(test)]
pub(super) fn nowhere() -> std::sync::Arc<dyn Dial> {
    struct Nowhere;
    impl Dial for Nowhere {
        fn dial(&self, _: u16) -> BoxFuture<'_, Result<Box<dyn Duplex>, String>> {
            Box::pin(async { Err("nowhere".to_owned()) })
        }
    }
    std::sync::Arc::new(Nowhere)
}
