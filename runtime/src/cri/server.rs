//! Serves CRI until the daemon is asked to end.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use bulkhead_proto::cri::{
    image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer,
};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, server::NamedService, transport::Server};
use tower::Service;

use super::{calls, images::ImageHandlers, listener, runtime::RuntimeHandlers};
use crate::daemon::Daemon;

pub use super::listener::ListenError;

/// Largest request, in bytes: what clients of CRI take themselves.
const REQUEST_BYTES: usize = 16 << 20;

/// Largest answer: two streams of ExecSync, or a very long list. It is the client that says how much it takes.
const ANSWER_BYTES: usize = 64 << 20;

/// How long calls may go on when the daemon is asked to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why CRI is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The server.
    #[error("CRI cannot be served: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// How long clients may take to read that their calls are broken off.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Opens the socket and serves until `end`. `ready` is called when clients can connect. Then all that ends with the daemon is
/// ended: calls, pulls, sessions and their commands. Pods go on.
///
/// # Errors
///
/// [`ServeError`].
pub async fn serve(
    daemon: Arc<Daemon>,
    ready: impl FnOnce(),
    end: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let served = serve_calls(&daemon, ready, end).await;
    // Also where serving has failed: giving leases back must not take layers from machines that go on.
    daemon.images.close().await;
    // Behind the calls: what is left to do of theirs is waited for here.
    daemon.streaming.close().await;
    served
}

async fn serve_calls(
    daemon: &Arc<Daemon>,
    ready: impl FnOnce(),
    end: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let path = daemon.config.cri.socket.clone();
    let listener = listener::listen(&path)?;
    let runtime = RuntimeServiceServer::new(RuntimeHandlers::new(Arc::clone(daemon)))
        .max_decoding_message_size(REQUEST_BYTES)
        .max_encoding_message_size(ANSWER_BYTES);
    let images = ImageServiceServer::new(ImageHandlers::new(Arc::clone(daemon)))
        .max_decoding_message_size(REQUEST_BYTES)
        .max_encoding_message_size(ANSWER_BYTES);
    tracing::info!(socket = %path.display(), pods = daemon.pods.all().len(), "serving CRI");
    ready();

    let (leave, leaving) = tokio::sync::oneshot::channel::<()>();
    let incoming = UnixListenerStream::new(listener);
    let leaving = async {
        let _ = leaving.await;
    };
    let break_off = CancellationToken::new();
    let service = calls::around(
        route(runtime, images),
        Arc::clone(&daemon.metrics),
        break_off.clone(),
    );
    let server = Server::builder().serve_with_incoming_shutdown(service, incoming, leaving);
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => return Ok(ended?),
        () = end => {}
    }
    let _ = std::fs::remove_file(&path);
    let _ = leave.send(());
    daemon.events.close();
    // Pulls may take for ever: they are given up at once, so that their clients still get an answer.
    let (ended, ()) = tokio::join!(tokio::time::timeout(FAREWELL, &mut server), daemon.images.close());
    if ended.is_err() {
        tracing::info!("calls that were under way are broken off");
        break_off.cancel();
        let _ended_or_not = tokio::time::timeout(LAST_WORDS, server).await;
    }
    Ok(())
}

/// Gives each request to the service that its path begins with.
fn route(
    runtime: RuntimeServiceServer<RuntimeHandlers>,
    images: ImageServiceServer<ImageHandlers>,
) -> impl Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ 'static {
    tower::service_fn(move |request: http::Request<Body>| {
        let (mut runtime, mut images) = (runtime.clone(), images.clone());
        async move {
            let service = request.uri().path().split('/').nth(1).unwrap_or_default();
            match service {
                <RuntimeServiceServer<RuntimeHandlers> as NamedService>::NAME => runtime.call(request).await,
                <ImageServiceServer<ImageHandlers> as NamedService>::NAME => images.call(request).await,
                other => {
                    let message = format!("there is no service {other:?} here, only CRI v1 (runtime.v1)");
                    Ok(tonic::Status::unimplemented(message).into_http())
                }
            }
        }
    })
}
