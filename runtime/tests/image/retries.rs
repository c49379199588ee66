//! Requests that are sent again, and downloads that are taken up where they broke.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bulkhead_runtime::image::{ErrorKind, ImageConfig, ImageError};
use serde_json::json;

use crate::build::{Archive, BuiltLayer, push};
use crate::host::{Host, pull};
use crate::registry::{Answer, Registry, Request};

const MANIFEST: &str = "/v2/a/manifests/latest";

fn host(attempts: u64) -> Host {
    Host::with(ImageConfig {
        stall_timeout_seconds: 5,
        request_attempts: attempts,
        retry_seconds: 20,
        ..ImageConfig::default()
    })
}

fn layer(bytes: usize) -> BuiltLayer {
    let noise: Vec<u8> = (0..bytes as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    BuiltLayer::plain(Archive::new().file("noise", noise).finish())
}

/// Answers the first requests for `path` with `answers`, and the others as before.
fn first(registry: &Registry, path: &str, answers: Vec<Answer>) {
    let (count, path) = (AtomicUsize::new(0), path.to_owned());
    registry.guard(move |request| {
        if request.target != path {
            return None;
        }
        answers.get(count.fetch_add(1, Ordering::SeqCst)).cloned()
    });
}

async fn pulled(host: &Host, registry: &Registry) -> Result<(), ImageError> {
    let pulled = pull(&host.open(), &format!("{}/a", registry.name())).await;
    pulled.map(drop)
}

#[tokio::test]
async fn what_may_pass_is_asked_for_again() {
    let overloaded = |status| Answer::status(status, &[("Retry-After", "0".to_owned())], "{}");
    for (answers, asked) in [
        (vec![overloaded(429), overloaded(503), overloaded(500)], 4),
        (vec![Answer::Nothing], 2),
        (vec![Answer::Cut(1000, b"{".to_vec())], 2),
        (vec![Answer::status(502, &[], "{}")], 2),
    ] {
        let registry = Registry::start().await;
        push(&registry, "a", "latest", &[layer(1000)], json!({}));
        first(&registry, MANIFEST, answers);
        pulled(&host(4), &registry).await.unwrap();
        assert_eq!(registry.asked(MANIFEST), asked);
    }
}

#[tokio::test]
async fn as_often_as_is_configured_and_no_more() {
    let registry = Registry::start().await;
    let overloaded = Answer::status(503, &[("Retry-After", "0".to_owned())], "{}");
    registry.set(MANIFEST, overloaded);
    let error = pulled(&host(3), &registry).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(registry.asked(MANIFEST), 3);
    for status in [400, 401, 403, 404, 405, 416, 501] {
        registry.set(
            MANIFEST,
            Answer::status(status, &[("Retry-After", "0".to_owned())], "{}"),
        );
        let before = registry.asked(MANIFEST);
        pulled(&host(3), &registry).await.unwrap_err();
        assert_eq!(registry.asked(MANIFEST), before + 1, "{status}");
    }
}

#[tokio::test]
async fn a_registry_is_left_alone_for_as_long_as_it_asks() {
    let registry = Registry::start().await;
    push(&registry, "a", "latest", &[layer(1000)], json!({}));
    let limited = |wait: String| Answer::status(429, &[("Retry-After", wait)], "{}");
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
    first(&registry, MANIFEST, vec![limited("1".to_owned()), limited(date)]);
    let begun = Instant::now();
    pulled(&host(3), &registry).await.unwrap();
    // The date was made before, and has no parts of seconds.
    assert!(
        begun.elapsed() > Duration::from_millis(1700),
        "{:?}",
        begun.elapsed()
    );

    // Longer than there is time for: at once.
    registry.set(MANIFEST, limited("3600".to_owned()));
    let (begun, before) = (Instant::now(), registry.asked(MANIFEST));
    let error = pulled(&host(3), &registry).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RateLimited, "{error}");
    assert!(error.to_string().contains("retry after 3600"), "{error}");
    assert_eq!(registry.asked(MANIFEST), before + 1);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn hosts_are_asked_again_only_where_that_may_help() {
    let (origin, mirror) = (Registry::start().await, Registry::start().await);
    push(&origin, "a", "latest", &[layer(1000)], json!({}));
    first(
        &origin,
        MANIFEST,
        vec![Answer::status(503, &[("Retry-After", "0".to_owned())], "{}"); 2],
    );
    let host = host(4);
    host.hosts(&origin.name(), &format!("[host.'http://{}']", mirror.name()));
    pulled(&host, &origin).await.unwrap();
    assert_eq!(origin.asked(MANIFEST), 3);
    let asked_of_mirror = mirror
        .requests()
        .iter()
        .filter(|request| request.target.starts_with(MANIFEST))
        .count();
    assert_eq!(asked_of_mirror, 1);
}

/// The first byte that a request wants.
fn wanted(request: &Request) -> Option<usize> {
    let range = request.header("range")?;
    Some(range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().unwrap())
}

fn content_range(first: usize, total: usize) -> Vec<(String, String)> {
    vec![(
        "Content-Range".to_owned(),
        format!("bytes {first}-{}/{total}", total - 1),
    )]
}

/// Serves `layer` in connections that each break after `part` bytes, from where a request wants it, or, unless `ranges`,
/// always from the beginning, `part` bytes further each time.
fn breaking(registry: &Registry, layer: &BuiltLayer, part: usize, ranges: bool) {
    let (blob, count) = (layer.blob.clone(), AtomicUsize::new(0));
    registry.route(&format!("/v2/a{}", layer.path_end()), move |request| {
        let total = blob.len();
        let (body, headers) = if let Some(first) = wanted(request).filter(|_| ranges) {
            (&blob[first..], content_range(first, total))
        } else {
            let end = part * (count.fetch_add(1, Ordering::SeqCst) + 1);
            return Answer::Cut(total, blob[..end.min(total)].to_vec());
        };
        Answer::CutPart(headers, body.len(), body[..part.min(body.len())].to_vec())
    });
}

fn ranges(registry: &Registry, layer: &BuiltLayer) -> Vec<usize> {
    let requests = registry.requests();
    let of_layer = requests
        .iter()
        .filter(|request| request.target.contains(&layer.path_end()));
    of_layer.filter_map(wanted).collect()
}

#[tokio::test]
async fn a_download_goes_on_where_its_connection_broke() {
    for with_ranges in [true, false] {
        let registry = Registry::start().await;
        let layer = layer(1_000_000);
        push(&registry, "a", "latest", &[layer.clone()], json!({}));
        breaking(&registry, &layer, 300_000, with_ranges);
        // As each connection brings something, two attempts are enough for any number of them.
        let host = host(2);
        pulled(&host, &registry).await.unwrap();
        host.settled(1).await;
        assert_eq!(ranges(&registry, &layer), [300_000, 600_000, 900_000]);
    }
}

#[tokio::test]
async fn a_body_that_ends_early_without_a_word_is_gone_on_with() {
    let registry = Registry::start().await;
    let layer = layer(200_000);
    push(&registry, "a", "latest", &[layer.clone()], json!({}));
    let blob = layer.blob.clone();
    registry.route(
        &format!("/v2/a{}", layer.path_end()),
        move |request| match wanted(request) {
            Some(first) => Answer::Whole(206, content_range(first, blob.len()), blob[first..].to_vec()),
            None => Answer::Unmeasured(blob[..100_000].to_vec()),
        },
    );
    pulled(&host(2), &registry).await.unwrap();
    assert_eq!(ranges(&registry, &layer), [100_000]);
}

#[tokio::test]
async fn a_download_that_gets_no_further_ends() {
    let registry = Registry::start().await;
    let layer = layer(500_000);
    push(&registry, "a", "latest", &[layer.clone()], json!({}));
    // A byte each time is no progress to speak of.
    let blob = layer.blob.clone();
    registry.route(&format!("/v2/a{}", layer.path_end()), move |request| {
        let (first, total) = (wanted(request).unwrap_or(0), blob.len());
        match first {
            0 => Answer::Cut(total, blob[..100_000].to_vec()),
            first => Answer::CutPart(content_range(first, total), total - first, vec![blob[first]]),
        }
    });
    let error = pulled(&host(4), &registry).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let words = format!("of {} bytes had come", layer.blob.len());
    assert!(error.to_string().contains(&words), "{error}");
    assert_eq!(ranges(&registry, &layer), [100_000, 100_001, 100_002]);
}

#[tokio::test]
async fn a_continuation_must_be_that_of_what_came_before() {
    let registry = Registry::start().await;
    let layer = layer(200_000);
    push(&registry, "a", "latest", &[layer.clone()], json!({}));
    let total = layer.blob.len();
    let rest = layer.blob[100_000..].to_vec();
    let mut forged = rest.clone();
    forged[1000] ^= 1;
    let range = |text: &str| vec![("Content-Range".to_owned(), text.to_owned())];
    for (headers, body, kind, word) in [
        (
            content_range(99_999, total),
            rest.clone(),
            ErrorKind::Unavailable,
            "begins at byte 100000",
        ),
        (
            content_range(100_000, total + 1),
            rest.clone(),
            ErrorKind::Unavailable,
            "begins at byte 100000",
        ),
        (
            range("bytes 100000-"),
            rest.clone(),
            ErrorKind::Unavailable,
            "begins at byte 100000",
        ),
        (
            vec![],
            rest.clone(),
            ErrorKind::Unavailable,
            "begins at byte 100000",
        ),
        (
            content_range(100_000, total),
            forged,
            ErrorKind::Corrupt,
            "damaged or forged",
        ),
        (
            content_range(100_000, total),
            [rest.clone(), vec![0]].concat(),
            ErrorKind::Corrupt,
            "more than",
        ),
    ] {
        let start = layer.blob[..100_000].to_vec();
        registry.route(
            &format!("/v2/a{}", layer.path_end()),
            move |request| match wanted(request) {
                Some(_) => Answer::Whole(206, headers.clone(), body.clone()),
                None => Answer::Cut(total, start.clone()),
            },
        );
        let host = host(2);
        let error = pulled(&host, &registry).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
        host.settled(0).await;
    }
}

#[tokio::test]
async fn another_host_goes_on_with_what_a_mirror_does_not_finish() {
    let (origin, mirror) = (Registry::start().await, Registry::start().await);
    let layer = layer(200_000);
    for registry in [&origin, &mirror] {
        push(registry, "a", "latest", &[layer.clone()], json!({}));
    }
    let path = format!("/v2/a{}", layer.path_end());
    mirror.set(
        &path,
        Answer::Cut(layer.blob.len(), layer.blob[..50_000].to_vec()),
    );
    let blob = layer.blob.clone();
    origin.route(&path, move |request| {
        let first = wanted(request).unwrap();
        Answer::Whole(206, content_range(first, blob.len()), blob[first..].to_vec())
    });
    let host = host(3);
    host.hosts(&origin.name(), &format!("[host.'http://{}']", mirror.name()));
    pulled(&host, &origin).await.unwrap();
    assert_eq!(ranges(&origin, &layer), [50_000]);
}

#[tokio::test]
async fn a_trickle_is_given_up() {
    let registry = Registry::start().await;
    let layer = layer(200_000);
    let image = push(&registry, "a", "latest", &[layer.clone()], json!({}));
    let slow = |body: &[u8]| Answer::Slow(1, Duration::from_millis(100), body.to_vec());
    let host = || {
        Host::with(ImageConfig {
            stall_timeout_seconds: 1,
            ..ImageConfig::default()
        })
    };
    registry.set(&format!("/v2/a{}", layer.path_end()), slow(&layer.blob));
    for what in [format!("layer {}", layer.digest()), "its manifest".to_owned()] {
        let begun = Instant::now();
        let error = pulled(&host(), &registry).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        for word in [what.as_str(), "bytes of", "lower images.least_bytes_per_second"] {
            assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        registry.set(MANIFEST, slow(&image.manifest));
    }
}
