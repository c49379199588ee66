//! A registry on loopback that answers as a test tells it to, well or badly.

use std::collections::HashMap;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// A running registry; stops when dropped.
pub struct Registry {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    routes: Mutex<HashMap<String, Route>>,
    requests: Mutex<Vec<Request>>,
}

type Route = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

/// What was asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// Whether the client showed a certificate.
    pub certified: bool,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// What is answered.
#[derive(Clone)]
pub enum Answer {
    /// A whole answer: status, headers, body.
    Whole(u16, Vec<(String, String)>, Vec<u8>),
    /// The body, and then silence though so many bytes were promised.
    Stalled(usize, Vec<u8>),
    /// The body, and then the end though so many bytes were promised.
    Cut(usize, Vec<u8>),
    /// Status, headers and the body, and then the end, though so many bytes were promised.
    CutPart(Vec<(String, String)>, usize, Vec<u8>),
    /// The body again and again, without a word of how long it is.
    Endless(Vec<u8>),
    /// The body, without a word of how long it is.
    Unmeasured(Vec<u8>),
    /// Nothing: the connection is closed.
    Nothing,
    /// The body when the gate opens.
    Gated(watch::Receiver<bool>, Vec<u8>),
    /// A part of the body, and the rest when the gate opens.
    Stuck(watch::Receiver<bool>, Vec<u8>),
    /// The body in parts of so many bytes, with so long a pause before each.
    Slow(usize, Duration, Vec<u8>),
}

impl Answer {
    pub fn ok(media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::Whole(200, vec![("Content-Type".into(), media_type.into())], body.into())
    }

    pub fn status(status: u16, headers: &[(&str, String)], body: &str) -> Self {
        let headers = headers
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect();
        Self::Whole(status, headers, body.into())
    }
}

impl Registry {
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// A registry that speaks TLS.
    pub async fn start_tls(config: ServerConfig) -> Self {
        Self::start_with(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let serving = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (serving, tls) = (Arc::clone(&serving), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, serving, false).await,
                        Some(tls) => {
                            // A client that does not like the certificate goes away.
                            if let Ok(stream) = tls.accept(stream).await {
                                let certified = stream.get_ref().1.peer_certificates().is_some();
                                serve(stream, serving, certified).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            shared,
            task,
        }
    }

    /// The registry's name in references.
    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// Answers requests for `path` with `answer`.
    pub fn set(&self, path: &str, answer: Answer) {
        self.route(path, move |_| answer.clone());
    }

    /// Answers requests for `path` with what `route` says.
    pub fn route(&self, path: &str, route: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
        self.shared
            .routes
            .lock()
            .unwrap()
            .insert(path.to_owned(), Arc::new(route));
    }

    /// Puts `guard` before everything that is served.
    pub fn guard(&self, guard: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) {
        let guard = Arc::new(guard);
        for route in self.shared.routes.lock().unwrap().values_mut() {
            let (guard, inner) = (Arc::clone(&guard), Arc::clone(route));
            *route = Arc::new(move |request| guard(request).unwrap_or_else(|| inner(request)));
        }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// How often something whose path ends like this was asked for.
    pub fn asked(&self, end: &str) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.target.ends_with(end))
            .count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What requests come on.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

async fn serve(mut stream: impl Stream, shared: Arc<Shared>, certified: bool) {
    let Some(request) = read_request(&mut stream).await else {
        return;
    };
    let request = Request { certified, ..request };
    shared.requests.lock().unwrap().push(request.clone());
    let path = request.target.split('?').next().unwrap().to_owned();
    let route = shared.routes.lock().unwrap().get(&path).cloned();
    let answer = route.map_or_else(|| Answer::status(404, &[], "{}"), |route| route(&request));
    // The client may go at any time; that is its right.
    let _ = write_answer(&mut stream, answer).await;
}

pub async fn read_request(stream: &mut impl Stream) -> Option<Request> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).ok()?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let mut body = bytes[head_end + 4..].to_vec();
    let length = headers
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case("content-length"));
    let length: usize = length.map_or(0, |(_, value)| value.parse().unwrap());
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Request {
        method,
        target,
        headers,
        body: String::from_utf8(body).ok()?,
        certified: false,
    })
}

fn whole(body: &[u8]) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")
}

async fn write_answer(stream: &mut impl Stream, answer: Answer) -> std::io::Result<()> {
    let promise =
        |length| format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    let unmeasured = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    match answer {
        Answer::Whole(status, headers, body) => {
            let status_line = format!("HTTP/1.1 {status} Status\r\n");
            let mut head = vec![status_line, "Connection: close\r\n".to_owned()];
            head.push(format!("Content-Length: {}\r\n", body.len()));
            head.extend(headers.iter().map(|(key, value)| format!("{key}: {value}\r\n")));
            head.push("\r\n".to_owned());
            stream.write_all(head.concat().as_bytes()).await?;
            stream.write_all(&body).await?;
        }
        Answer::Stalled(length, body) => {
            stream.write_all(promise(length).as_bytes()).await?;
            stream.write_all(&body).await?;
            stream.flush().await?;
            pending::<()>().await;
        }
        Answer::Cut(length, body) => {
            stream.write_all(promise(length).as_bytes()).await?;
            stream.write_all(&body).await?;
        }
        Answer::CutPart(headers, length, body) => {
            let head = headers.iter().fold(String::new(), |text, (key, value)| {
                text + key + ": " + value + "\r\n"
            });
            let head =
                format!("HTTP/1.1 206 Part\r\nConnection: close\r\nContent-Length: {length}\r\n{head}\r\n");
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&body).await?;
        }
        Answer::Nothing => {}
        Answer::Unmeasured(body) => {
            stream.write_all(unmeasured.as_bytes()).await?;
            stream.write_all(&body).await?;
        }
        Answer::Endless(body) => {
            stream.write_all(unmeasured.as_bytes()).await?;
            loop {
                stream.write_all(&body).await?;
            }
        }
        Answer::Gated(mut gate, body) => {
            let _ = gate.wait_for(|open| *open).await;
            stream.write_all(whole(&body).as_bytes()).await?;
            stream.write_all(&body).await?;
        }
        Answer::Stuck(mut gate, body) => {
            stream.write_all(whole(&body).as_bytes()).await?;
            let (first, rest) = body.split_at(body.len() / 2);
            stream.write_all(first).await?;
            let _ = gate.wait_for(|open| *open).await;
            stream.write_all(rest).await?;
        }
        Answer::Slow(part, pause, body) => {
            stream.write_all(whole(&body).as_bytes()).await?;
            for part in body.chunks(part) {
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                stream.write_all(part).await?;
            }
        }
    }
    stream.shutdown().await
}
