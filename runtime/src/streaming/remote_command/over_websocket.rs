//! A command's streams as channels of a WebSocket.

use bytes::Bytes;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Error;

use super::{Command, CommandIo, Version, Wanted, status, watch_sizes};
use crate::streaming::{
    activity::Activity,
    port_forward::Duplex,
    websocket::{self, ChannelProtocol},
};

const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;
const ERROR: u32 = 3;
const RESIZE: u32 = 4;

/// Runs `command` with the channels of a connection that HTTP has upgraded. Its end is told on the error channel.
///
/// # Errors
///
/// What broke the connection.
pub async fn serve(
    connection: impl Duplex,
    activity: Activity,
    version: Version,
    base64: bool,
    wanted: Wanted,
    command: Box<dyn Command>,
) -> Result<(), Error> {
    let first = match wanted {
        Wanted { stdout: true, .. } => STDOUT,
        Wanted { stderr: true, .. } => STDERR,
        _ => ERROR,
    };
    let protocol = ChannelProtocol {
        base64,
        half_close: version >= Version::V5,
        first: Some(first),
    };
    let writable = [(STDIN, wanted.stdin), (RESIZE, wanted.tty)];
    let writable = writable
        .into_iter()
        .filter_map(|(channel, is)| is.then_some(channel));
    websocket::serve(connection, activity, protocol, writable, async |mut channels| {
        let errors = channels.outlet(ERROR);
        let (size, sizes) = watch::channel(None);
        let io = CommandIo {
            stdin: channels.inlet(STDIN),
            stdout: wanted.stdout.then(|| channels.outlet(STDOUT)),
            stderr: wanted.stderr.then(|| channels.outlet(STDERR)),
            sizes,
        };
        let resize = channels.inlet(RESIZE);
        drop(channels);
        let resizing = async {
            if let Some(resize) = resize {
                watch_sizes(resize, size).await;
            }
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = command.run(io) => outcome,
            () = resizing => return,
        };
        if let Some(text) = status(version, &outcome) {
            let _is_gone = errors.send(Bytes::from(text)).await;
        }
        errors.finish().await;
    })
    .await
}
