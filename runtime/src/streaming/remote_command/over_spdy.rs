//! A command's streams over SPDY: the client opens one for each, named by its header `streamType`.

use std::time::Duration;

use bytes::Bytes;
use tokio::{sync::watch, time::timeout};

use super::{Command, CommandIo, Version, Wanted, status, watch_sizes};
use crate::streaming::{
    flow::{Inlet, Outlet},
    spdy::{Incoming, Streams},
};

/// How long a client may take to open its streams.
pub const OPENING: Duration = Duration::from_secs(30);

/// Runs `command` with the streams that the client opens. Its end is told on the error stream.
pub async fn serve(mut streams: Streams, version: Version, wanted: Wanted, command: Box<dyn Command>) {
    let mut opened = Opened::default();
    let opening = timeout(OPENING, opened.collect(&mut streams, version, wanted));
    let outcome = match opening.await {
        Ok(Some(())) => {
            // Further streams are refused from now on.
            drop(streams);
            let (size, sizes) = watch::channel(None);
            let io = CommandIo {
                stdin: opened.stdin.map(|(_, inlet)| inlet),
                stdout: opened.stdout,
                stderr: opened.stderr,
                sizes,
            };
            let resizing = async {
                if let Some((_, resize)) = opened.resize {
                    watch_sizes(resize, size).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                outcome = command.run(io) => outcome,
                () = resizing => return,
            }
        }
        // The client has left.
        Ok(None) => return,
        Err(_) => Err(format!(
            "the client has not opened all of its streams within {} s",
            OPENING.as_secs()
        )),
    };
    if let Some(errors) = opened.errors {
        if let Some(text) = status(version, &outcome) {
            let _is_gone = errors.send(Bytes::from(text)).await;
        }
        errors.finish().await;
    }
}

/// The streams that are here. The way back of those that only come in is kept open until the end.
#[derive(Default)]
struct Opened {
    errors: Option<Outlet>,
    stdin: Option<(Outlet, Inlet)>,
    stdout: Option<Outlet>,
    stderr: Option<Outlet>,
    resize: Option<(Outlet, Inlet)>,
}

impl Opened {
    /// Waits until all that is wanted is here; `None` where the client leaves before.
    async fn collect(&mut self, streams: &mut Streams, version: Version, wanted: Wanted) -> Option<()> {
        let sized = wanted.tty && version >= Version::V3;
        while self.errors.is_none()
            || self.stdin.is_some() != wanted.stdin
            || self.stdout.is_some() != wanted.stdout
            || self.stderr.is_some() != wanted.stderr
            || self.resize.is_some() != sized
        {
            let Incoming {
                headers,
                inlet,
                outlet,
                ..
            } = streams.next().await?;
            match headers.get("streamtype") {
                Some("error") if self.errors.is_none() => self.errors = Some(outlet),
                Some("stdin") if wanted.stdin && self.stdin.is_none() => self.stdin = Some((outlet, inlet)),
                Some("stdout") if wanted.stdout && self.stdout.is_none() => self.stdout = Some(outlet),
                Some("stderr") if wanted.stderr && self.stderr.is_none() => self.stderr = Some(outlet),
                Some("resize") if sized && self.resize.is_none() => self.resize = Some((outlet, inlet)),
                _ => outlet.reset().await,
            }
        }
        Some(())
    }
}
