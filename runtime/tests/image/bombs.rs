//! Layers that are small to send and large to take: in bytes, entries, names, windows and holes.

use std::fmt::Write;
use std::io::Read;
use std::sync::Mutex;

use bulkhead_runtime::image::layer::convert_archive;
use bulkhead_runtime::image::{Digest, ErrorKind, ImageConfig, LayerError, LayerLimits};
use serde_json::json;

use crate::build::{Archive, BuiltLayer, OCI_LAYER, push};
use crate::host::{Host, pull};
use crate::registry::Registry;

const MIB: u64 = 1 << 20;

/// These take a whole processor for seconds, so one after the other.
static ALONE: Mutex<()> = Mutex::new(());

/// An archive that is made while it is read: one symbolic link after the other, each with a name and a target of 100 bytes.
struct Links {
    header: [u8; 512],
    made: u64,
    wanted: u64,
    read: usize,
}

impl Links {
    fn new(wanted: u64) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        let bytes = header.as_mut_bytes();
        bytes[..100].fill(b'n');
        bytes[157..257].fill(b't');
        bytes[100..124].copy_from_slice(b"0000644\x000000000\x000000000\x00");
        bytes[136..148].copy_from_slice(b"00000000001\x00");
        Self {
            header: *header.as_bytes(),
            made: 0,
            wanted,
            read: 512,
        }
    }

    fn next(&mut self) {
        let digits = format!("{:08}", self.made);
        self.header[..8].copy_from_slice(digits.as_bytes());
        self.header[148..156].fill(b' ');
        let sum: u32 = self.header.iter().map(|byte| u32::from(*byte)).sum();
        self.header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.made += 1;
        self.read = 0;
    }
}

impl Read for Links {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.read == 512 {
            if self.made == self.wanted {
                return Ok(0);
            }
            self.next();
        }
        let count = (&self.header[self.read..]).read(buffer)?;
        self.read += count;
        Ok(count)
    }
}

/// The same bytes again and again.
struct Again<'a> {
    bytes: &'a [u8],
    read: usize,
    left: usize,
}

impl Read for Again<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.read == self.bytes.len() && self.left > 0 {
            (self.read, self.left) = (0, self.left - 1);
        }
        let count = (&self.bytes[self.read..]).read(buffer)?;
        self.read += count;
        Ok(count)
    }
}

/// What becomes of `layer`; with the bytes that were taken from the registry's side of it.
async fn refused(layer: BuiltLayer, config: ImageConfig, words: &[&str]) {
    let registry = Registry::start().await;
    push(&registry, "a", "latest", &[layer.clone()], json!({}));
    let host = Host::with(config);
    let store = host.open();
    let error = pull(&store, &format!("{}/a", registry.name())).await.unwrap_err();
    let message = error.to_string();
    for words in words.iter().copied().chain([&*layer.digest().to_string()]) {
        assert!(message.contains(words), "{words:?} is missing: {message}");
    }
    assert!(
        matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::Corrupt),
        "{message}"
    );
    host.settled(0).await;
}

fn layer(blob: Vec<u8>, suffix: &str) -> BuiltLayer {
    BuiltLayer {
        blob,
        diff_id: Digest::of(b"never found out"),
        media_type: format!("{OCI_LAYER}+{suffix}"),
    }
}

fn small() -> ImageConfig {
    ImageConfig {
        max_layer_bytes: 16 * MIB,
        ..ImageConfig::default()
    }
}

/// A zstd frame that says it is one archive's file, and then one byte after another, 128 KiB for every four bytes.
fn zstd_bomb(blocks: usize) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_size(blocks as u64 * 131_072);
    header.set_cksum();
    // A window of 128 KiB; a raw block with the header; run-length blocks.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3];
    let block = |kind: u32, bytes: u32, last: u32| (bytes << 3 | kind << 1 | last).to_le_bytes();
    frame.extend(&block(0, 512, 0)[..3]);
    frame.extend(header.as_bytes());
    for index in 0..blocks {
        frame.extend(&block(1, 131_072, u32::from(index + 1 == blocks))[..3]);
        frame.push(0);
    }
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_end_at_the_limit() {
    // 128 GiB in 4 MiB.
    let bomb = zstd_bomb(1 << 20);
    refused(
        layer(bomb, "zstd"),
        small(),
        &["16777216 bytes", "images.max_layer_bytes"],
    )
    .await;
    // A gzip stream of many members, each of which ends nothing.
    let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut std::io::repeat(b'x').take(MIB), &mut member).unwrap();
    let members = member.finish().unwrap().repeat(1000);
    refused(layer(members, "gzip"), small(), &["malformed at byte 512"]).await;
    // Frames to be skipped are no bytes of an archive, but they are of the download.
    let skipped = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0].repeat(10_000);
    let mut empty = layer(skipped, "zstd");
    empty.diff_id = Digest::of(b"x");
    refused(empty, small(), &["diff ID"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zstd_window_over_what_everybody_takes_is_refused() {
    // A window of 2 GiB, as a frame header may state it.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 1, 0, 0].to_vec();
    refused(
        layer(frame, "zstd"),
        small(),
        &["zstd data cannot be decompressed"],
    )
    .await;
}

#[test]
fn entries_without_number_end_at_the_limit() {
    let _alone = ALONE.lock();
    let convert = |reader: &mut dyn Read, entries| {
        let limits = LayerLimits {
            bytes: 1 << 40,
            entries,
        };
        let reader = std::io::BufReader::with_capacity(1 << 20, reader);
        convert_archive(reader, tempfile::tempfile().unwrap(), limits)
            .map(|_| ())
            .unwrap_err()
    };
    let error = convert(&mut Links::new(10_000_000), 100_000);
    assert!(
        matches!(&error, LayerError::TooLarge { limit: 100_000, key: Some(key), .. } if key == "max_layer_entries"),
        "{error}"
    );
    // However many are allowed, what is kept of them in memory has a limit of its own.
    let value = vec![b'v'; 60_000];
    let records: &[(&str, &[u8])] = &[("SCHILY.xattr.user.a", &value)];
    let with_end = Archive::new().pax(records).directory("d").finish();
    let directory = &with_end[..with_end.len() - 1024];
    let mut many = Again {
        bytes: directory,
        read: 0,
        left: 5000,
    };
    let error = convert(&mut many, 100_000_000);
    assert_eq!(
        error.to_string(),
        "it has more than 268435456 bytes of names, link targets and directory attributes"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_tree_that_is_allowed_fits_into_a_converter() {
    let blob = tokio::task::spawn_blocking(|| {
        let _alone = ALONE.lock();
        // Just under the limit of names, in a frame with the largest window.
        let mut archive = Links::new(268_435_456 / 296);
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        let mut hasher = Hashed(sha2::Sha256::default(), &mut encoder);
        std::io::copy(&mut archive, &mut hasher).unwrap();
        let mut diff_id = String::new();
        for byte in sha2::Digest::finalize(hasher.0) {
            write!(diff_id, "{byte:02x}").unwrap();
        }
        BuiltLayer {
            diff_id: Digest::from_hex(&diff_id).unwrap(),
            ..layer(encoder.finish().unwrap(), "zstd")
        }
    });
    let blob = blob.await.unwrap();
    let registry = Registry::start().await;
    push(&registry, "a", "latest", &[blob], json!({}));
    let host = Host::new();
    let store = host.open();
    pull(&store, &format!("{}/a", registry.name())).await.unwrap();
    host.settled(1).await;
}

struct Hashed<W>(sha2::Sha256, W);

impl<W: std::io::Write> std::io::Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        sha2::Digest::update(&mut self.0, bytes);
        self.1.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.1.flush()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_count_as_what_a_reader_would_see() {
    let records: &[(&str, &[u8])] = &[
        ("GNU.sparse.map", b"0,1"),
        ("GNU.sparse.size", b"10485760"),
        ("GNU.sparse.name", b"hole"),
    ];
    // Each is allowed, and two of them are not.
    let mut archive = Archive::new().pax(records).file("a", "x");
    let one = BuiltLayer::gzip(archive_of(&mut archive));
    let registry = Registry::start().await;
    push(&registry, "a", "latest", &[one], json!({}));
    let host = Host::with(small());
    let store = host.open();
    pull(&store, &format!("{}/a", registry.name())).await.unwrap();
    let used = store.usage().used_bytes;
    assert!(used < MIB, "a hole takes {used} bytes of disk");
    let two = archive.pax(records).file("b", "x").finish();
    refused(BuiltLayer::gzip(two), small(), &["images.max_layer_bytes"]).await;
}

/// What has been built so far, as an archive of its own.
fn archive_of(archive: &mut Archive) -> Vec<u8> {
    let building = std::mem::replace(archive, Archive::new());
    let bytes = building.finish();
    *archive = Archive::from_entries(&bytes[..bytes.len() - 1024]);
    bytes
}
