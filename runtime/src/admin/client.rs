//! Reaches the daemon on its socket, by CRI like any other client.

use std::{
    io,
    path::{Path, PathBuf},
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Most that is taken in one answer: as much as the kubelet takes.
pub(super) const ANSWER_BYTES: usize = 16 << 20;

/// Why the daemon's pods or images cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The daemon does not answer.
    #[error("bulkheadd does not answer on {socket}: {reason}; is it running, and is this its configuration?")]
    Away {
        /// Where it was looked for.
        socket: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The daemon answered with an error.
    #[error("bulkheadd: {0}")]
    Refused(String),
}

impl From<tonic::Status> for AdminError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(status.message().to_owned())
    }
}

pub(super) async fn connect(socket: &Path) -> Result<Channel, AdminError> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    // Asked directly first: its error is plainer than that of a channel.
    let away = |reason: String| AdminError::Away {
        socket: socket.to_owned(),
        reason,
    };
    UnixStream::connect(socket)
        .await
        .map_err(|error| away(error.to_string()))?;
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|error| away(error.to_string()))
}
