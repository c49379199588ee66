//! `GET /metrics` over HTTP, for Prometheus.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

use super::metrics::Metrics;

/// Clients at the same time; more wait. Prometheus is one, and one that hangs must not stop it.
const CONNECTIONS: usize = 16;

/// How long a client may take for a request, and how long it may stay.
const HEADER_TIME: Duration = Duration::from_secs(10);
const CONNECTION_TIME: Duration = Duration::from_mins(5);

/// How long is waited after a connection could not be taken for want of descriptors.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// What `openmetrics-text` of the version that is written is called.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// There is no endpoint.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address} for Prometheus: {source}; set `metrics.address` to an address of this host and a free port"
)]
pub struct EndpointError {
    address: SocketAddr,
    source: io::Error,
}

/// The endpoint, listening.
#[derive(Debug)]
pub struct MetricsEndpoint {
    listener: TcpListener,
    metrics: Arc<Metrics>,
}

impl MetricsEndpoint {
    /// Listens on `address`.
    ///
    /// # Errors
    ///
    /// [`EndpointError`] when it is not this host's, or taken.
    pub async fn open(address: SocketAddr, metrics: Arc<Metrics>) -> Result<Self, EndpointError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| EndpointError { address, source })?;
        Ok(Self { listener, metrics })
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers for ever.
    pub async fn serve(self) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let connection = match self.listener.accept().await {
                Ok((connection, _)) => connection,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection for figures");
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    continue;
                }
            };
            let metrics = Arc::clone(&self.metrics);
            tokio::spawn(async move {
                let answer =
                    service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request, &metrics))));
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIME)
                    .serve_connection(TokioIo::new(connection), answer);
                // A client that breaks off is no news.
                let _ = tokio::time::timeout(CONNECTION_TIME, served).await;
                drop(place);
            });
        }
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, OPEN_METRICS, metrics.text()),
        (_, "/metrics") => (
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "the figures can only be read: GET /metrics\n".to_owned(),
        ),
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "there is only /metrics here\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
