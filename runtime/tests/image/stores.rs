//! Removing, keeping in use, and starting anew.

use std::fs;
use std::time::{Duration, Instant};

use bulkhead_runtime::image::ImageConfig;
use serde_json::json;

use crate::build::{Archive, BuiltLayer, push};
use crate::host::{Host, pull};
use crate::registry::{Answer, Registry};

async fn pulled(
    host: &Host,
) -> (
    Registry,
    std::sync::Arc<bulkhead_runtime::image::ImageStore>,
    String,
) {
    let registry = Registry::start().await;
    let layers = ["a", "b"].map(|name| BuiltLayer::gzip(Archive::new().file(name, name).finish()));
    push(&registry, "app", "v1", &layers, json!({}));
    push(&registry, "app", "v2", &layers, json!({}));
    let store = host.open();
    pull(&store, &format!("{}/app:v1", registry.name()))
        .await
        .unwrap();
    let id = pull(&store, &format!("{}/app:v2", registry.name()))
        .await
        .unwrap();
    (registry, store, id.to_string())
}

#[tokio::test]
async fn removing_by_any_name_removes_all_of_them() {
    for by in 0..3 {
        let host = Host::new();
        let (registry, store, id) = pulled(&host).await;
        let image = store.resolve(&id).unwrap();
        let name = [&id, &image.repo_tags[0], &image.repo_digests[0]][by];
        store.remove(name).await.unwrap();
        assert!(store.list().is_empty());
        for name in image.repo_tags.iter().chain(&image.repo_digests).chain([&id]) {
            assert!(store.resolve(name).is_none(), "{name}");
        }
        host.settled(0).await;
        assert!(store.config_json(&image).is_err() && store.lease(&image).is_err());
        for unknown in [&id, "no/such:image", "Not A Name", ""] {
            store.remove(unknown).await.unwrap();
        }
        pull(&store, &format!("{}/app:v1", registry.name()))
            .await
            .unwrap();
        assert_eq!(
            store.list()[0].repo_tags.len(),
            1,
            "the other tag must not come back"
        );
    }
}

#[tokio::test]
async fn simultaneous_removals_all_succeed() {
    let host = Host::new();
    let (_registry, store, id) = pulled(&host).await;
    let removals: Vec<_> = (0..5)
        .map(|_| {
            let (store, id) = (store.clone(), id.clone());
            tokio::spawn(async move {
                store.remove(&id).await.unwrap();
                assert!(store.resolve(&id).is_none());
            })
        })
        .collect();
    for removal in removals {
        removal.await.unwrap();
    }
    host.settled(0).await;
}

#[tokio::test]
async fn an_image_in_use_keeps_its_layers_until_the_last_user_goes() {
    let host = Host::new();
    let (registry, store, id) = pulled(&host).await;
    let image = store.resolve(&id).unwrap();
    let (one, two) = (store.lease(&image).unwrap(), store.lease(&image).unwrap());
    store.remove(&id).await.unwrap();
    assert!(store.list().is_empty() && store.resolve(&id).is_none());
    assert_eq!(store.disk(one.image()).unwrap().partitions, 2);
    drop(one);
    store.collect().await.unwrap();
    assert_eq!(host.files().len(), 2);
    drop(two);
    host.settled(0).await;

    // Pulled again while in use, it stays.
    pull(&store, &format!("{}/app:v1", registry.name()))
        .await
        .unwrap();
    let lease = store.lease(&store.resolve(&id).unwrap()).unwrap();
    store.remove(&id).await.unwrap();
    pull(&store, &format!("{}/app:v1", registry.name()))
        .await
        .unwrap();
    drop(lease);
    store.collect().await.unwrap();
    assert_eq!(host.files().len(), 2);
}

#[tokio::test]
async fn a_removed_image_in_use_is_there_for_its_user_after_a_restart() {
    let host = Host::new();
    let (_registry, store, id) = pulled(&host).await;
    let lease = store.lease(&store.resolve(&id).unwrap()).unwrap();
    store.remove(&id).await.unwrap();
    let image_id = lease.image().id;
    store.close().await;
    drop(lease);
    drop(store);

    let store = host.open();
    assert!(store.list().is_empty());
    let lease = store.lease_by_id(image_id).unwrap();
    store.collect().await.unwrap();
    assert_eq!(store.disk(lease.image()).unwrap().partitions, 2);
    drop(lease);
    host.settled(0).await;
    assert!(store.lease_by_id(image_id).is_err());
    drop(store);

    // And gone when nobody claims it.
    let (_registry, store, id) = pulled(&host).await;
    let lease = store.lease(&store.resolve(&id).unwrap()).unwrap();
    store.remove(&id).await.unwrap();
    store.close().await;
    drop(lease);
    drop(store);
    let store = host.open();
    assert_eq!(host.files().len(), 2);
    store.collect().await.unwrap();
    host.settled(0).await;
}

#[tokio::test]
async fn a_start_finds_whole_images_and_no_stray_file() {
    let host = Host::new();
    let (_registry, store, id) = pulled(&host).await;
    let before = store.list();
    drop(store);
    let images = host.path().join("images");
    // Killed while downloading, while deleting, and between the layers and the index.
    fs::write(images.join("incoming/layer-abc"), "half").unwrap();
    fs::write(images.join("incoming/deleted-abc"), "rest").unwrap();
    fs::write(images.join(format!("layers/{:0>64}.erofs", 1)), "no image's").unwrap();
    let store = host.open();
    assert_eq!(store.list(), before);
    host.settled(2).await;
    assert_eq!(store.resolve(&id).unwrap(), before[0]);
    drop(store);

    // A layer that was cut short, as a disk may do it.
    let layer = images.join("layers").join(host.files()[0].file_name().unwrap());
    let length = fs::metadata(&layer).unwrap().len();
    fs::File::options()
        .write(true)
        .open(&layer)
        .unwrap()
        .set_len(length - 1)
        .unwrap();
    let store = host.open();
    assert!(store.list().is_empty());
    host.settled(0).await;
    drop(store);
    assert!(host.open().list().is_empty());
}

#[tokio::test]
async fn pinned_images_are_those_of_the_configuration_and_can_be_removed() {
    let registry = Registry::start().await;
    let layer = |name: &str| [BuiltLayer::gzip(Archive::new().file(name, name).finish())];
    push(&registry, "kept", "v1", &layer("a"), json!({}));
    push(&registry, "other", "v1", &layer("b"), json!({}));
    let by_digest = push(&registry, "fixed", "v1", &layer("c"), json!({})).digest();
    let name = registry.name();
    let host = Host::with(ImageConfig {
        pinned: vec![
            format!("{name}/kept:v1"),
            format!("{name}/fixed@{by_digest}"),
            "not/pulled".into(),
        ],
        ..ImageConfig::default()
    });
    let store = host.open();
    for (image, pinned) in [("kept", true), ("fixed", true), ("other", false)] {
        let id = pull(&store, &format!("{name}/{image}:v1")).await.unwrap();
        let pulled = store.resolve(&id.to_string()).unwrap();
        assert_eq!(store.is_pinned(&pulled), pinned, "{image}");
    }
    // CRI's callers are trusted to mean it; the kubelet's collector does not ask for pinned images.
    store.remove(&format!("{name}/kept:v1")).await.unwrap();
    assert_eq!(store.list().len(), 2);

    let config: ImageConfig = toml::from_str("pinned = ['no such name!']").unwrap();
    let refusal = config.validate().unwrap_err().to_string();
    assert!(
        refusal.contains("images.pinned") && refusal.contains("no such name!"),
        "{refusal}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_under_way_tell_how_far_they_are() {
    let registry = Registry::start().await;
    let content: Vec<u8> = (0..200_000_u32)
        .flat_map(|i| i.wrapping_mul(i).to_le_bytes())
        .collect();
    let here = BuiltLayer::gzip(Archive::new().file("here", "x").finish());
    let coming = BuiltLayer::plain(Archive::new().file("coming", content).finish());
    push(&registry, "base", "v1", &[here.clone()], json!({}));
    push(&registry, "app", "v1", &[here.clone(), coming.clone()], json!({}));
    let (gate, opened) = tokio::sync::watch::channel(false);
    registry.set(
        &format!("/v2/app/blobs/{}", coming.digest()),
        Answer::Stuck(opened, coming.blob.clone()),
    );
    let host = Host::new();
    let store = host.open();
    pull(&store, &format!("{}/base:v1", registry.name()))
        .await
        .unwrap();
    assert!(store.pulls().is_empty());
    let pulling = {
        let (store, name) = (store.clone(), format!("{}/app:v1", registry.name()));
        tokio::spawn(async move { pull(&store, &name).await })
    };
    let start = Instant::now();
    let progress = loop {
        let pulls = store.pulls();
        if let [progress] = &pulls[..]
            && progress.layers.get(1).is_some_and(|layer| layer.received > 0)
        {
            break progress.clone();
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{pulls:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(progress.reference, format!("{}/app:v1", registry.name()));
    let [first, second] = &progress.layers[..] else {
        panic!("{progress:?}");
    };
    assert_eq!((first.digest, first.received), (here.digest(), first.bytes));
    assert_eq!(
        (second.digest, second.bytes),
        (coming.digest(), coming.blob.len() as u64)
    );
    assert!(second.received < second.bytes, "{second:?}");
    let sum = first.received + second.received;
    assert_eq!(progress.bytes(), (sum, first.bytes + second.bytes));
    gate.send(true).unwrap();
    pulling.await.unwrap().unwrap();
    assert!(store.pulls().is_empty());
}
