//! TLS to registries: whom we trust, and to whom we show who we are.

use bulkhead_runtime::image::{ErrorKind, ImageConfig, ImageError};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::authority::{Authority, joined};
use crate::build::{Archive, BuiltLayer, push};
use crate::host::{Host, pull};
use crate::registry::{Answer, Registry};
use crate::tools::text;

const LOOPBACK: &str = "IP:127.0.0.1,DNS:localhost";

fn layer() -> BuiltLayer {
    BuiltLayer::gzip(Archive::new().file("etc/name", "x").finish())
}

fn host() -> Host {
    Host::with(ImageConfig {
        stall_timeout_seconds: 5,
        request_attempts: 1,
        ..ImageConfig::default()
    })
}

/// Pulls `a` from a registry whose `hosts.toml` is `file`, with `$SERVER` for its address.
async fn pulled(registry: &Registry, file: &str) -> Result<(), ImageError> {
    let host = host();
    host.hosts(
        &registry.name(),
        &file.replace("$SERVER", &format!("https://{}", registry.name())),
    );
    let pulled = pull(&host.open(), &format!("{}/a", registry.name())).await;
    pulled.map(drop)
}

fn refused(error: &ImageError, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
}

#[tokio::test]
async fn a_certificate_is_taken_where_its_authority_is_named() {
    let (authority, other) = (Authority::new("ours"), Authority::new("others"));
    let registry = Registry::start_tls(authority.server(LOOPBACK, None)).await;
    push(&registry, "a", "latest", &[layer()], json!({}));
    let (ca, wrong) = (authority.certificate(), other.certificate());
    let (ca, wrong) = (text(&ca), text(&wrong));
    for file in [
        format!("server = '$SERVER'\nca = '{ca}'"),
        format!("[host.'$SERVER']\nca = ['{wrong}', '{ca}']"),
        "server = '$SERVER'\nskip_verify = true".to_owned(),
        // TLS is tried first where there is something said about it.
        format!(
            "[host.'{}']\nca = '{ca}'",
            format_args!("http://{}", registry.name())
        ),
    ] {
        let pulled = pulled(&registry, &file).await;
        assert!(pulled.is_ok(), "{file}: {}", pulled.unwrap_err());
    }
    let host = host();
    host.registry_file(&registry.name(), "ours.crt", std::fs::read(ca).unwrap());
    pull(&host.open(), &format!("{}/a", registry.name()))
        .await
        .unwrap();

    let place = format!("{}/hosts.toml", registry.name());
    for file in [
        "server = '$SERVER'".to_owned(),
        format!("server = '$SERVER'\nca = '{wrong}'"),
    ] {
        let error = pulled(&registry, &file).await.unwrap_err();
        refused(
            &error,
            ErrorKind::Untrusted,
            &["not trusted", "`ca`", "skip_verify = true", &place],
        );
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_not_taken() {
    let authority = Authority::new("ours");
    let registry = Registry::start_tls(authority.server("DNS:other.example", None)).await;
    push(&registry, "a", "latest", &[layer()], json!({}));
    let file = format!("server = '$SERVER'\nca = '{}'", text(&authority.certificate()));
    let error = pulled(&registry, &file).await.unwrap_err();
    refused(&error, ErrorKind::Untrusted, &["not trusted", "127.0.0.1"]);
    pulled(&registry, &format!("{file}\nskip_verify = true"))
        .await
        .unwrap();
}

#[tokio::test]
async fn files_that_are_no_certificates_are_named() {
    let authority = Authority::new("ours");
    let registry = Registry::start_tls(authority.server(LOOPBACK, None)).await;
    let (one, two) = (authority.sign("one", "DNS:x"), authority.sign("two", "DNS:x"));
    let (certificate, key) = (text(&one.certificate), text(&one.key));
    let garbage = "/proc/self/status";
    for (line, words) in [
        (
            "ca = '/nonexistent.crt'".to_owned(),
            &["/nonexistent.crt", "No such file"][..],
        ),
        (format!("ca = '{garbage}'"), &[garbage, "no certificate in it"]),
        (format!("ca = '{key}'"), &[key, "no certificate in it"]),
        (
            format!("client = '{certificate}'"),
            &[certificate, "no private key"],
        ),
        (
            format!("client = [['{key}', '{key}']]"),
            &[key, "no certificate in it"],
        ),
        (
            format!("client = [['{certificate}', '{}']]", text(&two.key)),
            &[certificate, "no key for the certificate"],
        ),
    ] {
        let error = pulled(&registry, &format!("server = '$SERVER'\n{line}"))
            .await
            .unwrap_err();
        refused(&error, ErrorKind::Misconfigured, words);
    }
}

#[tokio::test]
async fn a_registry_without_tls_is_told_from_one_that_is_not_there() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // As web servers answer what is no request.
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    let host = host();
    host.hosts(&name, &format!("server = 'https://{name}'"));
    let error = pull(&host.open(), &format!("{name}/a")).await.unwrap_err();
    refused(
        &error,
        ErrorKind::Unavailable,
        &["does not speak TLS", "images.plain_http_registries"],
    );
}

#[tokio::test]
async fn who_we_are_is_shown_to_the_registry_and_not_to_its_storage() {
    let (authority, clients, others) = (
        Authority::new("ours"),
        Authority::new("clients"),
        Authority::new("others"),
    );
    let registry = Registry::start_tls(authority.server(LOOPBACK, Some(&clients))).await;
    let storage = Registry::start_tls(authority.server(LOOPBACK, Some(&clients))).await;
    push(&registry, "a", "latest", &[layer()], json!({}));
    storage.set("/data", Answer::ok("x", layer().blob));
    let location = format!("https://localhost:{}/data", storage.address.port());
    registry.set(
        &format!("/v2/a{}", layer().path_end()),
        Answer::status(307, &[("Location", location)], ""),
    );
    registry.guard(|request| (!request.certified).then(|| Answer::status(403, &[], "{}")));
    let (ours, foreign) = (clients.sign("me", "DNS:me"), others.sign("me", "DNS:me"));
    let directory = tempfile::tempdir().unwrap();
    let both = directory.path().join("both.pem");
    std::fs::write(&both, joined(&ours.certificate, &ours.key)).unwrap();
    let pair = |signed: &crate::authority::Signed| {
        format!("['{}', '{}']", text(&signed.certificate), text(&signed.key))
    };
    let ca = format!("server = '$SERVER'\nca = '{}'\n", text(&authority.certificate()));
    for client in [
        format!("client = [{}]", pair(&ours)),
        // Of several, the one whose authority the registry trusts.
        format!("client = [{}, {}]", pair(&foreign), pair(&ours)),
        format!("client = '{}'", text(&both)),
        format!("client = ['{}']", text(&both)),
        format!("client = [['{}', '']]", text(&both)),
    ] {
        let pulled = pulled(&registry, &format!("{ca}{client}")).await;
        assert!(pulled.is_ok(), "{client}: {}", pulled.unwrap_err());
    }
    assert_eq!(storage.requests().len(), 5);
    assert!(storage.requests().iter().all(|request| !request.certified));
    assert!(registry.requests().iter().all(|request| request.certified));

    let error = pulled(&registry, &ca).await.unwrap_err();
    refused(&error, ErrorKind::Forbidden, &["403"]);
    let error = pulled(&registry, &format!("{ca}client = [{}]", pair(&foreign)))
        .await
        .unwrap_err();
    refused(
        &error,
        ErrorKind::Unavailable,
        &["TLS handshake", "`client`", "hosts.toml"],
    );
}

#[tokio::test]
async fn a_redirect_does_not_lead_out_of_tls() {
    let authority = Authority::new("ours");
    let registry = Registry::start_tls(authority.server(LOOPBACK, None)).await;
    let storage = Registry::start().await;
    push(&registry, "a", "latest", &[layer()], json!({}));
    storage.set("/data", Answer::ok("x", layer().blob));
    let location = format!("http://{}/data", storage.name());
    registry.set(
        &format!("/v2/a{}", layer().path_end()),
        Answer::status(307, &[("Location", location)], ""),
    );
    let file = format!("server = '$SERVER'\nca = '{}'", text(&authority.certificate()));
    let error = pulled(&registry, &file).await.unwrap_err();
    refused(
        &error,
        ErrorKind::Unavailable,
        &["redirects", "from https to http"],
    );
    assert!(storage.requests().is_empty());
}
