//! Port-forward.

use std::collections::HashMap;

use bulkhead_runtime::streaming::spdy::dictionary;
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::Message;
use tonic::Code;

use super::client::{upgraded, web_socket};
use crate::{
    node::Node,
    spdy::{self, Event, Reader, Writer},
};

/// A client with connections to ports.
struct Forward<T> {
    to: Writer<T>,
    from: Reader<T>,
    requests: u32,
    heard: HashMap<u32, Heard>,
}

/// What came on a stream.
#[derive(Clone, Debug, Default)]
struct Heard {
    bytes: Vec<u8>,
    ended: bool,
}

impl<T: AsyncRead + AsyncWrite> Forward<T> {
    fn on(connection: T) -> Self {
        let (to, from) = spdy::client(connection, dictionary());
        Self {
            to,
            from,
            requests: 0,
            heard: HashMap::new(),
        }
    }

    /// Opens a connection: the numbers of its streams for errors and for data.
    async fn open(&mut self, port: u16) -> (u32, u32) {
        let (port, request) = (port.to_string(), self.requests.to_string());
        self.requests += 1;
        let mut headers = [("streamType", "error"), ("port", &port), ("requestID", &request)];
        let errors = self.to.open(&headers).await;
        self.to.data(errors, b"", true).await;
        headers[0].1 = "data";
        (errors, self.to.open(&headers).await)
    }

    /// Listens until `enough`.
    async fn until(&mut self, enough: impl Fn(&HashMap<u32, Heard>) -> bool) {
        while !enough(&self.heard) {
            match self.from.next().await.expect("it goes on") {
                Event::Data(stream, bytes, fin) => {
                    let heard = self.heard.entry(stream).or_default();
                    heard.bytes.extend(bytes);
                    heard.ended |= fin;
                }
                Event::Reset(stream, _) => self.heard.entry(stream).or_default().ended = true,
                _ => {}
            }
        }
    }

    async fn ended(&mut self, stream: u32) -> String {
        self.until(|heard| heard.get(&stream).is_some_and(|heard| heard.ended))
            .await;
        String::from_utf8(self.heard[&stream].bytes.clone()).unwrap()
    }
}

async fn forward(url: &str) -> Forward<TcpStream> {
    Forward::on(upgraded(url, &["portforward.k8s.io"]).await)
}

/// What a client sees of the echo, of a pod that speaks first, and of a port where nobody listens.
async fn check<T: AsyncRead + AsyncWrite>(client: &mut Forward<T>) {
    let (errors, data) = client.open(7).await;
    client.to.data(data, b"a question", false).await;
    client
        .until(|heard| heard.get(&data).is_some_and(|heard| heard.bytes == b"a question"))
        .await;
    client.to.data(data, b" or two", true).await;
    assert_eq!(client.ended(data).await, "a question or two and that was all");
    assert_eq!(client.ended(errors).await, "");

    let (errors, data) = client.open(13).await;
    assert_eq!(client.ended(data).await, "hello");
    client.to.data(data, b"still here", true).await;
    assert_eq!(client.ended(errors).await, "");

    let (errors, data) = client.open(99).await;
    let text = client.ended(errors).await;
    assert!(text.contains("99") && text.contains("refused"), "{text}");
    assert_eq!(client.ended(data).await, "");
}

#[test]
fn each_side_of_a_connection_ends_by_itself_and_errors_are_told() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let url = node.forward_url(&pod, &[]).unwrap();
    node.wait(async { check(&mut forward(&url).await).await });
}

#[test]
fn many_connections_go_side_by_side() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let url = node.forward_url(&pod, &[]).unwrap();
    node.wait(async {
        let mut client = forward(&url).await;
        let mut open = Vec::new();
        for number in 0..100 {
            let (_, data) = client.open(7).await;
            let text = format!("connection {number}");
            client.to.data(data, text.as_bytes(), false).await;
            open.push((data, text));
        }
        for (data, text) in &open {
            client
                .until(|heard| {
                    heard
                        .get(data)
                        .is_some_and(|heard| heard.bytes == text.as_bytes())
                })
                .await;
        }
        for (data, text) in open {
            client.to.data(data, b"", true).await;
            assert_eq!(client.ended(data).await, format!("{text} and that was all"));
        }
    });
}

#[test]
fn a_connection_that_nobody_reads_leaves_room_for_the_others() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let url = node.forward_url(&pod, &[]).unwrap();
    node.wait(async {
        let mut client = forward(&url).await;
        let (_, stuck) = client.open(9).await;
        client.to.data(stuck, &vec![0; 300 << 10], false).await;
        check(&mut client).await;
        client.to.reset(stuck).await;
        check(&mut client).await;
    });
}

#[test]
fn connections_that_the_client_breaks_off_end() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let url = node.forward_url(&pod, &[]).unwrap();
    node.wait(async {
        let mut client = forward(&url).await;
        for _ in 0..20 {
            let (errors, data) = client.open(19).await;
            client
                .until(|heard| heard.get(&data).is_some_and(|heard| heard.bytes.len() > 10_000))
                .await;
            client.to.reset(data).await;
            assert_eq!(client.ended(errors).await, "");
            client.heard.clear();
        }
    });
}

#[test]
fn streams_that_make_no_pair_are_broken_off() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let url = node.forward_url(&pod, &[]).unwrap();
    node.wait(async {
        let mut client = forward(&url).await;
        for headers in [
            &[("streamType", "data"), ("requestID", "x")][..],
            &[("streamType", "data"), ("port", "0")],
            &[("streamType", "data"), ("port", "65536")],
            &[("streamType", "other"), ("port", "7")],
            &[("port", "7")],
        ] {
            let stream = client.to.open(headers).await;
            assert_eq!(client.ended(stream).await, "");
        }
        let same = [("streamType", "error"), ("port", "7"), ("requestID", "same")];
        client.to.open(&same).await;
        let twice = client.to.open(&same).await;
        assert_eq!(client.ended(twice).await, "");
        // Clients that name no request open the two streams in order.
        client.to.open(&[("streamType", "error"), ("port", "13")]).await;
        let data = client.to.open(&[("streamType", "data"), ("port", "13")]).await;
        assert_eq!(client.ended(data).await, "hello");
    });
}

#[test]
fn web_sockets_carry_spdy_or_two_channels_for_each_port() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let url = node.forward_url(&pod, &[]).unwrap();
    node.wait(async {
        let socket = web_socket(&url, "SPDY/3.1+portforward.k8s.io").await;
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let carrying = async move {
            let (mut from, mut to) = tokio::io::split(theirs);
            let (mut sink, mut stream) = socket.split();
            let sending = async {
                let mut part = vec![0; 5000];
                while let Ok(length @ 1..) = from.read(&mut part).await {
                    sink.send(Message::binary(part[..length].to_vec())).await.unwrap();
                }
            };
            let receiving = async {
                while let Some(Ok(Message::Binary(bytes))) = stream.next().await {
                    to.write_all(&bytes).await.unwrap();
                }
            };
            tokio::join!(sending, receiving);
        };
        tokio::select! {
            () = async { check(&mut Forward::on(ours)).await } => {}
            () = carrying => panic!("the tunnel ended"),
        }
    });

    let url = node.forward_url(&pod, &[7, 99]).unwrap();
    node.wait(async {
        let mut socket = web_socket(&url, "v4.channel.k8s.io").await;
        socket
            .send(Message::binary(b"\0question".to_vec()))
            .await
            .unwrap();
        let mut heard: HashMap<u8, Vec<u8>> = HashMap::new();
        while heard.get(&0).map_or(0, Vec::len) < 10 || heard.get(&3).map_or(0, Vec::len) < 10 {
            let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() else {
                panic!("no bytes");
            };
            heard.entry(bytes[0]).or_default().extend(&bytes[1..]);
        }
        assert_eq!(heard[&0], b"\x07\0question");
        assert_eq!(heard[&1], b"\x07\0");
        assert_eq!(heard[&2], b"\x63\0");
        assert!(
            heard[&3].starts_with(b"\x63\0error forwarding port 99"),
            "{heard:?}"
        );
    });
}

#[test]
fn pods_and_ports_that_cannot_be_are_refused() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let code = |pod: &str, ports: &[i32]| node.forward_url(pod, ports).unwrap_err().code();
    assert_eq!(code("", &[]), Code::InvalidArgument);
    assert_eq!(code("unknown", &[]), Code::NotFound);
    for port in [0, -1, 65536] {
        assert_eq!(code(&pod, &[80, port]), Code::InvalidArgument);
    }
    assert_eq!(code(&pod, &[80; 101]), Code::InvalidArgument);
    node.stop_pod(&pod).unwrap();
    assert_eq!(code(&pod, &[]), Code::FailedPrecondition);
}
