//! The end of a boot: the agent opens a connection to the host and says who it is.

use bulkhead_proto::agent::{DOORBELL_PORT, HelloResponse, wire};
use tokio::io::AsyncReadExt;

use super::{
    agent::{AgentError, check_hello},
    vsock::{Listener, VsockError},
};

/// Why the doorbell did not ring.
#[derive(Debug, thiserror::Error)]
pub enum DoorbellError {
    /// The virtual socket device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// What was sent is no hello.
    #[error("what the guest says when it is up cannot be understood: {0}")]
    Frame(#[from] wire::FrameError),
    /// The connection ended before the message did.
    #[error("the guest broke off its first message")]
    Broken,
    /// The agent is of another release.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Waits until the agent of the machine with this virtual socket device says hello. The machine need not run yet; the
/// caller bounds the time.
///
/// # Errors
///
/// [`DoorbellError`].
pub(super) async fn wait(socket: &std::path::Path) -> Result<HelloResponse, DoorbellError> {
    let mut listener = Listener::bind(socket, DOORBELL_PORT).await?;
    let mut stream = listener.accept().await.map_err(VsockError::Socket)?;
    let mut received = Vec::new();
    loop {
        if let Some((hello, _)) = wire::decode::<HelloResponse>(&received)? {
            return Ok(check_hello(&hello)?);
        }
        if stream.read_buf(&mut received).await.map_err(VsockError::Socket)? == 0 {
            return Err(DoorbellError::Broken);
        }
    }
}
