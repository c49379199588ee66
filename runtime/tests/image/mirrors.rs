//! Registries reached by other hosts than themselves, as `hosts.toml` has it, and what each of them is shown.

use bulkhead_runtime::image::{Credentials, ErrorKind, ImageConfig, ImageError, Secret};
use serde_json::json;

use crate::build::{Archive, BuiltLayer, push};
use crate::host::{Host, pull, pull_with};
use crate::registry::{Answer, Registry, Request};

fn layer(name: &str) -> BuiltLayer {
    BuiltLayer::gzip(Archive::new().file("etc/name", name).finish())
}

fn host() -> Host {
    Host::with(ImageConfig {
        stall_timeout_seconds: 5,
        request_attempts: 1,
        ..ImageConfig::default()
    })
}

/// The address of a port on loopback that nobody listens on.
fn unused() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn password(server: Option<&str>, username: &str) -> Credentials {
    Credentials {
        server: server.map(str::to_owned),
        secret: Secret::Password {
            username: username.into(),
            password: "secret".into(),
        },
    }
}

/// Lets nobody in who does not show what base64 has for `user:secret`.
fn guard(registry: &Registry, expected: &'static str) {
    registry.guard(move |request| match request.header("authorization") {
        Some(shown) if shown == expected => None,
        _ => Some(Answer::status(
            401,
            &[("WWW-Authenticate", "Basic realm=\"x\"".into())],
            "{}",
        )),
    });
}

fn shown(requests: &[Request]) -> Vec<String> {
    let header = |request: &Request| request.header("authorization").map(str::to_owned);
    requests.iter().filter_map(header).collect()
}

const OF_MIRROR: &str = "Basic bWlycm9yOnNlY3JldA==";
const OF_ORIGIN: &str = "Basic b3JpZ2luOnNlY3JldA==";

#[tokio::test]
async fn a_mirror_is_asked_first_and_told_whose_content_is_wanted() {
    let mirror = Registry::start().await;
    push(&mirror, "team/app", "v1", &[layer("x")], json!({}));
    let host = host();
    host.hosts("r.invalid_5000_", &format!("[host.'http://{}']", mirror.name()));
    let store = host.open();
    pull(&store, "r.invalid:5000/team/app:v1").await.unwrap();
    assert_eq!(store.list()[0].repo_tags, ["r.invalid:5000/team/app:v1"]);
    let requests = mirror.requests();
    assert_eq!(requests.len(), 3);
    for request in requests {
        assert!(
            request.target.ends_with("?ns=r.invalid%3A5000"),
            "{}",
            request.target
        );
    }
}

#[tokio::test]
async fn a_path_may_come_before_the_repository_and_stand_for_the_api() {
    let mirror = Registry::start().await;
    push(&mirror, "team/app", "v1", &[layer("x")], json!({}));
    for (path, options) in [
        ("/proxy", "override_path = false"),
        ("/other/api", "override_path = true"),
    ] {
        let host = host();
        host.hosts(
            "r.invalid",
            &format!("server = 'http://{}{path}'\n{options}", mirror.name()),
        );
        let error = pull(&host.open(), "r.invalid/team/app:v1").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let asked = mirror.requests().pop().unwrap().target;
        let end = if path == "/proxy" { "/v2" } else { "" };
        assert!(
            asked.starts_with(&format!("{path}{end}/team/app/manifests/v1?")),
            "{asked}"
        );
    }
}

#[tokio::test]
async fn a_mirror_that_fails_is_passed_over() {
    let unused = unused();
    let (origin, mirror) = (Registry::start().await, Registry::start().await);
    push(&origin, "a", "latest", &[layer("x")], json!({}));
    push(&mirror, "a", "latest", &[layer("x")], json!({}));
    for (address, status) in [
        (unused.clone(), 0),
        (mirror.name(), 404),
        (mirror.name(), 401),
        (mirror.name(), 403),
        (mirror.name(), 429),
        (mirror.name(), 500),
    ] {
        mirror.guard(move |_| Some(Answer::status(status, &[], "{}")));
        let host = host();
        host.hosts(&origin.name(), &format!("[host.'http://{address}']"));
        let pulled = pull(&host.open(), &format!("{}/a", origin.name())).await;
        assert!(pulled.is_ok(), "{status}: {}", pulled.unwrap_err());
    }
    // So is one whose content is not what it should be, where that is seen at once.
    let damaged = Registry::start().await;
    let image = push(&damaged, "a", "latest", &[layer("x")], json!({}));
    let mut config = image.config.clone();
    *config.last_mut().unwrap() ^= 1;
    damaged.set(&format!("/v2/a/blobs/{}", image.id()), Answer::ok("x", config));
    let by_mirror = host();
    by_mirror.hosts(&origin.name(), &format!("[host.'http://{}']", damaged.name()));
    pull(&by_mirror.open(), &format!("{}/a", origin.name()))
        .await
        .unwrap();
    // What has no layer, though it has the manifest, is passed over for the layer.
    let partial = Registry::start().await;
    push(&partial, "a", "latest", &[layer("x")], json!({}));
    let path = format!("/v2/a{}", layer("x").path_end());
    partial.set(&path, Answer::status(404, &[], "{}"));
    let (host, asked) = (host(), origin.requests().len());
    host.hosts(&origin.name(), &format!("[host.'http://{}']", partial.name()));
    pull(&host.open(), &format!("{}/a", origin.name())).await.unwrap();
    assert_eq!(origin.requests().len(), asked + 1);
}

#[tokio::test]
async fn when_all_fail_each_is_named_with_its_reason() {
    let unused = unused();
    let (one, two) = (Registry::start().await, Registry::start().await);
    one.set("/v2/a/manifests/latest", Answer::status(500, &[], "{}"));
    let host = host();
    host.hosts(
        &two.name(),
        &format!("[host.'http://{unused}']\n[host.'http://{}']", one.name()),
    );
    let error = pull(&host.open(), &format!("{}/a", two.name()))
        .await
        .unwrap_err();
    let (message, name) = (error.to_string(), two.name());
    // The registry itself has the last word.
    assert_eq!(error.kind(), ErrorKind::NotFound, "{message}");
    for word in [
        &format!("no host of registry {name}"),
        &format!("(1) registry {unused} (for {name}) cannot be reached: Connection refused"),
        &format!("(2) registry {} (for {name}) answered", one.name()),
        "500",
        &format!("(3) its manifest with the tag latest is not in registry {name}"),
    ] {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    assert_eq!(message.matches("/a:latest").count(), 1, "{message}");
}

#[tokio::test]
async fn only_who_may_resolve_says_what_a_tag_means() {
    let (origin, mirror) = (Registry::start().await, Registry::start().await);
    let image = push(&origin, "a", "latest", &[layer("right")], json!({}));
    push(&mirror, "a", "latest", &[layer("wrong")], json!({}));
    push(&mirror, "a", "other", &[layer("right")], json!({}));
    let host = host();
    let only = |capability: &str| {
        format!(
            "[host.'http://{}']\ncapabilities = ['{capability}']",
            mirror.name()
        )
    };
    host.hosts(&origin.name(), &only("pull"));
    let store = host.open();
    let id = pull(&store, &format!("{}/a", origin.name())).await.unwrap();
    assert_eq!(id.to_string(), image.id());
    assert_eq!(
        origin.requests().len(),
        1,
        "all but the tag comes from the mirror"
    );
    assert_eq!(mirror.asked("/manifests/latest"), 0);

    // Of a registry without any host that may, the message says what to write where.
    host.hosts(
        "r.invalid",
        &format!("server = 'http://{}'\ncapabilities = ['pull']", mirror.name()),
    );
    let error = pull(&store, "r.invalid/a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error}");
    for word in [
        "\"resolve\"",
        "r.invalid/hosts.toml",
        "no host of registry r.invalid",
    ] {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
}

#[tokio::test]
async fn files_are_read_for_each_pull_and_mistakes_told() {
    let registry = Registry::start().await;
    push(&registry, "a", "latest", &[layer("x")], json!({}));
    let host = host();
    let store = host.open();
    host.hosts("_default", "[host.'http://127.0.0.1:1']\nskip_verfy = true");
    let error = pull(&store, "r.invalid/a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error}");
    let file = host.config.registry_config_dir.join("_default/hosts.toml");
    for word in [
        file.to_str().unwrap(),
        "line 2",
        "skip_verfy",
        "image r.invalid/a:latest",
    ] {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
    host.hosts("_default", &format!("server = 'http://{}'", registry.name()));
    pull(&store, "r.invalid/a").await.unwrap();
}

#[tokio::test]
async fn credentials_go_to_the_host_that_they_are_for_alone() {
    let (origin, mirror) = (Registry::start().await, Registry::start().await);
    for registry in [&origin, &mirror] {
        push(registry, "a", "latest", &[layer("x")], json!({}));
    }
    guard(&mirror, OF_MIRROR);
    guard(&origin, OF_ORIGIN);
    let name = format!("{}/a", origin.name());
    let file = format!("[host.'http://{}']", mirror.name());

    // Those that name no server are for the registry in the image's name.
    for server in [None, Some(origin.name())] {
        let host = host();
        host.hosts(&origin.name(), &file);
        let credentials = password(server.as_deref(), "origin");
        pull_with(&host.open(), &name, Some(credentials)).await.unwrap();
        assert_eq!(shown(&mirror.requests()), Vec::<String>::new());
    }
    let asked = origin.requests().len();
    let host = host();
    host.hosts(&origin.name(), &file);
    let credentials = password(Some(&format!("http://{}/v2/", mirror.name())), "mirror");
    pull_with(&host.open(), &name, Some(credentials)).await.unwrap();
    assert_eq!(origin.requests().len(), asked);
    assert_eq!(shown(&mirror.requests()), [OF_MIRROR; 3]);
}

/// Writes Docker's file with credentials for `registries`, and gives a host that uses it.
fn host_with_docker_config(registries: &[(&Registry, &str)], more: &str) -> Host {
    let auths: serde_json::Map<String, serde_json::Value> = registries
        .iter()
        .map(|(registry, username)| {
            (
                registry.name(),
                json!({"username": username, "password": "secret"}),
            )
        })
        .collect();
    let mut host = host();
    let path = host.path().join("config.json");
    let text = format!("{{\"auths\": {}{more}}}", json!(auths));
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    host.config.docker_config = path;
    host
}

#[tokio::test]
async fn dockers_file_serves_hosts_that_a_pull_has_nothing_for() {
    let (origin, mirror) = (Registry::start().await, Registry::start().await);
    for registry in [&origin, &mirror] {
        push(registry, "a", "latest", &[layer("x")], json!({}));
    }
    guard(&mirror, OF_MIRROR);
    guard(&origin, OF_ORIGIN);
    let name = format!("{}/a", origin.name());
    // The mirror's are in the file, and the registry's own come with the pull.
    let host = host_with_docker_config(&[(&mirror, "mirror"), (&origin, "wrong")], "");
    host.hosts(
        &origin.name(),
        &format!("[host.'http://{}']\ncapabilities = ['pull']", mirror.name()),
    );
    pull_with(&host.open(), &name, Some(password(None, "origin")))
        .await
        .unwrap();
    assert_eq!(shown(&origin.requests()), [OF_ORIGIN]);
    assert_eq!(shown(&mirror.requests()), [OF_MIRROR; 2]);

    let host = host_with_docker_config(&[(&origin, "origin")], "");
    pull(&host.open(), &name).await.unwrap();
}

fn refused(error: &ImageError, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
}

#[tokio::test]
async fn what_keeps_dockers_file_from_being_used_is_said() {
    let origin = Registry::start().await;
    push(&origin, "a", "latest", &[layer("x")], json!({}));
    let name = format!("{}/a", origin.name());
    let helpers = format!(", \"credHelpers\": {{\"{}\": \"vault\"}}", origin.name());
    let host = host_with_docker_config(&[], &helpers);
    // Where nothing is asked for, nothing is missed.
    pull(&host.open(), &name).await.unwrap();
    guard(&origin, OF_ORIGIN);
    let error = pull(&host.open(), &name).await.unwrap_err();
    refused(
        &error,
        ErrorKind::Unauthorized,
        &["helper \"vault\"", "not run", "config.json"],
    );

    let mut host = host_with_docker_config(&[(&origin, "origin")], "");
    std::fs::set_permissions(
        &host.config.docker_config,
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    let error = pull(&host.open(), &name).await.unwrap_err();
    refused(
        &error,
        ErrorKind::Misconfigured,
        &["0644", "chmod", "images.docker_config"],
    );
    host.config.docker_config = host.path().join("absent.json");
    let error = pull(&host.open(), &name).await.unwrap_err();
    refused(&error, ErrorKind::Misconfigured, &["absent.json", "No such file"]);
}

#[tokio::test]
async fn headers_and_credentials_stay_behind_at_a_redirect() {
    let (registry, storage) = (Registry::start().await, Registry::start().await);
    let layer = layer("x");
    push(&registry, "a", "latest", &[layer.clone()], json!({}));
    storage.set("/data", Answer::ok("x", layer.blob.clone()));
    let at = |server: &Registry, path: &str| format!("http://localhost:{}{path}", server.address.port());
    // Elsewhere, and from there back: who was elsewhere is not trusted with what was left behind.
    let back = format!("http://{}/back", registry.name());
    storage.set("/there", Answer::status(307, &[("Location", back)], ""));
    registry.set(
        "/back",
        Answer::status(302, &[("Location", at(&storage, "/data"))], ""),
    );
    registry.set(
        &format!("/v2/a{}", layer.path_end()),
        Answer::status(307, &[("Location", at(&storage, "/there"))], ""),
    );
    let host = host();
    host.hosts(
        &registry.name(),
        &format!(
            "server = 'http://{}'\n[header]\nx-secret = ['one', 'two']",
            registry.name()
        ),
    );
    let token = Credentials {
        server: None,
        secret: Secret::RegistryToken("token".into()),
    };
    pull_with(&host.open(), &format!("{}/a", registry.name()), Some(token))
        .await
        .unwrap();
    let secrets =
        |request: &Request| request.header("authorization").is_some() || request.header("x-secret").is_some();
    assert_eq!(storage.requests().len(), 2);
    assert!(
        !storage.requests().iter().any(secrets),
        "{:?}",
        storage.requests()
    );
    for request in registry.requests() {
        assert_eq!(secrets(&request), request.target != "/back", "{request:?}");
    }
    let first = &registry.requests()[0];
    let values: Vec<_> = first
        .headers
        .iter()
        .filter(|(key, _)| key == "x-secret")
        .collect();
    assert_eq!(
        (values.len(), first.header("authorization")),
        (2, Some("Bearer token"))
    );
}

#[tokio::test]
async fn whoever_a_redirect_leads_to_cannot_ask_for_credentials() {
    let (registry, thief) = (Registry::start().await, Registry::start().await);
    let layer = layer("x");
    push(&registry, "a", "latest", &[layer.clone()], json!({}));
    let thief_at = |path: &str| format!("http://localhost:{}{path}", thief.address.port());
    let location = [("Location", thief_at("/data"))];
    registry.set(
        &format!("/v2/a{}", layer.path_end()),
        Answer::status(307, &location, ""),
    );
    for challenge in [
        "Basic realm=\"x\"".to_owned(),
        format!("Bearer realm=\"{}\"", thief_at("/token")),
    ] {
        thief.set(
            "/data",
            Answer::status(401, &[("WWW-Authenticate", challenge)], "{}"),
        );
        let credentials = password(None, "origin");
        let name = format!("{}/a", registry.name());
        let error = pull_with(&host().open(), &name, Some(credentials))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    }
    assert_eq!((thief.requests().len(), thief.asked("/token")), (2, 0));
    assert_eq!(shown(&thief.requests()), Vec::<String>::new());
}

#[tokio::test]
async fn a_token_server_cannot_send_secrets_elsewhere() {
    let (registry, thief) = (Registry::start().await, Registry::start().await);
    push(&registry, "a", "latest", &[layer("x")], json!({}));
    let realm = format!("Bearer realm=\"http://{}/token\"", registry.name());
    registry.guard(move |_| Some(Answer::status(401, &[("WWW-Authenticate", realm.clone())], "{}")));
    let location = [("Location", format!("http://{}/token", thief.name()))];
    registry.set("/token", Answer::status(307, &location, ""));
    for secret in [
        Secret::IdentityToken("refresh".into()),
        password(None, "origin").secret,
    ] {
        let credentials = Credentials { server: None, secret };
        let name = format!("{}/a", registry.name());
        let error = pull_with(&host().open(), &name, Some(credentials))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("an access token with 307"), "{error}");
    }
    assert!(thief.requests().is_empty());
}
