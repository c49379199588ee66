//! A guest with the agent in it, whatever it is made of.

use std::{fmt::Debug, future::Future, io, pin::Pin, sync::Arc, time::Duration};

use bulkhead_proto::agent::{CONTROL_PORT, HelloResponse, agent_client::AgentClient};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// How long any test may take. A machine on an emulated processor is some twenty times slower.
const PATIENCE: Duration = Duration::from_mins(5);

/// A running guest. Its end takes everything with it.
pub trait Guest: Debug + Send + Sync {
    /// Connects to a port of the guest.
    fn connect(&self, port: u32) -> Pin<Box<dyn Future<Output = io::Result<UnixStream>> + Send>>;

    /// What the agent told through the doorbell.
    fn hello(&self) -> HelloResponse;

    /// Waits until the guest has ended by itself, and says whether it did so in order.
    fn ended(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;

    /// What the agent and its kernel have logged.
    fn log(&self) -> String;

    /// Whether limits of control groups are in force.
    fn has_controllers(&self) -> bool;
}

/// A guest as tests share it.
pub type SharedGuest = Arc<dyn Guest>;

/// A control connection.
pub async fn client(guest: &SharedGuest) -> AgentClient<Channel> {
    let guest = guest.clone();
    let channel = Endpoint::from_static("http://guest")
        .connect_with_connector(tower::service_fn(move |_| {
            let connection = guest.connect(CONTROL_PORT);
            async move { connection.await.map(TokioIo::new) }
        }))
        .await
        .unwrap();
    AgentClient::new(channel)
}

/// Runs a future to its end.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Starts a guest and runs a test in it.
pub fn test<S, F>(start: fn() -> S, body: F)
where
    S: Future<Output = SharedGuest>,
    F: FnOnce(SharedGuest) -> Pin<Box<dyn Future<Output = ()>>>,
{
    assert!(
        rustix::process::geteuid().is_root(),
        "the agent's tests mount file systems and make namespaces: run them as root"
    );
    block_on(async {
        let guest = start().await;
        let shown = guest.clone();
        let result = tokio::time::timeout(PATIENCE, body(guest)).await;
        assert!(
            result.is_ok(),
            "the test hangs; the guest's log:\n{}",
            shown.log()
        );
    });
}
