//! A guest with the agent in it, whatever it is made of.

use std::{
    fmt::Debug,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_proto::agent::{CONTROL_PORT, HelloResponse, agent_client::AgentClient};
use hyper_util::rt::TokioIo;
use tokio::{
    net::UnixStream,
    task::{LocalSet, spawn_local},
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};

use crate::host;

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

    /// Whether it is a machine of its own: slow, and with limits of control groups in force.
    fn is_machine(&self) -> bool;

    /// Whether the caller is the first to ask, and so has to configure the pod.
    fn is_to_be_configured(&self) -> bool;
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

/// What a test does with its guest.
pub type Body = fn(SharedGuest) -> Pin<Box<dyn Future<Output = ()>>>;

/// Starts one guest and runs tests in it, one after the other, with nothing left behind in between.
pub fn test_one_after_another<S>(start: fn() -> S, tests: &[(&str, Body)])
where
    S: Future<Output = SharedGuest>,
{
    let local = LocalSet::new();
    block_on(local.run_until(async {
        let guest = start().await;
        let mut failed = Vec::new();
        for (name, body) in tests {
            let begun = Instant::now();
            let test = spawn_local(body(guest.clone()));
            let passed = matches!(timeout(PATIENCE, test).await, Ok(Ok(())));
            let verdict = if passed { "ok" } else { "FAILED" };
            println!("{name} ... {verdict} ({:.1} s)", begun.elapsed().as_secs_f64());
            if !passed {
                failed.push(name);
            }
            host::remove_all(&guest).await;
        }
        assert!(
            failed.is_empty(),
            "failed: {failed:?}; the guest's log:\n{}",
            guest.log()
        );
    }));
}

/// Starts a guest and runs a test in it.
pub fn test<S>(start: fn() -> S, body: Body)
where
    S: Future<Output = SharedGuest>,
{
    assert!(
        rustix::process::geteuid().is_root(),
        "the agent's tests mount file systems and make namespaces: run them as root"
    );
    block_on(async {
        let guest = start().await;
        let shown = guest.clone();
        let result = timeout(PATIENCE, body(guest)).await;
        assert!(
            result.is_ok(),
            "the test hangs; the guest's log:\n{}",
            shown.log()
        );
    });
}
