//! Clients that lie, stall or leave: they end themselves and nobody else.

use std::time::Duration;

use bulkhead_runtime::streaming::spdy::dictionary;
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

use super::client::{ALL, OUT, Remote, parts, upgraded, web_socket};
use crate::{
    node::Node,
    spdy::{self, Event, header_block},
};

/// A container, and that a command in it works.
fn works(node: &Node, id: &str) {
    let url = node.exec_url(id, &["say", "fine"], &OUT).unwrap();
    let ran = node.wait(async { Remote::open(&url, &OUT).await.finish().await });
    assert_eq!(ran.stdout, b"fine\n");
}

#[test]
fn whoever_breaks_the_protocol_is_thrown_out() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    let bomb = header_block(&[("streamType", &"x".repeat(8 << 20))]);
    let many = header_block(&vec![("streamType", "data"); 1000]);
    for (what, rude) in [
        ("noise", b"\xff\xff\xff\xff\xff\xff\xff\xff".to_vec()),
        ("a long frame", vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
        ("a bomb", bomb),
        ("many headers", many),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ] {
        let url = node.exec_url(&id, &["run"], &ALL).unwrap();
        node.wait(async {
            let connection = upgraded(&url, &["v4.channel.k8s.io"]).await;
            let (mut to, mut from) = spdy::client(connection, dictionary());
            let rude = match rude.as_slice() {
                [0, 0, ..] => to.opening(1, &rude),
                _ => rude,
            };
            to.raw(&rude).await;
            if what == "HTTP" {
                // That is a data frame of a stream that nobody opened, and its bytes have not come.
                drop((to, from));
                return;
            }
            let leaving = async { while from.next().await.is_some() {} };
            timeout(Duration::from_secs(10), leaving).await.expect(what);
        });
        works(&node, &id);
    }
    assert_eq!(node.exec(&id, &["execs"], 0).unwrap().stdout, b"0");
}

#[test]
fn connections_that_say_nothing_are_ended_and_others_served() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    let url = node.exec_url(&id, &["say", "x"], &OUT).unwrap();
    let (address, _) = parts(&url);
    let silent: Vec<TcpStream> = node.wait(async {
        let mut silent = Vec::new();
        for _ in 0..100 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /exec/").await.unwrap();
            silent.push(stream);
        }
        silent
    });
    works(&node, &id);
    node.wait(async {
        for mut stream in silent {
            let mut rest = Vec::new();
            timeout(Duration::from_secs(30), stream.read_to_end(&mut rest))
                .await
                .expect("it is ended")
                .ok();
        }
    });
}

#[test]
fn a_session_without_its_streams_is_told_so_in_time() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    let url = node.exec_url(&id, &["run"], &ALL).unwrap();
    let ran = node.wait(async {
        let mut remote = Remote::open(&url, &["stdin", "stdout"]).await;
        let stranger = remote.to.open(&[("streamType", "stdout")]).await;
        while remote.from.next().await != Some(Event::Reset(stranger, 5)) {}
        remote.finish().await
    });
    assert!(ran.error.contains("30 s"), "{}", ran.error);
}

#[test]
fn thousands_of_streams_are_refused() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    let url = node.forward_url(&pod, &[]).unwrap();
    node.wait(async {
        let connection = upgraded(&url, &["portforward.k8s.io"]).await;
        let (mut to, mut from) = spdy::client(connection, dictionary());
        let opening = async {
            for number in 0..5000 {
                let id = number.to_string();
                let headers = [("streamType", "data"), ("port", "7"), ("requestID", id.as_str())];
                to.open(&headers).await;
            }
            to.ping(1).await;
        };
        let counting = async {
            let mut refused = 0;
            loop {
                match from.next().await.unwrap() {
                    Event::Reset(..) => refused += 1,
                    Event::Ping(_) => return refused,
                    _ => {}
                }
            }
        };
        let ((), refused) = tokio::join!(opening, counting);
        assert_eq!(refused, 5000 - 1024);
    });
    works(&node, &id);
}

#[test]
fn web_sockets_that_lie_are_thrown_out() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    // A message of more than it may have, announced and not sent.
    let url = node.exec_url(&id, &["run"], &ALL).unwrap();
    node.wait(async {
        let mut socket = web_socket(&url, "v5.channel.k8s.io").await;
        let raw = socket.get_mut();
        raw.write_all(&[0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4])
            .await
            .unwrap();
        while let Some(Ok(_)) = socket.next().await {}
    });
    // Channels that do not exist, and messages without one, are let go.
    let url = node.exec_url(&id, &["after", "300", "0"], &OUT).unwrap();
    node.wait(async {
        let mut socket = web_socket(&url, "v4.channel.k8s.io").await;
        for message in [vec![], vec![9, 1], vec![255], vec![0, 1], vec![4, 7]] {
            socket.send(Message::binary(message)).await.unwrap();
        }
        let mut text = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            text.extend(message.into_data());
        }
        assert!(String::from_utf8_lossy(&text).contains("Success"));
    });
    works(&node, &id);
    assert_eq!(node.exec(&id, &["execs"], 0).unwrap().stdout, b"0");
}
