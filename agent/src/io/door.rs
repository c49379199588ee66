//! Takes stream connections: reads the header of each, answers it and sends it on its way.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::agent::{StreamHeader, StreamKind, StreamReply, limits::FRAME_BYTES, wire};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    connection::{Connection, Listener},
    output::Attachment,
    port::{self, Ports},
    registry::{Registry, Route},
};
use crate::init::log;

/// Most connections whose header is being read.
const GREETING_CONNECTIONS: usize = 64;

/// How long a header may take.
const GREETING_TIME: Duration = Duration::from_secs(10);

/// Pause after a connection could not be taken for want of descriptors or memory, which others must give back first.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Serves `listener` for ever.
pub async fn serve(listener: Listener, registry: Registry) {
    let ports = Ports::default();
    let greeting = Arc::new(Semaphore::new(GREETING_CONNECTIONS));
    loop {
        let Ok(permit) = greeting.clone().acquire_owned().await else {
            return;
        };
        let connection = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                log::error!("cannot take a stream connection: {error}");
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
                continue;
            }
        };
        let (registry, ports) = (registry.clone(), ports.clone());
        tokio::spawn(async move {
            let header = timeout(GREETING_TIME, read_header(&connection)).await;
            match header {
                Ok(Ok((header, early))) => welcome(&registry, &ports, connection, &header, early).await,
                Ok(Err(refusal)) => refuse(&connection, refusal).await,
                Err(_) => {
                    let refusal = format!("no header came within {} s", GREETING_TIME.as_secs());
                    refuse(&connection, refusal).await;
                }
            }
            drop(permit);
        });
    }
}

async fn welcome(
    registry: &Registry,
    ports: &Ports,
    connection: Connection,
    header: &StreamHeader,
    early: Vec<u8>,
) {
    if header.kind() == StreamKind::Port {
        // It may take its time, and as long as it lives.
        tokio::spawn(forward(ports.clone(), connection, header.port, early));
        return;
    }
    let attachment = |connection, answered| Attachment {
        connection,
        offset: header.offset,
        early,
        answered,
    };
    match registry.route(header) {
        Ok(Route::Stream(stream)) => {
            let _process_was_forgotten = stream.send(attachment(connection, false)).await;
        }
        Ok(Route::Park(name, kind)) => {
            if answer(&connection, String::new()).await.is_ok() {
                registry.park(name, kind, attachment(connection, true));
            }
        }
        Err(refusal) => refuse(&connection, refusal.to_string()).await,
    }
}

async fn forward(ports: Ports, connection: Connection, port: u32, early: Vec<u8>) {
    match ports.connect(port).await {
        Ok(port) => {
            if answer(&connection, String::new()).await.is_ok() {
                port::join(connection, port, early).await;
            }
        }
        // A client's mistake, and no news for the log.
        Err(refusal) => {
            if answer(&connection, refusal).await.is_ok() {
                connection.shut_down_sending();
            }
        }
    }
}

/// Reads the header, and gives what came right behind it from a host that did not wait for the answer.
async fn read_header(connection: &Connection) -> Result<(StreamHeader, Vec<u8>), String> {
    let mut bytes = Vec::new();
    loop {
        match wire::decode::<StreamHeader>(&bytes) {
            Ok(Some((header, length))) => return Ok((header, bytes.split_off(length))),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
        let mut part = [0; 512];
        match connection.receive(&mut part).await {
            Ok(0) => return Err("the header is cut off".to_owned()),
            Ok(length) => bytes.extend(part.iter().take(length)),
            Err(error) => return Err(format!("the header cannot be read: {error}")),
        }
        if bytes.len() > 2 * FRAME_BYTES {
            return Err(wire::FrameError::TooLong.to_string());
        }
    }
}

async fn refuse(connection: &Connection, refusal: String) {
    log::warning!("a stream connection is refused: {refusal}");
    if answer(connection, refusal).await.is_ok() {
        connection.shut_down_sending();
    }
}

async fn answer(connection: &Connection, refusal: String) -> std::io::Result<()> {
    let reply = wire::encode(&StreamReply { refusal });
    match timeout(GREETING_TIME, connection.send_all(&reply)).await {
        Ok(result) => result,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}
