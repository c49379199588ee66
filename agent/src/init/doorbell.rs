//! Tells the host that the agent is ready: one connection, one message.

use std::{io, time::Duration};

use bulkhead_proto::agent::wire;
use tokio::time::timeout;

use super::{log, uevents::Uevents};
use crate::{
    error_text::with_causes,
    io::{
        connection::Connection,
        transport::{Transport, TransportError},
    },
    rpc::answers,
};

/// How long the host may take to close the connection that it has read.
const CLOSING: Duration = Duration::from_secs(10);

/// Rings. A host that does not answer is not asked again: it can still call.
///
/// Where the device of the transport is not there yet, the next one that the kernel announces may be it.
pub async fn ring(transport: &Transport, started_ns: u64) {
    let message = || wire::encode(&answers::hello(started_ns));
    match connect(transport).await {
        Ok(connection) => match connection.send_all(&message()).await {
            Ok(()) => {
                connection.shut_down_sending();
                tokio::spawn(linger(connection));
            }
            Err(error) => log::warning!("cannot tell the host that the agent is ready: {error}"),
        },
        Err(error) => log::warning!(
            "cannot tell the host that the agent is ready: {}",
            with_causes(&error)
        ),
    }
}

async fn connect(transport: &Transport) -> Result<Connection, TransportError> {
    match transport.connect_doorbell() {
        Err(error) if error.is_missing_device() => {}
        result => return result,
    }
    let uevents = Uevents::listen().map_err(TransportError::Connect)?;
    loop {
        match transport.connect_doorbell() {
            Err(error) if error.is_missing_device() => {}
            result => return result,
        }
        uevents.next().await.map_err(TransportError::Connect)?;
    }
}

/// Keeps the connection until the host has closed its side: closing it at once could overtake the message.
async fn linger(connection: Connection) {
    let closed = async {
        let mut part = [0; 64];
        while connection.receive(&mut part).await? > 0 {}
        io::Result::Ok(())
    };
    let _closed_or_given_up = timeout(CLOSING, closed).await;
}
