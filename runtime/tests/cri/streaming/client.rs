//! Clients of the streaming server.

use std::collections::HashMap;

use bulkhead_runtime::streaming::spdy::dictionary;
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::spdy::{self, Event, Reader, Writer};

/// All streams but that of the window.
pub const ALL: [&str; 3] = ["stdin", "stdout", "stderr"];

/// Output alone.
pub const OUT: [&str; 2] = ["stdout", "stderr"];

/// A terminal.
pub const TTY: [&str; 3] = ["stdin", "stdout", "resize"];

/// The address and the path of a URL.
pub fn parts(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://").expect("no TLS");
    rest.split_at(rest.find('/').unwrap())
}

/// Sends a request and reads the head of the answer: its status, and all of it.
pub async fn request(url: &str, method: &str, headers: &[(&str, &str)]) -> (u16, String, TcpStream) {
    let (address, path) = parts(url);
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n");
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head += "\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer, stream)
}

/// A connection that is upgraded to SPDY.
pub async fn upgraded(url: &str, protocols: &[&str]) -> TcpStream {
    let mut headers = vec![("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
    headers.extend(protocols.iter().map(|name| ("X-Stream-Protocol-Version", *name)));
    let (status, head, stream) = request(url, "POST", &headers).await;
    assert_eq!(status, 101, "{head}");
    stream
}

/// A client with a command's streams over SPDY.
pub struct Remote {
    pub to: Writer<TcpStream>,
    pub from: Reader<TcpStream>,
    numbers: HashMap<&'static str, u32>,
    pub ran: Ran,
}

/// What a command said.
#[derive(Debug, Default)]
pub struct Ran {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The text on the error stream.
    pub error: String,
}

impl Ran {
    /// The exit code in its status.
    pub fn code(&self) -> i32 {
        let status: serde_json::Value = serde_json::from_str(&self.error).unwrap();
        if status["status"] == "Success" {
            return 0;
        }
        assert_eq!(status["reason"], "NonZeroExitCode", "{}", self.error);
        let cause = &status["details"]["causes"][0];
        assert_eq!(cause["reason"], "ExitCode");
        cause["message"].as_str().unwrap().parse().unwrap()
    }
}

impl Remote {
    pub async fn open(url: &str, streams: &[&'static str]) -> Self {
        Self::speaking(url, "v4.channel.k8s.io", streams).await
    }

    pub async fn speaking(url: &str, protocol: &str, streams: &[&'static str]) -> Self {
        let (mut to, from) = spdy::client(upgraded(url, &[protocol]).await, dictionary());
        let mut numbers = HashMap::new();
        for name in ["error"].iter().chain(streams) {
            numbers.insert(*name, to.open(&[("streamType", name)]).await);
        }
        // As others do: nothing is ever said there.
        to.data(numbers["error"], b"", true).await;
        Self {
            to,
            from,
            numbers,
            ran: Ran::default(),
        }
    }

    pub async fn type_in(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(32 << 10) {
            self.to.data(self.numbers["stdin"], part, false).await;
        }
    }

    pub async fn end_input(&mut self) {
        self.to.data(self.numbers["stdin"], b"", true).await;
    }

    pub async fn resize(&mut self, width: u16, height: u16) {
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}\n");
        self.to.data(self.numbers["resize"], size.as_bytes(), false).await;
    }

    /// Takes the next thing that the server says; false at the end.
    pub async fn listen(&mut self) -> bool {
        match self.from.next().await {
            None => return false,
            Some(Event::Data(stream, bytes, _)) => {
                let known = self.numbers.iter().find(|(_, number)| **number == stream);
                match *known.expect("a stream of ours").0 {
                    "stdout" => self.ran.stdout.extend(bytes),
                    "stderr" => self.ran.stderr.extend(bytes),
                    "error" => self.ran.error += &String::from_utf8(bytes).unwrap(),
                    other => panic!("data on {other}"),
                }
            }
            Some(Event::Opened(_) | Event::Ping(_)) => {}
            Some(other) => panic!("unexpected: {other:?}"),
        }
        true
    }

    /// Listens until the standard output contains `text`.
    pub async fn hear(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.ran.stdout).contains(text) {
            assert!(self.listen().await, "ended without {text:?}: {:?}", self.ran);
        }
    }

    /// Listens until the server closes the connection.
    pub async fn finish(mut self) -> Ran {
        while self.listen().await {}
        self.ran
    }
}

/// Connects with a WebSocket.
pub async fn web_socket(url: &str, protocol: &str) -> WebSocketStream<TcpStream> {
    let (address, path) = parts(url);
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    if !protocol.is_empty() {
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    let (socket, answer) = client_async(request, stream).await.unwrap();
    let chosen = answer.headers().get("Sec-WebSocket-Protocol");
    assert_eq!(chosen.map_or("", |name| name.to_str().unwrap()), protocol);
    socket
}

/// Runs a command over a WebSocket with this input.
pub async fn over_web_socket(url: &str, protocol: &str, input: Option<&[u8]>) -> Ran {
    let mut socket = web_socket(url, protocol).await;
    if let Some(input) = input {
        for part in input.chunks(32 << 10) {
            let message = [&[0], part].concat();
            socket.feed(Message::binary(message)).await.unwrap();
        }
        socket.send(Message::binary(vec![255, 0])).await.unwrap();
    }
    let mut ran = Ran::default();
    let mut first = true;
    while let Some(message) = socket.next().await {
        let bytes = match message.unwrap() {
            Message::Binary(bytes) => bytes.to_vec(),
            Message::Text(text) => {
                let text = text.as_str();
                let payload = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, &text[1..]).unwrap();
                [&[text.as_bytes()[0] - b'0'], &payload[..]].concat()
            }
            Message::Close(frame) => {
                assert_eq!(u16::from(frame.unwrap().code), 1000);
                continue;
            }
            other => panic!("unexpected: {other:?}"),
        };
        if first {
            assert_eq!(bytes, [1], "the connection is told to stand");
            first = false;
        }
        match bytes[0] {
            1 => ran.stdout.extend(&bytes[1..]),
            2 => ran.stderr.extend(&bytes[1..]),
            3 => ran.error += std::str::from_utf8(&bytes[1..]).unwrap(),
            other => panic!("channel {other}"),
        }
    }
    ran
}
