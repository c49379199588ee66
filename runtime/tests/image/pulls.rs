//! Pulls that succeed, alone and together.

use bulkhead_runtime::image::{Credentials, Digest, ImageUser, Secret};
use serde_json::json;
use tokio::sync::watch;

use crate::build::{Archive, BuiltLayer, OCI_INDEX, OCI_MANIFEST, push, push_manifest};
use crate::host::{Host, pull, pull_with};
use crate::registry::{Answer, Registry};

fn layer(name: &str) -> BuiltLayer {
    BuiltLayer::gzip(Archive::new().directory("etc/").file("etc/name", name).finish())
}

#[tokio::test]
async fn a_pulled_image_is_found_by_every_name() {
    let registry = Registry::start().await;
    let archive = |name: &str| Archive::new().file(name, vec![b'x'; 10_000]).finish();
    let layers = [
        BuiltLayer::plain(archive("a")),
        BuiltLayer::gzip(archive("b")),
        BuiltLayer::zstd(archive("c")),
    ];
    let container = json!({"User": "1003:1004", "Env": ["A=b"], "Cmd": ["top"], "Volumes": {"/data": {}}});
    let image = push(&registry, "team/app", "v1", &layers, container);

    let host = Host::new();
    let store = host.open();
    let name = format!("{}/team/app", registry.name());
    let id = pull(&store, &format!("{name}:v1")).await.unwrap();
    assert_eq!(id.to_string(), image.id());

    let listed = store.list();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].repo_tags, [format!("{name}:v1")]);
    assert_eq!(listed[0].repo_digests, [format!("{name}@{}", image.digest())]);
    assert_eq!(listed[0].config.user(), ImageUser::Uid(1003));
    assert_eq!(
        (&listed[0].config.cmd, &listed[0].config.volumes),
        (&vec!["top".into()], &vec!["/data".into()])
    );
    assert!(listed[0].size_bytes > 3 * 12_000, "{}", listed[0].size_bytes);
    let diff_ids: Vec<_> = listed[0].layers.iter().map(|layer| layer.diff_id).collect();
    assert_eq!(diff_ids, layers.each_ref().map(|layer| layer.diff_id));
    assert_eq!(store.config_json(&listed[0]).unwrap(), image.config);

    let id = image.id();
    for name in [
        &format!("{name}:v1"),
        &format!("{name}@{}", image.digest()),
        &id,
        &id[7..],
        &id[..20],
        &id[7..19],
    ] {
        assert_eq!(store.resolve(name).as_ref(), Some(&listed[0]), "{name}");
    }
    assert_eq!(store.resolve(&name), None, "the tag latest was never pulled");
    let usage = store.usage();
    assert_eq!(usage.inodes_used, 3);
    assert!(
        usage.used_bytes >= 36_864 && usage.mountpoint.starts_with(host.path()),
        "{usage:?}"
    );
    host.settled(3).await;
}

#[tokio::test]
async fn an_index_gives_the_image_of_this_platform_and_its_own_digest() {
    let registry = Registry::start().await;
    let image = push(&registry, "a", "amd64", &[layer("amd64")], json!({}));
    let entry = |digest, arch| {
        json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": image.manifest.len(),
        "platform": {"os": "linux", "architecture": arch}})
    };
    let entries = [
        entry(Digest::of(b"other"), "arm64"),
        entry(image.digest(), "amd64"),
    ];
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string();
    push_manifest(&registry, "a", "latest", OCI_INDEX, index.as_bytes());

    let host = Host::new();

    let store = host.open();
    let id = pull(&store, &format!("{}/a", registry.name())).await.unwrap();
    assert_eq!(id.to_string(), image.id());
    let digest = Digest::of(index.as_bytes());
    assert_eq!(
        store.list()[0].repo_digests,
        [format!("{}/a@{digest}", registry.name())]
    );

    // By digest there is no tag.
    let host = Host::new();
    let store = host.open();
    pull(&store, &format!("{}/a:ignored@{digest}", registry.name()))
        .await
        .unwrap();
    assert_eq!(store.list()[0].repo_tags, Vec::<String>::new());
    assert_eq!(
        store.list()[0].repo_digests,
        [format!("{}/a@{digest}", registry.name())]
    );
}

#[tokio::test]
async fn a_layer_that_is_here_is_not_downloaded_again() {
    let registry = Registry::start().await;
    let (shared, own) = (layer("shared"), layer("own"));
    push(&registry, "one", "latest", &[shared.clone()], json!({}));
    push(
        &registry,
        "two",
        "latest",
        &[shared.clone(), own.clone(), shared.clone()],
        json!({}),
    );
    let host = Host::new();
    let store = host.open();
    pull(&store, &format!("{}/one", registry.name())).await.unwrap();
    let id = pull(&store, &format!("{}/two", registry.name())).await.unwrap();
    assert_eq!(
        (
            registry.asked(&shared.path_end()),
            registry.asked(&own.path_end())
        ),
        (1, 1)
    );
    assert_eq!(store.resolve(&id.to_string()).unwrap().layers.len(), 3);
    host.settled(2).await;

    // Also not after a restart, nor when a tag is merely new.
    drop(store);
    let store = host.open();
    push(
        &registry,
        "two",
        "again",
        &[shared.clone(), own.clone(), shared.clone()],
        json!({}),
    );
    pull(&store, &format!("{}/two:again", registry.name()))
        .await
        .unwrap();
    assert_eq!(
        (
            registry.asked(&shared.path_end()),
            registry.asked(&own.path_end())
        ),
        (1, 1)
    );
    assert_eq!(store.resolve(&id.to_string()).unwrap().repo_tags.len(), 2);

    // The shared layer lives as long as one of them does.
    store.remove(&format!("{}/one", registry.name())).await.unwrap();
    host.settled(2).await;
    store.remove(&id.to_string()).await.unwrap();
    host.settled(0).await;
    assert_eq!(store.usage().used_bytes, 0);
}

#[tokio::test]
async fn concurrent_pulls_share_one_download() {
    let registry = Registry::start().await;
    let layer = layer("shared");
    let (open, gate) = watch::channel(false);
    for repository in ["a", "b"] {
        push(
            &registry,
            repository,
            "latest",
            &[layer.clone()],
            json!({"User": repository}),
        );
        let path = format!("/v2/{repository}{}", layer.path_end());
        registry.set(&path, Answer::Gated(gate.clone(), layer.blob.clone()));
    }
    let host = Host::new();
    let store = host.open();
    let pulls: Vec<_> = (0..10)
        .map(|i| {
            let store = store.clone();
            let reference = format!("{}/{}", registry.name(), if i % 2 == 0 { "a" } else { "b" });
            tokio::spawn(async move { pull(&store, &reference).await })
        })
        .collect();
    // All are past their configuration, so all wait for the layer.
    while registry
        .requests()
        .iter()
        .filter(|request| request.target.contains("/blobs/"))
        .count()
        < 11
    {
        tokio::task::yield_now().await;
    }
    open.send(true).unwrap();
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(registry.asked(&layer.path_end()), 1);
    assert_eq!(store.list().len(), 2);
    host.settled(1).await;
}

#[tokio::test]
async fn a_download_outlives_the_pull_that_began_it_but_not_the_last() {
    let registry = Registry::start().await;
    let layer = layer("x");
    let (open, gate) = watch::channel(false);
    push(&registry, "a", "latest", &[layer.clone()], json!({}));
    registry.set(
        &format!("/v2/a{}", layer.path_end()),
        Answer::Gated(gate, layer.blob.clone()),
    );
    let host = Host::new();
    let store = host.open();
    let start = || {
        let (store, reference) = (store.clone(), format!("{}/a", registry.name()));
        tokio::spawn(async move { pull(&store, &reference).await })
    };
    let first = start();
    while registry.asked(&layer.path_end()) == 0 {
        tokio::task::yield_now().await;
    }
    let second = start();
    while registry.asked("/manifests/latest") < 2 {
        tokio::task::yield_now().await;
    }
    // Past its configuration, the second one waits for the first one's download.
    while registry
        .requests()
        .iter()
        .filter(|request| request.target.contains("/blobs/"))
        .count()
        < 3
    {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    open.send(true).unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(registry.asked(&layer.path_end()), 1);

    store.remove(&format!("{}/a", registry.name())).await.unwrap();
    open.send(false).unwrap();
    let only = start();
    while registry.asked(&layer.path_end()) < 2 {
        tokio::task::yield_now().await;
    }
    only.abort();
    host.settled(0).await;
    assert!(store.list().is_empty());
}

#[tokio::test]
async fn a_moved_tag_leaves_its_old_image_without_it() {
    let registry = Registry::start().await;
    let host = Host::new();
    let store = host.open();
    let name = format!("{}/a:t", registry.name());
    push(&registry, "a", "t", &[layer("old")], json!({}));
    let old = pull(&store, &name).await.unwrap().to_string();
    push(&registry, "a", "t", &[layer("new")], json!({}));
    let new = pull(&store, &name).await.unwrap().to_string();
    assert_ne!(old, new);
    assert_eq!(store.resolve(&name).unwrap().id.to_string(), new);
    let old = store.resolve(&old).unwrap();
    assert_eq!((old.repo_tags.len(), old.repo_digests.len()), (0, 1));
}

#[tokio::test]
async fn the_same_image_from_two_registries_is_one() {
    let (one, two) = (Registry::start().await, Registry::start().await);
    let host = Host::new();
    let store = host.open();
    for registry in [&one, &two] {
        push(registry, "pause", "3.9", &[layer("pause")], json!({}));
        pull(&store, &format!("{}/pause:3.9", registry.name()))
            .await
            .unwrap();
    }
    assert_eq!(store.list().len(), 1);
    assert_eq!(
        (
            store.list()[0].repo_tags.len(),
            store.list()[0].repo_digests.len()
        ),
        (2, 2)
    );
    store.remove(&format!("{}/pause:3.9", one.name())).await.unwrap();
    assert!(store.list().is_empty() && store.resolve(&format!("{}/pause:3.9", two.name())).is_none());
}

fn credentials(secret: Secret) -> Credentials {
    Credentials { server: None, secret }
}

fn password(username: &str, password: &str) -> Credentials {
    credentials(Secret::Password {
        username: username.into(),
        password: password.into(),
    })
}

#[tokio::test]
async fn credentials_are_shown_in_the_form_that_is_asked_for() {
    let registry = Registry::start().await;
    push(&registry, "a", "latest", &[layer("x")], json!({}));
    let name = format!("{}/a", registry.name());
    let address = registry.name();
    // user:secret
    registry.guard(move |request| {
        let allowed = ["Basic dXNlcjpzZWNyZXQ=", "Bearer right"];
        if request
            .header("authorization")
            .is_some_and(|value| allowed.contains(&value))
        {
            return None;
        }
        let basic = "Basic realm=\"here\"".to_owned();
        let bearer = format!("Bearer realm=\"http://{address}/token\",service=\"reg\"");
        let asked = if request.target.contains("manifests") && request.header("x-basic").is_none() {
            bearer
        } else {
            basic
        };
        Some(Answer::status(401, &[("WWW-Authenticate", asked)], "{}"))
    });
    registry.route("/token", |request| {
        let right = match request.method.as_str() {
            "POST" => request.body == "service=reg&scope=repository%3Aa%3Apull&grant_type=refresh_token&refresh_token=refresh&client_id=bulkhead",
            _ => {
                request.target == "/token?service=reg&scope=repository%3Aa%3Apull"
                    && request.header("authorization") == Some("Basic dXNlcjpzZWNyZXQ=")
            }
        };
        if right { Answer::ok("application/json", r#"{"token":"right"}"#) } else { Answer::status(401, &[], "{}") }
    });
    for good in [
        password("user", "secret"),
        credentials(Secret::IdentityToken("refresh".into())),
        credentials(Secret::RegistryToken("right".into())),
    ] {
        let host = Host::new();
        let store = host.open();
        pull_with(&store, &name, Some(good)).await.unwrap();
    }
    for bad in [
        None,
        Some(password("user", "wrong")),
        Some(credentials(Secret::IdentityToken("old".into()))),
        Some(credentials(Secret::RegistryToken("wrong".into()))),
    ] {
        let host = Host::new();
        let store = host.open();
        let error = pull_with(&store, &name, bad).await.unwrap_err();
        assert_eq!(
            error.kind(),
            bulkhead_runtime::image::ErrorKind::Unauthorized,
            "{error}"
        );
        assert!(
            error.to_string().contains("image pull secret") && !error.to_string().contains("secret\""),
            "{error}"
        );
    }
    // A secret for another server is not shown.
    let mut elsewhere = password("user", "secret");
    elsewhere.server = Some("https://other.example/v2/".into());
    let asked_before = registry.requests().len();
    let host = Host::new();
    pull_with(&host.open(), &name, Some(elsewhere)).await.unwrap_err();
    assert!(
        registry.requests()[asked_before..]
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let (registry, storage) = (Registry::start().await, Registry::start().await);
    let layer = layer("x");
    push(&registry, "a", "latest", &[layer.clone()], json!({}));
    storage.set("/data", Answer::ok("x", layer.blob.clone()));
    let elsewhere = format!("http://localhost:{}/data", storage.address.port());
    let redirect = Answer::status(307, &[("Location", elsewhere)], "");
    registry.set(&format!("/v2/a{}", layer.path_end()), redirect);
    registry.guard(|request| match request.header("authorization") {
        Some(_) => None,
        None => Some(Answer::status(
            401,
            &[("WWW-Authenticate", "Basic realm=\"x\"".into())],
            "{}",
        )),
    });
    let host = Host::new();
    let store = host.open();
    pull_with(
        &store,
        &format!("{}/a", registry.name()),
        Some(password("user", "secret")),
    )
    .await
    .unwrap();
    let asked = storage.requests();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), None);
}
