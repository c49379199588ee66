//! An image store of its own for each test.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_runtime::image::{Converter, Credentials, ImageConfig, ImageError, ImageId, ImageStore};

/// A directory with an image store.
pub struct Host {
    directory: tempfile::TempDir,
    pub config: ImageConfig,
    converter: Converter,
}

impl Host {
    /// One whose layers are converted by `program`, if it can.
    pub fn converting_with(program: &str) -> Self {
        Self {
            converter: Converter::at(program),
            ..Self::new()
        }
    }

    pub fn new() -> Self {
        Self::with(ImageConfig {
            stall_timeout_seconds: 5,
            ..ImageConfig::default()
        })
    }

    /// With a folder of its own for registries' files.
    pub fn with(config: ImageConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let registry_config_dir = directory.path().join("certs.d");
        Self {
            directory,
            config: ImageConfig {
                registry_config_dir,
                ..config
            },
            converter: Converter::at(env!("CARGO_BIN_EXE_bulkheadd")),
        }
    }

    /// Writes a file of what is known about a registry, and gives its path.
    pub fn registry_file(&self, registry: &str, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let folder = self.config.registry_config_dir.join(registry);
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Writes a registry's `hosts.toml`.
    pub fn hosts(&self, registry: &str, text: &str) {
        self.registry_file(registry, "hosts.toml", text);
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Opens the store as a daemon does that starts.
    pub fn open(&self) -> Arc<ImageStore> {
        // What the store of before still does in the background ends soon.
        let database = loop {
            match redb::Database::create(self.path().join("index.redb")) {
                Err(redb::DatabaseError::DatabaseAlreadyOpen) => std::thread::yield_now(),
                database => break database.unwrap(),
            }
        };
        let converter = self.converter.clone();
        ImageStore::open(self.path(), Arc::new(database), self.config.clone(), converter).unwrap()
    }

    /// Files below `images`, relative to it.
    pub fn files(&self) -> Vec<PathBuf> {
        let root = self.path().join("images");
        let mut files = Vec::new();
        for directory in ["layers", "incoming"] {
            for entry in std::fs::read_dir(root.join(directory)).unwrap() {
                files.push(entry.unwrap().path().strip_prefix(&root).unwrap().to_path_buf());
            }
        }
        files.sort();
        files
    }

    /// Waits until there are no files but `count` layers.
    pub async fn settled(&self, count: usize) {
        let start = Instant::now();
        while self.files().len() != count || self.files().iter().any(|file| file.starts_with("incoming")) {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "files stay behind: {:?}",
                self.files()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub async fn pull(store: &Arc<ImageStore>, reference: &str) -> Result<ImageId, ImageError> {
    pull_with(store, reference, None).await
}

pub async fn pull_with(
    store: &Arc<ImageStore>,
    reference: &str,
    credentials: Option<Credentials>,
) -> Result<ImageId, ImageError> {
    store.pull(&reference.parse().unwrap(), credentials).await
}
