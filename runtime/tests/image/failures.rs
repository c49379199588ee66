//! Pulls that fail: each says why and what to do, and leaves nothing.

use bulkhead_runtime::image::{Digest, ErrorKind, ImageConfig};
use serde_json::json;

use crate::build::{
    Archive, BuiltLayer, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, push, push_manifest, push_with_config,
};
use crate::host::{Host, pull};
use crate::registry::{Answer, Registry};
use crate::tools::{run, text};

/// Pulls `a` and expects it to fail like this, leaving nothing; then serves it well and expects it to succeed.
async fn fails(registry: &Registry, config: ImageConfig, kind: ErrorKind, words: &[&str]) {
    let host = Host::with(config);
    let store = host.open();
    let reference = format!("{}/a", registry.name());
    let error = pull(&store, &reference).await.expect_err("the pull must fail");
    let message = error.to_string();
    assert_eq!(error.kind(), kind, "{message}");
    for word in words.iter().copied().chain([reference.as_str()]) {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    host.settled(0).await;
    assert!(store.list().is_empty());
    drop(store);
    assert!(host.open().list().is_empty());
}

fn quick() -> ImageConfig {
    ImageConfig {
        stall_timeout_seconds: 1,
        connect_timeout_seconds: 1,
        request_attempts: 1,
        ..ImageConfig::default()
    }
}

fn layer() -> BuiltLayer {
    let noise: Vec<u8> = (0..200_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    BuiltLayer::gzip(Archive::new().file("noise", noise).finish())
}

fn layer_path(layer: &BuiltLayer) -> String {
    format!("/v2/a{}", layer.path_end())
}

#[tokio::test]
async fn damaged_layers_are_refused() {
    let registry = Registry::start().await;
    let good = layer();
    let digest = good.digest().to_string();
    push(&registry, "a", "latest", &[good.clone()], json!({}));

    let mut flipped = good.blob.clone();
    *flipped.last_mut().unwrap() ^= 1;
    registry.set(&layer_path(&good), Answer::ok("x", flipped));
    fails(
        &registry,
        quick(),
        ErrorKind::Corrupt,
        &[&digest, "damaged or forged"],
    )
    .await;
    let mut flipped = good.blob.clone();
    flipped[5000] ^= 1;
    registry.set(&layer_path(&good), Answer::ok("x", flipped));
    fails(
        &registry,
        quick(),
        ErrorKind::Corrupt,
        &[&digest, "damaged or forged"],
    )
    .await;

    let half = good.blob[..good.blob.len() / 2].to_vec();
    let (length, half_length) = (good.blob.len(), half.len());
    registry.set(&layer_path(&good), Answer::ok("x", half.clone()));
    fails(
        &registry,
        quick(),
        ErrorKind::Corrupt,
        &[
            &digest,
            &format!("has {half_length} bytes"),
            &format!("instead of {length}"),
        ],
    )
    .await;
    registry.set(&layer_path(&good), Answer::Unmeasured(half.clone()));
    fails(
        &registry,
        quick(),
        ErrorKind::Unavailable,
        &[
            &digest,
            &format!("ended after {half_length} of {length} bytes"),
            "check its name, the network",
        ],
    )
    .await;
    registry.set(&layer_path(&good), Answer::Cut(length, half.clone()));
    fails(
        &registry,
        quick(),
        ErrorKind::Unavailable,
        &[
            &digest,
            "connection broke",
            &format!("{half_length} of {length} bytes had come"),
        ],
    )
    .await;
    registry.set(&layer_path(&good), Answer::Stalled(length, half.clone()));
    fails(
        &registry,
        quick(),
        ErrorKind::Unavailable,
        &[&digest, "no byte", "stall_timeout_seconds"],
    )
    .await;
    registry.set(&layer_path(&good), Answer::Endless(half));
    fails(&registry, quick(), ErrorKind::Corrupt, &[&digest, "more than"]).await;
    registry.set(
        &layer_path(&good),
        Answer::ok("x", [good.blob.clone(), vec![0]].concat()),
    );
    let longer = format!("has {} bytes", length + 1);
    fails(
        &registry,
        quick(),
        ErrorKind::Corrupt,
        &[&digest, &longer, "damaged or forged"],
    )
    .await;
    registry.set(
        &layer_path(&good),
        Answer::Unmeasured([good.blob.clone(), vec![0]].concat()),
    );
    fails(&registry, quick(), ErrorKind::Corrupt, &[&digest, "more than"]).await;
    registry.set(&layer_path(&good), Answer::status(404, &[], "{}"));
    fails(
        &registry,
        quick(),
        ErrorKind::NotFound,
        &[&digest, "is not in registry"],
    )
    .await;

    registry.set(&layer_path(&good), Answer::ok("x", good.blob.clone()));
    let host = Host::new();
    pull(&host.open(), &format!("{}/a", registry.name()))
        .await
        .unwrap();
}

#[tokio::test]
async fn layers_that_were_never_whole_are_refused() {
    let registry = Registry::start().await;
    let archive = Archive::new().file("f", vec![7; 100_000]).finish();

    // Compressed data that is damaged though its digest is right.
    let mut damaged = layer();
    damaged.blob[5000] ^= 1;
    push(&registry, "a", "latest", &[damaged], json!({}));
    fails(
        &registry,
        quick(),
        ErrorKind::Corrupt,
        &["gzip data cannot be decompressed", "build and push"],
    )
    .await;
    let mut damaged = BuiltLayer::zstd(archive.clone());
    damaged.blob.truncate(damaged.blob.len() - 3);
    push(&registry, "a", "latest", &[damaged], json!({}));
    fails(
        &registry,
        quick(),
        ErrorKind::Corrupt,
        &["zstd data cannot be decompressed"],
    )
    .await;

    let cut = BuiltLayer::gzip(archive[..50_000].to_vec());
    push(&registry, "a", "latest", &[cut], json!({}));
    fails(
        &registry,
        quick(),
        ErrorKind::Corrupt,
        &["tar archive ends at byte 50000"],
    )
    .await;
    let noise = BuiltLayer::plain(vec![b'x'; 4096]);
    push(&registry, "a", "latest", &[noise], json!({}));
    fails(&registry, quick(), ErrorKind::Corrupt, &["malformed at byte 512"]).await;

    let mut other = BuiltLayer::gzip(archive);
    other.diff_id = Digest::of(b"something else");
    push(&registry, "a", "latest", &[other], json!({}));
    fails(
        &registry,
        quick(),
        ErrorKind::Corrupt,
        &["has diff ID", "configuration states"],
    )
    .await;

    let escape = BuiltLayer::gzip(Archive::new().file("../../etc/cron.d/evil", "x").finish());
    push(&registry, "a", "latest", &[escape.clone()], json!({}));
    let digest = escape.digest().to_string();
    fails(
        &registry,
        quick(),
        ErrorKind::Corrupt,
        &[&digest, "../../etc/cron.d/evil", "leads upwards"],
    )
    .await;
}

#[tokio::test]
async fn limits_hold() {
    let registry = Registry::start().await;
    let zeros = BuiltLayer::gzip(Archive::new().file("zeros", vec![0; 3 << 20]).finish());
    push(&registry, "a", "latest", &[zeros], json!({}));
    let small = ImageConfig {
        max_layer_bytes: 2 << 20,
        ..quick()
    };
    fails(
        &registry,
        small.clone(),
        ErrorKind::TooLarge,
        &["2097152 bytes", "raise images.max_layer_bytes"],
    )
    .await;

    // An archive without end, and a file that is all hole.
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 64 << 20), &mut bomb).unwrap();
    let bomb = BuiltLayer {
        blob: bomb.finish().unwrap(),
        diff_id: Digest::of(b""),
        media_type: format!("{OCI_LAYER}+gzip"),
    };
    push(&registry, "a", "latest", &[bomb], json!({}));
    fails(
        &registry,
        small.clone(),
        ErrorKind::TooLarge,
        &["raise images.max_layer_bytes"],
    )
    .await;
    let records: &[(&str, &[u8])] = &[
        ("GNU.sparse.map", b"0,1"),
        ("GNU.sparse.size", b"1099511627776"),
        ("GNU.sparse.name", b"huge"),
    ];
    let sparse = BuiltLayer::gzip(Archive::new().pax(records).file("huge", "x").finish());
    push(&registry, "a", "latest", &[sparse], json!({}));
    fails(
        &registry,
        small,
        ErrorKind::TooLarge,
        &["raise images.max_layer_bytes"],
    )
    .await;

    let many = (0..50).fold(Archive::new(), |archive, i| archive.file(&format!("d{i}/f"), ""));
    push(
        &registry,
        "a",
        "latest",
        &[BuiltLayer::gzip(many.finish())],
        json!({}),
    );
    let few = ImageConfig {
        max_layer_entries: 99,
        ..quick()
    };
    fails(
        &registry,
        few,
        ErrorKind::TooLarge,
        &["99 entries", "raise images.max_layer_entries"],
    )
    .await;
    let enough = Host::with(ImageConfig {
        max_layer_entries: 100,
        ..quick()
    });
    pull(&enough.open(), &format!("{}/a", registry.name()))
        .await
        .unwrap();

    let layers: Vec<_> = (0..4)
        .map(|i| BuiltLayer::gzip(Archive::new().file(&format!("{i}"), "").finish()))
        .collect();
    push(&registry, "a", "latest", &layers, json!({}));
    let few = ImageConfig {
        max_image_layers: 3,
        ..quick()
    };
    fails(
        &registry,
        few,
        ErrorKind::TooLarge,
        &["3 layers", "max_image_layers"],
    )
    .await;
    let layers = [&layers[..], &layers, &layers].concat();
    let image = push(
        &registry,
        "a",
        "latest",
        &layers,
        json!({"Labels": {"l": "x".repeat(5000)}}),
    );
    let small = ImageConfig {
        max_config_bytes: 4096,
        ..quick()
    };
    fails(
        &registry,
        small,
        ErrorKind::TooLarge,
        &["its configuration", "max_config_bytes"],
    )
    .await;
    assert!(image.manifest.len() > 1024);
    let small = ImageConfig {
        max_manifest_bytes: 1024,
        ..quick()
    };
    fails(
        &registry,
        small,
        ErrorKind::TooLarge,
        &["its manifest", "max_manifest_bytes"],
    )
    .await;
    registry.set("/v2/a/manifests/latest", Answer::Endless(vec![b' '; 1000]));
    fails(
        &registry,
        quick(),
        ErrorKind::TooLarge,
        &["its manifest", "max_manifest_bytes"],
    )
    .await;
}

#[tokio::test]
async fn documents_that_are_not_what_they_should_be_are_refused() {
    let registry = Registry::start().await;
    let image = push(&registry, "a", "latest", &[layer()], json!({}));
    let manifest = String::from_utf8(image.manifest).unwrap();

    registry.set("/v2/a/manifests/latest", Answer::ok(OCI_MANIFEST, "<html>"));
    fails(
        &registry,
        quick(),
        ErrorKind::Corrupt,
        &["its manifest is malformed"],
    )
    .await;
    let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    registry.set("/v2/a/manifests/latest", Answer::ok(signed, "{}"));
    fails(
        &registry,
        quick(),
        ErrorKind::Unsupported,
        &["schema 1", "push it again"],
    )
    .await;
    let artifact = manifest.replace(OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json");
    registry.set("/v2/a/manifests/latest", Answer::ok(OCI_MANIFEST, artifact));
    fails(
        &registry,
        quick(),
        ErrorKind::Unsupported,
        &["helm", "no container image"],
    )
    .await;
    let two = manifest.replace(
        "\"layers\":[",
        &format!(
            "\"layers\":[{{\"mediaType\":\"{OCI_LAYER}\",\"digest\":\"{}\",\"size\":1}},",
            Digest::of(b"x")
        ),
    );
    registry.set("/v2/a/manifests/latest", Answer::ok(OCI_MANIFEST, two));
    fails(
        &registry,
        quick(),
        ErrorKind::Corrupt,
        &["2 layers but its configuration 1"],
    )
    .await;

    // Indexes: for others only, and in a circle.
    let entry = |arch: &str, digest| json!({"mediaType": "x", "digest": digest, "size": 3, "platform": {"os": "linux", "architecture": arch}});
    let arm = json!({"manifests": [entry("arm64", Digest::of(b"x"))]}).to_string();
    registry.set("/v2/a/manifests/latest", Answer::ok("x", arm));
    fails(
        &registry,
        quick(),
        ErrorKind::Unsupported,
        &["not made for linux/amd64, only for linux/arm64"],
    )
    .await;
    let mut index = json!({"manifests": [entry("amd64", image_digest(&manifest))]}).to_string();
    for _ in 0..5 {
        push_manifest(&registry, "a", "latest", "x", index.as_bytes());
        index = json!({"manifests": [entry("amd64", Digest::of(index.as_bytes()))]}).to_string();
    }
    fails(&registry, quick(), ErrorKind::Corrupt, &["more than 3 indexes"]).await;

    let forged = json!({"manifests": [entry("amd64", Digest::of(b"what was meant"))]}).to_string();
    push_manifest(&registry, "a", "latest", "x", forged.as_bytes());
    let path = format!("/v2/a/manifests/{}", Digest::of(b"what was meant"));
    registry.set(&path, Answer::ok(OCI_MANIFEST, manifest.clone()));
    fails(
        &registry,
        quick(),
        ErrorKind::Corrupt,
        &["its manifest sha256:", "damaged or forged"],
    )
    .await;

    let config = json!({"os": "linux", "architecture": "arm64", "rootfs": {"diff_ids": []}}).to_string();
    push_with_config(&registry, "a", "latest", &[], config.into_bytes());
    fails(&registry, quick(), ErrorKind::Unsupported, &["linux/arm64"]).await;
    let image = push(&registry, "a", "latest", &[layer()], json!({}));
    let path = format!("/v2/a/blobs/{}", image.id());
    registry.set(&path, Answer::ok("x", [&image.config[..], b" "].concat()));
    fails(
        &registry,
        quick(),
        ErrorKind::Corrupt,
        &["its configuration sha256:", "damaged or forged"],
    )
    .await;
}

fn image_digest(manifest: &str) -> Digest {
    Digest::of(manifest.as_bytes())
}

#[tokio::test]
async fn registries_that_refuse_or_fail_are_told_apart() {
    let registry = Registry::start().await;
    let body = r#"{"errors":[{"code":"DENIED","message":"not for you"}]}"#;
    let retry = [("Retry-After", "120".to_owned())];
    for (answer, kind, words) in [
        (
            Answer::status(404, &[], body),
            ErrorKind::NotFound,
            &["the tag latest is not in registry", "correct the name"][..],
        ),
        (
            Answer::status(404, &[], r#"{"errors":[{"code":"NAME_UNKNOWN","message":"?"}]}"#),
            ErrorKind::NotFound,
            &["its repository a is not in registry", "correct the name"],
        ),
        (
            Answer::status(401, &[], body),
            ErrorKind::Unauthorized,
            &["401", "not for you", "image pull secret"],
        ),
        (
            Answer::status(403, &[], body),
            ErrorKind::Forbidden,
            &["forbids access", "403", "not for you", "let the account"],
        ),
        (
            Answer::status(429, &retry, body),
            ErrorKind::RateLimited,
            &["rate", "retry after 120"],
        ),
        (
            Answer::status(500, &[], body),
            ErrorKind::Unavailable,
            &["500", "not for you"],
        ),
        (
            Answer::status(503, &[], "<html>\r\n"),
            ErrorKind::Unavailable,
            &["503"],
        ),
        (
            Answer::Stalled(1000, b"{".to_vec()),
            ErrorKind::Unavailable,
            &["no byte of its manifest", "for 1 s"],
        ),
        (
            Answer::Cut(1000, b"{".to_vec()),
            ErrorKind::Unavailable,
            &["connection broke"],
        ),
        (
            Answer::Nothing,
            ErrorKind::Unavailable,
            &["cannot be reached", "connection closed"],
        ),
        (
            Answer::status(416, &[], ""),
            ErrorKind::Unavailable,
            &["416", "ask who runs the registry"],
        ),
    ] {
        registry.set("/v2/a/manifests/latest", answer);
        fails(&registry, quick(), kind, words).await;
    }
    let here = format!("http://{}/v2/a/manifests/latest", registry.name());
    registry.set(
        "/v2/a/manifests/latest",
        Answer::status(302, &[("Location", here)], ""),
    );
    fails(
        &registry,
        quick(),
        ErrorKind::Unavailable,
        &[
            "in a circle",
            "more than 5 redirects",
            "ask who runs the registry",
        ],
    )
    .await;

    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let host = Host::with(quick());
    let store = host.open();
    let error = pull(&store, &format!("{unused}/a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("Connection refused"), "{error}");
    let error = pull(&store, "registry.invalid/a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error
            .to_string()
            .contains("registry registry.invalid cannot be reached"),
        "{error}"
    );
}

#[tokio::test]
async fn a_full_disk_is_said_and_left_as_it_was() {
    let registry = Registry::start().await;
    let noise: Vec<u8> = (0..8 << 20_u32)
        .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let layer = BuiltLayer::gzip(Archive::new().file("noise", noise).finish());
    push(&registry, "a", "latest", &[layer], json!({}));
    let host = Host::with(quick());
    std::fs::create_dir(host.path().join("images")).unwrap();
    run(
        "mount",
        "mount",
        &[
            "-t",
            "tmpfs",
            "-o",
            "size=4m",
            "none",
            text(&host.path().join("images")),
        ],
    );
    let store = host.open();
    let error = pull(&store, &format!("{}/a", registry.name())).await.unwrap_err();
    host.settled(0).await;
    drop(store);
    run("mount", "umount", &[text(&host.path().join("images"))]);
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(
        error.to_string().contains("remove images or enlarge the disk"),
        "{error}"
    );
}
