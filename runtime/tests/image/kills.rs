//! A process that pulls, killed at any moment: the next start has whole images and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_runtime::image::layer::convert_archive;
use bulkhead_runtime::image::{Converter, ImageConfig, ImageStore, LayerLimits};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::json;

use crate::build::{Archive, BuiltLayer, push};
use crate::registry::Registry;

/// Tells a process that it is to pull, and whence; its store is where [`ROOT`] says.
const REGISTRY: &str = "BULKHEAD_TEST_KILLED_REGISTRY";
const ROOT: &str = "BULKHEAD_TEST_KILLED_ROOT";

/// How often it is killed.
const ROUNDS: usize = 50;

const IMAGES: [&str; 3] = ["one", "two", "three"];

fn open(root: &Path) -> Arc<ImageStore> {
    let database = Database::create(root.join("index.redb")).unwrap();
    let converter = Converter::at(env!("CARGO_BIN_EXE_bulkheadd"));
    ImageStore::open(root, Arc::new(database), ImageConfig::default(), converter).unwrap()
}

/// In the process that is killed: pulls and removes for ever.
async fn pull_for_ever(registry: &str, root: &Path) {
    let store = open(root);
    loop {
        for image in IMAGES {
            let reference = format!("{registry}/{image}");
            store.pull(&reference.parse().unwrap(), None).await.unwrap();
        }
        for image in IMAGES {
            store.remove(&format!("{registry}/{image}")).await.unwrap();
        }
    }
}

/// Bytes that do not compress, different for each seed.
fn noise(mut seed: u64, length: usize) -> Vec<u8> {
    let next = || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// The blob that a layer becomes.
fn blob(archive: &[u8]) -> Vec<u8> {
    let limits = LayerLimits {
        bytes: 1 << 30,
        entries: 1000,
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blob");
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    convert_archive(archive, file, limits).unwrap();
    fs::read(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_killed_anywhere_leaves_whole_images_alone() {
    if let (Ok(registry), Some(root)) = (std::env::var(REGISTRY), std::env::var_os(ROOT)) {
        return pull_for_ever(&registry, Path::new(&root)).await;
    }
    let registry = Registry::start().await;
    let archives: Vec<Vec<u8>> = (0..4)
        .map(|seed| {
            Archive::new()
                .file(&format!("dir/file-{seed}"), noise(seed, 300_000))
                .finish()
        })
        .collect();
    let layers: Vec<_> = archives
        .iter()
        .map(|archive| BuiltLayer::gzip(archive.clone()))
        .collect();
    // All share the first, and two of them another one.
    for (image, indexes) in IMAGES.iter().zip([&[0, 1][..], &[0, 2, 3], &[0, 1, 3]]) {
        let layers: Vec<_> = indexes.iter().map(|index| layers[*index].clone()).collect();
        push(&registry, image, "latest", &layers, json!({}));
    }
    let blobs: Vec<_> = archives.iter().map(|archive| blob(archive)).collect();

    let root = tempfile::tempdir().unwrap();
    let whole_round = Duration::from_millis(1500);
    let mut random = noise(77, ROUNDS * 2).into_iter();
    let (mut with_images, mut left_behind) = (0, 0);
    for round in 0..ROUNDS {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "kills::a_pull_that_is_killed_anywhere_leaves_whole_images_alone",
            ])
            .env(REGISTRY, registry.name())
            .env(ROOT, root.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let share = u32::from(random.next().unwrap()) << 8 | u32::from(random.next().unwrap());
        tokio::time::sleep(whole_round * share / (1 << 16)).await;
        process.kill().unwrap();
        let status = process.wait().unwrap();
        assert_eq!(
            status.signal(),
            Some(libc::SIGKILL),
            "round {round}: it ended by itself: {status}"
        );
        converters_are_gone(root.path()).await;
        left_behind += usize::from(
            fs::read_dir(root.path().join("images/incoming")).is_ok_and(|files| files.count() > 0),
        );

        let store = open(root.path());
        let images = store.list();
        with_images += usize::from(!images.is_empty());
        let mut expected = BTreeSet::new();
        for image in &images {
            store.config_json(image).unwrap();
            assert_eq!(image.repo_tags.len(), 1, "round {round}: {image:?}");
            for layer in image.blobs() {
                let name = format!("{}-{}.erofs", layer.diff_id.hex(), layer.source.hex());
                let content = fs::read(root.path().join("images/layers").join(&name)).unwrap();
                let known = layers.iter().position(|known| known.diff_id == layer.diff_id);
                assert!(
                    known.is_none_or(|index| blobs[index] == content)
                        && content.len() as u64 == layer.blob_bytes,
                    "round {round}: {name} is not whole"
                );
                expected.insert(name);
            }
        }
        assert_eq!(
            names(&root.path().join("images/layers")),
            expected,
            "round {round}"
        );
        assert_eq!(
            names(&root.path().join("images/incoming")),
            BTreeSet::new(),
            "round {round}"
        );
        assert_eq!(store.kept().len(), images.len(), "round {round}");
        let ids = images.iter().map(|image| image.id.to_string()).collect();
        drop(store);
        index_has(&root.path().join("index.redb"), &ids);
    }
    // Otherwise nothing has been tried.
    assert!(
        with_images >= 5 && left_behind >= 1,
        "{with_images} starts found images, {left_behind} found leftovers"
    );
}

fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Whether both tables of the index have these images and no other.
fn index_has(path: &Path, ids: &BTreeSet<String>) {
    let database = Database::open(path).unwrap();
    for table in ["images", "image_configs"] {
        let definition: TableDefinition<'_, &str, &[u8]> = TableDefinition::new(table);
        let table = database.begin_read().unwrap().open_table(definition).unwrap();
        let found: BTreeSet<_> = table
            .iter()
            .unwrap()
            .map(|row| row.unwrap().0.value().to_owned())
            .collect();
        assert_eq!(&found, ids);
    }
}

/// Converters end with the process that started them: none has a file of this store open any more.
async fn converters_are_gone(root: &Path) {
    let uses = |process: &Path| {
        let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        open.into_iter()
            .any(|file| fs::read_link(file.path()).is_ok_and(|path| path.starts_with(root)))
    };
    let start = Instant::now();
    loop {
        let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        let Some(left) = processes.into_iter().find(|process| uses(process)) else {
            return;
        };
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{} outlives its daemon",
            left.display()
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
