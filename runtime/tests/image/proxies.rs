//! Proxies of the environment: each pull is made by a process of its own, for the environment is the process's.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bulkhead_runtime::image::ImageConfig;
use serde_json::json;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::authority::Authority;
use crate::build::{Archive, BuiltLayer, push};
use crate::host::{Host, pull};
use crate::registry::{Registry, Request, read_request};

/// What the process is to pull, and the file of the authority that it is to trust.
const REFERENCE: &str = "BULKHEAD_TEST_PULLS_THROUGH_PROXY";
const AUTHORITY: &str = "BULKHEAD_TEST_AUTHORITY";

#[tokio::test]
#[ignore = "is started by another test"]
async fn puller() {
    let Ok(reference) = std::env::var(REFERENCE) else {
        return;
    };
    let host = Host::with(ImageConfig {
        plain_http_registries: vec!["plain.invalid".to_owned()],
        connect_timeout_seconds: 5,
        request_attempts: 1,
        ..ImageConfig::default()
    });
    if let Ok(authority) = std::env::var(AUTHORITY) {
        host.hosts(
            "secure.invalid",
            &format!("server = 'https://secure.invalid'\nca = '{authority}'"),
        );
    }
    pull(&host.open(), &reference).await.unwrap();
}

/// A proxy that leads everywhere to the same address.
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Proxy {
    async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<Request>>>::default();
        let asking = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, target, Arc::clone(&asking)));
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, target: SocketAddr, asked: Arc<Mutex<Vec<Request>>>) {
    let Some(request) = read_request(&mut stream).await else {
        return;
    };
    asked.lock().unwrap().push(request.clone());
    let mut onward = TcpStream::connect(target).await.unwrap();
    if request.method == "CONNECT" {
        stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
    } else {
        let path = request.target.splitn(4, '/').nth(3).unwrap();
        let headers: String = request
            .headers
            .iter()
            .filter(|(key, _)| !key.eq_ignore_ascii_case("proxy-authorization"))
            .fold(String::new(), |text, (key, value)| {
                text + key + ": " + value + "\r\n"
            });
        let head = format!("{} /{path} HTTP/1.1\r\n{headers}\r\n", request.method);
        onward.write_all(head.as_bytes()).await.unwrap();
    }
    // Either side may end it.
    let _ = copy_bidirectional(&mut stream, &mut onward).await;
}

/// Pulls `reference` in a process with this environment and no other proxies; whether it could.
async fn pulls(reference: &str, environment: &[(&str, String)]) -> bool {
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "proxies::puller", "--ignored", "--nocapture"]);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    let environment = environment.iter().map(|(key, value)| (*key, value.as_str()));
    let output = command
        .envs(environment)
        .env(REFERENCE, reference)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    println!("{}", String::from_utf8_lossy(&output.stderr));
    output.status.success()
}

fn layer() -> BuiltLayer {
    BuiltLayer::gzip(Archive::new().file("etc/name", "x").finish())
}

#[tokio::test]
async fn a_registry_without_tls_is_asked_for_through_the_proxy() {
    let registry = Registry::start().await;
    push(&registry, "a", "latest", &[layer()], json!({}));
    let proxy = Proxy::start(registry.address).await;
    for name in ["HTTP_PROXY", "http_proxy"] {
        let before = proxy.asked().len();
        let url = format!("http://user:secret@{}", proxy.address);
        assert!(pulls("plain.invalid/a", &[(name, url)]).await);
        let asked = proxy.asked().split_off(before);
        assert_eq!(asked.len(), 3);
        for request in asked {
            assert!(
                request.target.starts_with("http://plain.invalid/v2/a/"),
                "{request:?}"
            );
            assert_eq!(
                request.header("proxy-authorization"),
                Some("Basic dXNlcjpzZWNyZXQ=")
            );
        }
    }
}

#[tokio::test]
async fn a_registry_with_tls_is_spoken_to_through_the_proxy_and_not_by_it() {
    let authority = Authority::new("ours");
    let registry = Registry::start_tls(authority.server("DNS:secure.invalid", None)).await;
    push(&registry, "a", "latest", &[layer()], json!({}));
    let proxy = Proxy::start(registry.address).await;
    let ca = authority.certificate().to_str().unwrap().to_owned();
    for name in ["HTTPS_PROXY", "https_proxy"] {
        let before = proxy.asked().len();
        let environment = [
            (name, format!("http://{}", proxy.address)),
            (AUTHORITY, ca.clone()),
        ];
        assert!(pulls("secure.invalid/a", &environment).await);
        let asked = proxy.asked().split_off(before);
        assert!(!asked.is_empty());
        for request in asked {
            assert_eq!(
                (request.method.as_str(), request.target.as_str()),
                ("CONNECT", "secure.invalid:443")
            );
        }
    }
    // The proxy of the one scheme is not that of the other.
    let before = proxy.asked().len();
    let environment = [
        ("HTTP_PROXY", format!("http://{}", proxy.address)),
        (AUTHORITY, ca),
    ];
    assert!(!pulls("secure.invalid/a", &environment).await);
    assert_eq!(proxy.asked().len(), before);
}

#[tokio::test]
async fn who_is_to_be_reached_directly_is() {
    let registry = Registry::start().await;
    push(&registry, "a", "latest", &[layer()], json!({}));
    let proxy = Proxy::start(registry.address).await;
    let url = format!("http://{}", proxy.address);
    for name in ["NO_PROXY", "no_proxy"] {
        let environment = [
            ("HTTP_PROXY", url.clone()),
            (name, "10.0.0.0/8, plain.invalid".to_owned()),
        ];
        // Without the proxy nobody knows where that is.
        assert!(!pulls("plain.invalid/a", &environment).await);
    }
    // No proxy can reach what is here.
    assert!(pulls(&format!("{}/a", registry.name()), &[("HTTP_PROXY", url)]).await);
    assert!(proxy.asked().is_empty(), "{:?}", proxy.asked());
}
