//! Takes connections, upgrades them and joins them to their jobs.

use std::{convert::Infallible, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    activity::Activity,
    config::StreamingConfig,
    peer::Peer,
    port_forward::{self, Duplex},
    remote_command,
    request::{Spoken, negotiate},
    spdy, tls,
    tokens::{Job, JobKind, LIFE, Tokens, TooManyTokens},
    websocket,
};

/// Most connections that have not said yet what they want.
const GREETING_CONNECTIONS: usize = 128;

/// How long a client may take to say what it wants, TLS included.
const GREETING: Duration = Duration::from_secs(10);

/// Most bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;

/// Most sessions at once.
const SESSIONS: usize = 512;

/// How long nothing may move on a session.
const IDLE: Duration = Duration::from_hours(4);

/// How long sessions may take to end with the daemon.
const FAREWELL: Duration = Duration::from_secs(2);

/// Pause after a connection could not be taken, for want of descriptors or memory which others must give back first.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Why the server cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address or port cannot be had.
    #[error(
        "the streaming server cannot listen on {socket}: {source}; set `streaming.address` and `streaming.port` to what this host has and nobody uses"
    )]
    Listen {
        /// As configured.
        socket: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error(
        "the streaming server cannot use the certificate {certificate} with its key: {source}; see `streaming.tls_certificate` and `streaming.tls_key`"
    )]
    Tls {
        /// The certificate.
        certificate: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The streaming server.
#[derive(Debug)]
pub struct StreamingServer {
    /// Scheme, address and port.
    base: String,
    tokens: Arc<Tokens>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl StreamingServer {
    /// Listens, and serves until it is closed or dropped. In a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub async fn open(config: &StreamingConfig) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Listen {
            socket: config.socket(),
            source,
        };
        let listener = TcpListener::bind(config.socket()).await.map_err(failed)?;
        let socket = listener.local_addr().map_err(failed)?;
        let tls = match config.tls() {
            Some((certificate, key)) => {
                let acceptor = tls::acceptor(certificate, key);
                Some(acceptor.map_err(|source| OpenError::Tls {
                    certificate: certificate.to_owned(),
                    source,
                })?)
            }
            None => None,
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let tokens = Arc::new(Tokens::default());
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let shared = Arc::new(Shared {
            tokens: Arc::clone(&tokens),
            tls,
            sessions: Arc::new(Semaphore::new(SESSIONS)),
            stop: stop.clone(),
            tasks: tasks.clone(),
        });
        tasks.spawn(accept(listener, shared));
        tracing::info!(%socket, scheme, "serving exec, attach and port-forward");
        Ok(Self {
            base: format!("{scheme}://{socket}"),
            tokens,
            stop,
            tasks,
        })
    }

    /// Keeps a job for whoever comes with the URL that is given.
    ///
    /// # Errors
    ///
    /// [`TooManyTokens`].
    pub fn offer(&self, job: Job) -> Result<String, TooManyTokens> {
        let kind = job.kind().name();
        let token = self.tokens.put(job)?;
        Ok(format!("{}/{kind}/{token}", self.base))
    }

    /// What is waited for, for a moment, when the server is closed. What is left to do behind a session belongs there.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Ends all sessions and listens no more.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        if timeout(FAREWELL, self.tasks.wait()).await.is_err() {
            tracing::info!("sessions of exec, attach or port-forward are broken off");
        }
    }
}

impl Drop for StreamingServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What all connections work with.
#[derive(Clone)]
struct Shared {
    tokens: Arc<Tokens>,
    tls: Option<TlsAcceptor>,
    sessions: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let greeting = Arc::new(Semaphore::new(GREETING_CONNECTIONS));
    let mut expiry = tokio::time::interval(LIFE);
    loop {
        let next = async {
            let permit = Arc::clone(&greeting).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = shared.stop.cancelled() => return,
            _ = expiry.tick() => {
                shared.tokens.expire();
                continue;
            }
            next = next => next,
        };
        match accepted {
            Ok((stream, from)) => {
                let shared = Arc::clone(&shared);
                let stop = shared.stop.clone();
                shared.tasks.clone().spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        served = greet(stream, shared) => if let Err(error) = served {
                            tracing::debug!(%from, %error, "a streaming connection came to nothing");
                        }
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::error!(%error, "a streaming connection cannot be taken");
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

/// Serves a connection until it is refused or upgraded.
async fn greet(stream: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    let peer = Arc::new(Peer::new(&stream)?);
    let stream: Box<dyn Duplex> = match &shared.tls {
        Some(acceptor) => Box::new(timeout(GREETING, acceptor.accept(stream)).await??),
        None => Box::new(stream),
    };
    let service = service_fn(|request| {
        let answer = answer(&shared, &peer, request);
        async { Ok::<_, Infallible>(answer) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(GREETING)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

/// Answers a request; one that is upgraded goes on in a task of its own.
fn answer(shared: &Arc<Shared>, peer: &Arc<Peer>, mut request: Request<Incoming>) -> Response<String> {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            HeaderMap::new(),
            "only GET and POST are for streams",
        );
    }
    let Some((kind, token)) = place(request.uri().path()) else {
        return refusal(StatusCode::NOT_FOUND, HeaderMap::new(), "there is nothing here");
    };
    let Ok(permit) = Arc::clone(&shared.sessions).try_acquire_owned() else {
        return refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            HeaderMap::new(),
            "too many sessions of exec, attach and port-forward are open; end some of them",
        );
    };
    let Some(job) = shared.tokens.take(kind, token) else {
        return refusal(
            StatusCode::NOT_FOUND,
            HeaderMap::new(),
            "this URL is not known: it works once, and for a minute",
        );
    };
    let (spoken, headers) = match negotiate(kind, request.headers()) {
        Ok(negotiated) => negotiated,
        Err(refused) => {
            let (status, headers) = refused.answer();
            return refusal(status, headers, &refused.to_string());
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let session = Session {
        spoken,
        peer: Arc::clone(peer),
        activity: Activity::new(),
        _permit: permit,
    };
    let stop = shared.stop.clone();
    shared.tasks.spawn(async move {
        let Ok(Ok(connection)) = timeout(GREETING, upgrade).await else {
            return;
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = session.run(TokioIo::new(connection), job) => {}
        }
    });
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    response
}

fn place(path: &str) -> Option<(JobKind, &str)> {
    let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
    let kind = [JobKind::Exec, JobKind::Attach, JobKind::PortForward]
        .into_iter()
        .find(|known| known.name() == kind)?;
    Some((kind, token))
}

fn refusal(status: StatusCode, headers: HeaderMap, text: &str) -> Response<String> {
    let mut response = Response::new(format!("{text}\n"));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// An upgraded connection.
struct Session {
    spoken: Spoken,
    peer: Arc<Peer>,
    activity: Activity,
    _permit: OwnedSemaphorePermit,
}

impl Session {
    async fn run(self, connection: impl Duplex, job: Job) {
        let kind = job.kind().name();
        tracing::debug!(kind, spoken = ?self.spoken, "a session begins");
        tokio::select! {
            ended = self.serve(connection, job) => match ended {
                Ok(()) => tracing::debug!(kind, "a session has ended"),
                Err(error) => tracing::debug!(kind, error, "a session broke"),
            },
            () = self.peer.left() => tracing::debug!(kind, "the client of a session is gone"),
            () = self.activity.idle(IDLE) => {
                tracing::info!(kind, "a session is ended: nothing has moved for {} hours", IDLE.as_secs() / 3600);
            }
        }
    }

    async fn serve(&self, connection: impl Duplex, job: Job) -> Result<(), String> {
        let activity = self.activity.clone();
        match (job, self.spoken) {
            (Job::Exec(wanted, command) | Job::Attach(wanted, command), Spoken::SpdyCommand(version)) => {
                let serve = |streams| remote_command::over_spdy(streams, version, wanted, command);
                let served = spdy::serve(connection, activity, serve).await;
                served.map_err(|error| error.to_string())
            }
            (
                Job::Exec(wanted, command) | Job::Attach(wanted, command),
                Spoken::WebSocketCommand { version, base64 },
            ) => {
                let served =
                    remote_command::over_websocket(connection, activity, version, base64, wanted, command)
                        .await;
                served.map_err(|error| error.to_string())
            }
            (Job::PortForward(_, dial), Spoken::SpdyPorts) => {
                let serve = |streams| port_forward::over_spdy(streams, dial);
                let served = spdy::serve(connection, activity, serve).await;
                served.map_err(|error| error.to_string())
            }
            (Job::PortForward(_, dial), Spoken::TunnelledPorts) => {
                let tunnel = websocket::Tunnel::new(connection).await;
                let serve = |streams| port_forward::over_spdy(streams, dial);
                let served = spdy::serve(tunnel, activity, serve).await;
                served.map_err(|error| error.to_string())
            }
            (Job::PortForward(ports, dial), Spoken::WebSocketPorts { base64 }) => {
                let served = port_forward::over_websocket(connection, activity, base64, ports, dial).await;
                served.map_err(|error| error.to_string())
            }
            (job, spoken) => Err(format!("{spoken:?} was negotiated for {job:?}")),
        }
    }
}
