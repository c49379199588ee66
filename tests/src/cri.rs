//! A gRPC client of CRI, for what `crictl` cannot express: exact bytes, exact codes, malformed requests.

use std::{fmt::Debug, future::Future, path::PathBuf, sync::LazyLock};

use bulkhead_proto::cri::{
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::DEADLINE;

/// Largest answer taken: an ExecSync with both streams at their bound.
const MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// The two services of one daemon, for callers without an async runtime.
#[derive(Clone, Debug)]
pub struct Cri {
    channel: Channel,
}

impl Cri {
    /// A client of the daemon that listens, or will listen, on `endpoint` (`unix:///…`). It connects with the first call,
    /// and again when the daemon was restarted.
    pub fn new(endpoint: &str) -> Self {
        let path = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let _context = runtime().enter();
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Self { channel }
    }

    /// One call of RuntimeService: `cri.runtime(async |c| c.version(request).await)`.
    pub fn runtime<T>(
        &self,
        call: impl AsyncFnOnce(&mut RuntimeServiceClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let mut client =
            RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
        wait_for(call(&mut client))
    }

    /// One call of ImageService.
    pub fn image<T>(
        &self,
        call: impl AsyncFnOnce(&mut ImageServiceClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let mut client =
            ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
        wait_for(call(&mut client))
    }
}

/// A call that does not return is a failure, not a hang.
fn wait_for<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    runtime()
        .block_on(async { tokio::time::timeout(DEADLINE * 2, call).await })
        .unwrap_or_else(|_| panic!("a CRI call did not return within {} s", DEADLINE.as_secs() * 2))
        .map(Response::into_inner)
}

fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a tokio runtime starts")
    });
    &RUNTIME
}

/// Asserts that a call was refused with `code` and one clear message: it holds each of `words` (in any case), is not the
/// debugging form of an error, and is no novel.
#[track_caller]
pub fn assert_refused<T: Debug>(result: Result<T, Status>, code: Code, words: &[&str]) -> String {
    let status = match result {
        Ok(answer) => panic!("expected {code:?} with {words:?}, but the call succeeded: {answer:?}"),
        Err(status) => status,
    };
    let message = status.message().to_owned();
    assert_eq!(status.code(), code, "code of: {message}");
    for word in words {
        assert!(
            message.to_lowercase().contains(&word.to_lowercase()),
            "the message does not say {word:?}: {message}"
        );
    }
    for debris in ["Os {", "Error {", "Err(", "Custom {", "Some(", "panicked"] {
        assert!(
            !message.contains(debris),
            "the message shows its insides ({debris}): {message}"
        );
    }
    assert!(
        message.len() < 2000,
        "the message has {} bytes: {message}",
        message.len()
    );
    message
}
