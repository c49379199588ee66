//! Tells the host that the agent is ready: one connection, one message.

use std::{io, time::Duration};

use bulkhead_proto::agent::wire;
use tokio::time::timeout;

use super::uevents::Uevents;
use crate::{
    io::{
        connection::Connection,
        transport::{Transport, TransportError},
    },
    rpc::answers,
};

/// How long the host may take to close the connection that it has read.
const CLOSING: Duration = Duration::from_secs(10);

/// Rings. A host where nobody listens is not asked again: it can still call.
///
/// Where the device of the transport is not there yet, the next one that the kernel announces may be it.
///
/// # Errors
///
/// [`TransportError`], which is to be logged once there is a log.
pub async fn ring(transport: &Transport, started_ns: u64) -> Result<(), TransportError> {
    let connection = connect(transport).await?;
    let message = wire::encode(&answers::hello(started_ns));
    let sent = connection.send_all(&message).await;
    sent.map_err(TransportError::Ring)?;
    connection.shut_down_sending();
    tokio::spawn(linger(connection));
    Ok(())
}

async fn connect(transport: &Transport) -> Result<Connection, TransportError> {
    let mut uevents = None;
    loop {
        match transport.connect_doorbell() {
            // The guest's clock goes on while its machine is held up, and Linux gives up a connection after two seconds of it,
            // though the answer may be there. There is no other way to the host, so there is nothing else to be done.
            Err(error) if error.is_timeout() => {}
            Err(error) if error.is_missing_device() => match &uevents {
                None => uevents = Some(Uevents::listen().map_err(TransportError::Ring)?),
                Some(uevents) => uevents.next().await.map_err(TransportError::Ring)?,
            },
            result => return result,
        }
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
