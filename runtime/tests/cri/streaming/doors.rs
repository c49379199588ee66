//! The server's URLs.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;

use super::client::{OUT, Remote, parts, request};
use crate::{authority::Authority, node::Node};

#[test]
fn a_url_works_once_for_what_it_was_given_out_for() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    let url = node.exec_url(&id, &["say", "hello"], &OUT).unwrap();
    let (address, path) = parts(&url);
    assert!(address.starts_with("127.0.0.1:"), "{url}");
    let token = path.strip_prefix("/exec/").unwrap();
    assert!(token.len() >= 22, "at least 128 bits: {token}");
    let status = |url: &str, method: &str, headers: &[(&str, &str)]| {
        let (status, head, _) = node.wait(request(url, method, headers));
        assert!(!head.to_lowercase().contains("keep-alive"), "{head}");
        status
    };
    assert_eq!(status(&url, "PUT", &[]), 405);
    for wrong in [
        "/",
        "/exec",
        "/exec/",
        "/exec/AAAA",
        "/other/AAAA",
        "/attach/AAAA/x",
    ] {
        assert_eq!(status(&format!("http://{address}{wrong}"), "GET", &[]), 404);
    }
    let ran = node.wait(async { Remote::open(&url, &OUT).await.finish().await });
    assert_eq!(ran.stdout, b"hello\n");
    assert_eq!(status(&url, "POST", &[]), 404);
    // A client that cannot be served has had its try.
    let url = node.exec_url(&id, &["say", "hello"], &OUT).unwrap();
    assert_eq!(status(&url, "GET", &[]), 400);
    assert_eq!(status(&url, "GET", &[]), 404);
    let url = node.forward_url(&pod, &[]).unwrap();
    assert_eq!(status(&url.replace("portforward", "attach"), "GET", &[]), 404);
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
    ];
    let url = node.forward_url(&pod, &[]).unwrap();
    let (status, head, _) = node.wait(request(&url, "POST", &headers));
    assert_eq!(status, 403);
    assert!(
        head.to_lowercase()
            .contains("x-accepted-stream-protocol-versions: portforward.k8s.io"),
        "{head}"
    );
}

#[test]
fn only_so_many_urls_wait() {
    let node = Node::new();
    let pod = node.run_pod("p");
    for _ in 0..1000 {
        node.forward_url(&pod, &[]).unwrap();
    }
    let refused = node.forward_url(&pod, &[]).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("1000"), "{refused:?}");
}

#[test]
fn the_server_speaks_tls_where_it_has_a_certificate() {
    let authority = Authority::new("streaming");
    let signed = authority.sign("server", "IP:127.0.0.1");
    let node = Node::changed(|config| {
        config.streaming.tls_certificate = signed.certificate.clone();
        config.streaming.tls_key = signed.key.clone();
    });
    let pod = node.run_pod("p");
    let url = node.forward_url(&pod, &[]).unwrap();
    let rest = url.strip_prefix("https://").expect("TLS");
    let (address, path) = rest.split_at(rest.find('/').unwrap());
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(authority.certificate()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let answer = node.wait(async {
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = "127.0.0.1".try_into().unwrap();
        let mut stream = connector.connect(name, stream).await.unwrap();
        let asked = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n"
        );
        stream.write_all(asked.as_bytes()).await.unwrap();
        // A ping, and its echo behind the head of the answer.
        stream
            .write_all(&crate::spdy::control(6, 0, &[0, 0, 0, 1]))
            .await
            .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]) {
            answer.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8_lossy(&answer).into_owned()
    });
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
}

#[test]
fn a_server_that_cannot_listen_stops_the_daemon_with_the_key() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut node = Node::new();
    node.kill();
    node.config.streaming.port = port;
    let error = node.second().unwrap_err().to_string();
    assert!(error.contains("streaming.port"), "{error}");
    node.config.streaming.port = 0;
    node.config.streaming.tls_certificate = "/nonexistent".into();
    node.config.streaming.tls_key = "/nonexistent".into();
    let error = node.second().unwrap_err().to_string();
    assert!(error.contains("streaming.tls_certificate"), "{error}");
    node.config.streaming = Default::default();
    node.start();
}
