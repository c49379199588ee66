//! A blob on its way, over as many connections as it takes.
//!
//! Where a connection breaks, the next one is asked for the rest (`Range`, RFC 9110, 14.2); a host that sends all of it
//! again is listened to from where the last one stopped. The content is checked by who takes it, over the whole.

use bytes::{Buf, Bytes};
use reqwest::Response;

use super::super::ImageError;
use super::failure::{Failure, innermost, may_pass};
use super::patience::Meter;
use super::peer::{Answer, Ask, Peer};
use super::retry::{Backoff, Retry};
use super::session::Session;

/// What a connection must have brought for the next one to count as the first again. Less could go on for ever.
const PROGRESS_BYTES: u64 = 64 << 10;

/// A blob on its way.
#[derive(Debug)]
pub(in super::super) struct BlobStream<'a> {
    session: &'a Session,
    path: String,
    what: String,
    /// Bytes of the whole.
    length: u64,
    response: Response,
    /// The host that it comes from now.
    host: usize,
    /// Bytes that were handed out.
    received: u64,
    /// Bytes to come that were handed out before.
    repeated: u64,
    meter: Option<Meter>,
    backoff: Backoff,
    /// What had been received when this connection began.
    begun_at: u64,
}

impl<'a> BlobStream<'a> {
    pub(super) async fn open(
        session: &'a Session,
        path: String,
        length: u64,
        what: &str,
    ) -> Result<Self, ImageError> {
        let ask = Ask {
            length: Some(length),
            ..Ask::blob(&path, what)
        };
        let mut backoff = session.backoff();
        let (host, answer) = session.ask(&ask, 0, &mut backoff).await?;
        Ok(Self {
            session,
            what: what.to_owned(),
            length,
            response: answer.response,
            host,
            received: 0,
            repeated: 0,
            meter: session.peer(host).map(|peer| peer.patience.meter()),
            backoff: session.backoff(),
            begun_at: 0,
            path,
        })
    }

    /// The next bytes, or nothing at the end.
    pub(in super::super) async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        let session = self.session;
        loop {
            let Some(peer) = session.peer(self.host) else {
                return Ok(None);
            };
            match self.piece(peer).await {
                Ok(Some(bytes)) if bytes.is_empty() => {}
                Ok(Some(bytes)) => {
                    self.received += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Ok(None) => return Ok(None),
                Err(failure) if failure.retry == Retry::Never => return Err(*failure.error),
                Err(failure) => self.resume(*failure.error).await?,
            }
        }
    }

    /// What comes next on this connection that is new; nothing at the end of the blob.
    async fn piece(&mut self, peer: &Peer) -> Result<Option<Bytes>, Failure> {
        let waited = peer.patience.wait(self.response.chunk()).await;
        let silent = |_| Failure::lasting(peer.names.silent(&self.what, peer.patience));
        let (piece, waited) = waited.map_err(silent)?;
        let reason = match piece {
            Ok(Some(mut bytes)) => {
                if let Some(meter) = &mut self.meter {
                    let counted = meter.count(bytes.len(), waited);
                    counted.map_err(|trickle| Failure::lasting(peer.names.trickle(&self.what, trickle)))?;
                }
                let repeated = self.repeated.min(bytes.len() as u64);
                self.repeated -= repeated;
                bytes.advance(usize::try_from(repeated).unwrap_or(bytes.len()));
                return Ok(Some(bytes));
            }
            // However the connection ends when everything has come.
            _ if self.received >= self.length => return Ok(None),
            Ok(None) => format!("it ended after {} of {} bytes", self.received, self.length),
            Err(error) => format!(
                "{}; {} of {} bytes had come",
                innermost(&error),
                self.received,
                self.length
            ),
        };
        Err(peer.names.broken(&self.what, &reason))
    }

    /// Asks for the rest on a new connection, after `error` ended the last one.
    async fn resume(&mut self, mut error: ImageError) -> Result<(), ImageError> {
        if self.received - self.begun_at >= PROGRESS_BYTES {
            self.backoff = self.session.backoff();
        } else {
            // Another host, if there is one, may be of more use.
            self.host += 1;
        }
        self.begun_at = self.received;
        let ask = Ask {
            from: self.received,
            length: Some(self.length),
            ..Ask::blob(&self.path, &self.what)
        };
        while let Some(wait) = self.backoff.next(None) {
            tracing::info!(%error, ?wait, "a download is taken up again where it broke");
            tokio::time::sleep(wait).await;
            match self.session.ask(&ask, self.host, &mut self.backoff).await {
                Ok((host, Answer { response, from, .. })) => {
                    self.repeated = self.received - from;
                    self.response = response;
                    self.host = host;
                    self.meter = self.session.peer(host).map(|peer| peer.patience.meter());
                    return Ok(());
                }
                // What is started again just now comes back.
                Err(next) if may_pass(&next) => error = next,
                Err(next) => return Err(next),
            }
        }
        Err(error)
    }
}
