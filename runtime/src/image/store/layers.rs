//! Converted layers as files, each kept while somebody uses it.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tempfile::NamedTempFile;

use super::super::disk::Segment;
use super::super::layer::Converted;
use super::super::{ImageError, ImageId, Layer, LayerKey};
use super::index::Record;
use super::{Work, lock};

const SUFFIX: &str = ".erofs";

/// The layers on disk and how often each is in use.
#[derive(Debug)]
pub(super) struct LayerStore {
    /// Whole layers, by name.
    whole: PathBuf,
    /// Layers that are being written, and those that are being deleted.
    incoming: PathBuf,
    /// Held for memory alone, never for the disk: everybody takes it.
    present: Mutex<HashMap<LayerKey, Present>>,
    /// Held while a layer's file comes or goes, before `present`.
    renaming: Mutex<()>,
    frozen: AtomicBool,
    work: Work,
}

#[derive(Debug)]
struct Present {
    layer: Layer,
    disk_bytes: u64,
    users: usize,
}

/// Which records of the index still stand.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) whole: Vec<Record>,
    /// Images without all their layers.
    pub(super) lost: Vec<ImageId>,
}

impl LayerStore {
    /// Opens the layers below `directory` and compares them with the index: what belongs to no record is deleted.
    pub(super) fn open(
        directory: &Path,
        records: Vec<Record>,
        work: Work,
    ) -> Result<(Self, Checked), ImageError> {
        let store = Self {
            whole: directory.join("layers"),
            incoming: directory.join("incoming"),
            present: Mutex::default(),
            renaming: Mutex::default(),
            frozen: AtomicBool::new(false),
            work,
        };
        for path in [&store.whole, &store.incoming] {
            fs::create_dir_all(path).map_err(|error| ImageError::store("make", path, error))?;
        }
        for path in entries(&store.incoming)? {
            remove_file(&path)?;
        }
        let (whole, lost): (Vec<_>, Vec<_>) = records
            .into_iter()
            .partition(|record| record.image.blobs().all(|layer| store.is_whole(layer)));
        let known = whole.iter().flat_map(|record| record.image.blobs());
        let known: HashSet<PathBuf> = known.map(|layer| store.path(layer.key())).collect();
        for path in entries(&store.whole)? {
            if !known.contains(&path) {
                tracing::info!(path = %path.display(), "deleting a layer that belongs to no image");
                remove_file(&path)?;
            }
        }
        for layer in whole.iter().flat_map(|record| record.image.blobs()) {
            store.count_user(layer)?;
        }
        let lost = lost.into_iter().map(|record| record.image.id).collect();
        Ok((store, Checked { whole, lost }))
    }

    fn is_whole(&self, layer: &Layer) -> bool {
        let metadata = fs::symlink_metadata(self.path(layer.key()));
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == layer.blob_bytes)
    }

    fn count_user(&self, layer: &Layer) -> Result<(), ImageError> {
        let path = self.path(layer.key());
        let metadata = fs::metadata(&path).map_err(|error| ImageError::store("look at", path, error))?;
        let mut present = lock(&self.present);
        let present = present.entry(layer.key()).or_insert_with(|| Present {
            layer: layer.clone(),
            disk_bytes: disk_bytes(&metadata),
            users: 0,
        });
        present.users += 1;
        Ok(())
    }

    /// A file to convert a layer into.
    pub(super) fn new_blob(&self) -> Result<NamedTempFile, ImageError> {
        tempfile::Builder::new()
            .prefix("layer-")
            .tempfile_in(&self.incoming)
            .map_err(|error| ImageError::store("make a file in", &self.incoming, error))
    }

    /// Makes a converted layer one of the store's: when this returns, it is on disk under its name. Waits for the disk.
    pub(super) fn adopt(
        self: &Arc<Self>,
        temporary: NamedTempFile,
        converted: &Converted,
        key: LayerKey,
    ) -> Result<HeldLayer, ImageError> {
        let path = self.path(key);
        let fail = |error| ImageError::store("write", &path, error);
        converted.file.sync_all().map_err(fail)?;
        let metadata = converted.file.metadata().map_err(fail)?;
        let layer = Layer {
            diff_id: key.diff_id,
            source: key.source,
            blob_bytes: converted.blob_bytes,
            hides_lower: converted.hides_lower,
            implies_directories: converted.implies_directories,
        };
        let _renaming = lock(&self.renaming);
        if let Some(held) = self.hold(key) {
            return Ok(held);
        }
        temporary.persist(&path).map_err(|error| fail(error.error))?;
        // The name must be on disk before the index can count on it.
        let synced = File::open(&self.whole).and_then(|directory| directory.sync_all());
        if let Err(error) = synced {
            let _ = fs::remove_file(&path);
            return Err(fail(error));
        }
        lock(&self.present).insert(
            key,
            Present {
                layer: layer.clone(),
                disk_bytes: disk_bytes(&metadata),
                users: 1,
            },
        );
        Ok(HeldLayer {
            store: Arc::clone(self),
            layer,
        })
    }

    /// The layer, if it is here, kept until the result is dropped.
    pub(super) fn hold(self: &Arc<Self>, key: LayerKey) -> Option<HeldLayer> {
        let mut present = lock(&self.present);
        let present = present.get_mut(&key)?;
        present.users += 1;
        Some(HeldLayer {
            store: Arc::clone(self),
            layer: present.layer.clone(),
        })
    }

    /// Whether the layer is here.
    pub(super) fn has(&self, key: LayerKey) -> bool {
        lock(&self.present).contains_key(&key)
    }

    /// Counts one user less, if there are others.
    fn release_shared(&self, key: LayerKey) -> bool {
        let mut present = lock(&self.present);
        let shared = present.get_mut(&key).filter(|present| present.users > 1);
        shared.map(|present| present.users -= 1).is_some()
    }

    /// Counts one user less; the last one takes the layer's file away, and waits for the disk.
    pub(super) fn release(&self, key: LayerKey) {
        if self.release_shared(key) || self.is_frozen() {
            return;
        }
        let renaming = lock(&self.renaming);
        {
            let mut present = lock(&self.present);
            let Some(found) = present.get_mut(&key) else {
                return;
            };
            found.users = found.users.saturating_sub(1);
            if found.users > 0 {
                return;
            }
            present.remove(&key);
        }
        // Renamed before the same layer can come again; deleted at leisure.
        let (path, doomed) = (
            self.path(key),
            self.incoming.join(format!("deleted-{}", file_name(key))),
        );
        let renamed = fs::rename(&path, &doomed);
        drop(renaming);
        if let Err(error) = renamed.and_then(|()| fs::remove_file(&doomed)) {
            tracing::warn!(path = %path.display(), %error, "a layer without users stays until the next start");
        }
    }

    /// The layer's file, to be shown to a VM.
    pub(super) fn blob(&self, layer: &Layer) -> Result<Segment, ImageError> {
        let path = self.path(layer.key());
        let file = File::open(&path).map_err(|error| ImageError::store("open", &path, error))?;
        let length = file
            .metadata()
            .map_err(|error| ImageError::store("look at", &path, error))?
            .len();
        if length != layer.blob_bytes {
            let error = io::Error::other(format!("it has {length} bytes instead of {}", layer.blob_bytes));
            return Err(ImageError::store("use", path, error));
        }
        Ok(Segment {
            file: file.into(),
            length,
        })
    }

    /// How many layers there are and what they take of the disk.
    pub(super) fn usage(&self) -> (u64, u64) {
        let present = lock(&self.present);
        (
            present.len() as u64,
            present.values().map(|present| present.disk_bytes).sum(),
        )
    }

    pub(super) fn freeze(&self) {
        self.frozen.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    fn path(&self, key: LayerKey) -> PathBuf {
        self.whole.join(file_name(key))
    }
}

fn file_name(key: LayerKey) -> String {
    format!("{}-{}{SUFFIX}", key.diff_id.hex(), key.source.hex())
}

/// A layer that stays on disk until this is dropped.
#[derive(Debug)]
pub(super) struct HeldLayer {
    store: Arc<LayerStore>,
    layer: Layer,
}

impl HeldLayer {
    pub(super) fn layer(&self) -> &Layer {
        &self.layer
    }

    /// Leaves the layer in use, by an image of the index.
    pub(super) fn keep(self) {
        lock(&self.store.present)
            .entry(self.layer.key())
            .and_modify(|present| present.users += 1);
    }
}

impl Drop for HeldLayer {
    fn drop(&mut self) {
        let key = self.layer.key();
        if self.store.release_shared(key) {
            return;
        }
        let (store, working) = (Arc::clone(&self.store), self.store.work.begin());
        let release = move || {
            store.release(key);
            drop(working);
        };
        // The disk is not waited for where a pull is given up.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(release)),
            Err(_) => release(),
        }
    }
}

fn disk_bytes(metadata: &fs::Metadata) -> u64 {
    metadata.blocks() * 512
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let read = || {
        fs::read_dir(directory)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<_>>()
    };
    read().map_err(|error| ImageError::store("list", directory, error))
}

fn remove_file(path: &Path) -> Result<(), ImageError> {
    fs::remove_file(path).map_err(|error| ImageError::store("delete", path, error))
}
