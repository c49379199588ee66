//! Removing, keeping in use, and starting anew.

use std::fs;

use serde_json::json;

use crate::build::{Archive, BuiltLayer, push};
use crate::host::{Host, pull};
use crate::registry::Registry;

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
