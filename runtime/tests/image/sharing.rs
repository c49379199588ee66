//! Pulls that share layers, threads and a process with others, some of which are given up or held up.

use std::time::Duration;

use bulkhead_runtime::image::{ErrorKind, ImageConfig};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::build::{Archive, BuiltLayer, push};
use crate::host::{Host, pull};
use crate::registry::{Answer, Registry};

/// Numbers without an order, the same in each run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.next() >> 24) as u8).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pulls_that_are_given_up_do_not_hold_up_those_that_go_on() {
    let mut noise = Noise(88_172_645_463_325_252);
    let registry = Registry::start().await;
    let layer = BuiltLayer::plain(Archive::new().file("noise", noise.bytes(2 << 20)).finish());
    push(&registry, "a", "latest", &[layer.clone()], json!({}));
    // Small parts without pauses: the download is woken as often as can be.
    let path = format!("/v2/a{}", layer.path_end());
    registry.set(&path, Answer::Slow(2000, Duration::ZERO, layer.blob.clone()));
    for round in 0..40 {
        let host = Host::with(ImageConfig {
            stall_timeout_seconds: 2,
            ..ImageConfig::default()
        });
        let store = host.open();
        let mut pulls: Vec<_> = (0..8)
            .map(|_| {
                let (store, reference) = (store.clone(), format!("{}/a", registry.name()));
                tokio::spawn(async move { pull(&store, &reference).await })
            })
            .collect();
        let last = pulls.pop().unwrap();
        for given_up in pulls {
            tokio::time::sleep(Duration::from_micros(noise.next() % 4000)).await;
            given_up.abort();
        }
        let pulled = last.await.unwrap();
        assert!(pulled.is_ok(), "round {round}: {}", pulled.unwrap_err());
        host.settled(1).await;
    }
}

/// Not a test: a process that pulls what it is told to, and can be stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is started by another test"]
async fn puller() {
    let Ok(reference) = std::env::var(PULLER) else {
        return;
    };
    let host = Host::with(ImageConfig {
        stall_timeout_seconds: 1,
        ..ImageConfig::default()
    });
    pull(&host.open(), &reference).await.unwrap();
}

const PULLER: &str = "BULKHEAD_TEST_PULLS";

#[tokio::test]
async fn a_process_that_was_not_run_does_not_blame_the_registry() {
    let mut noise = Noise(1_181_783_497_276_652_981);
    let registry = Registry::start().await;
    let layer = BuiltLayer::plain(Archive::new().file("noise", noise.bytes(100_000)).finish());
    push(&registry, "a", "latest", &[layer.clone()], json!({}));
    // Something comes twenty times a second, for three seconds.
    let path = format!("/v2/a{}", layer.path_end());
    let slow = Answer::Slow(
        layer.blob.len() / 60,
        Duration::from_millis(50),
        layer.blob.clone(),
    );
    registry.set(&path, slow);
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sharing::puller", "--ignored", "--nocapture"])
        .env(PULLER, format!("{}/a", registry.name()))
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    while registry.asked(&layer.path_end()) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Whether a timer or what has come is looked at first is chance, so more than once.
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        kill_process(pid, Signal::STOP).unwrap();
        tokio::time::sleep(Duration::from_millis(1300)).await;
        kill_process(pid, Signal::CONT).unwrap();
    }
    assert!(child.wait().await.unwrap().success());
}

#[test]
fn layers_that_wait_for_their_registry_take_no_threads_from_others() {
    // Each download looks the registry's name up, which takes one of these threads.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut noise = Noise(2_463_534_242);
        let registry = Registry::start().await;
        let layers: Vec<_> = (0..8)
            .map(|_| BuiltLayer::plain(Archive::new().file("noise", noise.bytes(1000)).finish()))
            .collect();
        push(&registry, "a", "latest", &layers, json!({}));
        let (open, gate) = tokio::sync::watch::channel(false);
        for layer in &layers {
            let path = format!("/v2/a{}", layer.path_end());
            registry.set(&path, Answer::Stuck(gate.clone(), layer.blob.clone()));
        }
        let host = Host::with(ImageConfig {
            parallel_layers: layers.len(),
            ..ImageConfig::default()
        });
        let store = host.open();
        let reference = format!("localhost:{}/a", registry.address.port());
        let pulling = tokio::spawn(async move { pull(&store, &reference).await });
        // All are half here at the same time.
        while layers.iter().any(|layer| registry.asked(&layer.path_end()) == 0) {
            assert!(!pulling.is_finished(), "{:?}", pulling.await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        open.send(true).unwrap();
        pulling.await.unwrap().unwrap();
    });
}

#[tokio::test]
async fn a_store_that_is_closed_gives_up_its_pulls_and_leaves_nothing_of_them() {
    let mut noise = Noise(362_436_069);
    let registry = Registry::start().await;
    let archive = |noise: &mut Noise| Archive::new().file("noise", noise.bytes(300_000)).finish();
    let (whole, half) = (
        BuiltLayer::plain(archive(&mut noise)),
        BuiltLayer::plain(archive(&mut noise)),
    );
    push(&registry, "whole", "latest", &[whole.clone()], json!({}));
    push(&registry, "half", "latest", &[whole, half.clone()], json!({}));
    let path = format!("/v2/half{}", half.path_end());
    registry.set(
        &path,
        Answer::Stalled(half.blob.len(), half.blob[..200_000].to_vec()),
    );
    let host = Host::new();
    let store = host.open();
    pull(&store, &format!("{}/whole", registry.name())).await.unwrap();
    let (pulling, reference) = (store.clone(), format!("{}/half", registry.name()));
    let pulling = tokio::spawn(async move { pull(&pulling, &reference).await });
    while !host.files().iter().any(|file| file.starts_with("incoming")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    store.close().await;
    let error = pulling.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("the daemon is ending"), "{error}");
    assert_eq!(host.files().len(), 1, "{:?}", host.files());
    let error = pull(&store, &format!("{}/half", registry.name()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(store.list().len(), 1);
}
