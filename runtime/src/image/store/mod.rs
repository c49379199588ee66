//! The images of this host.
//!
//! On disk there are two things. `images/layers/<diff ID>-<digest>.erofs` is a converted layer (the digest is that of what
//! the registry sent), written under another name, flushed and renamed, so a file of that name is always whole. The index, in the daemon's database, is what makes a
//! set of layers an image. A pull writes the layers first and the index last; a removal the other way round. So at any
//! instant of a crash every image of the index is whole, and what belongs to none is taken away at the next start.
//!
//! In memory there is a copy of the index, so that lists and look-ups never wait, and how often each layer is in use:
//! by images, by pulls under way, and by [`ImageLease`]s. The last user takes a layer's file with it.

mod catalogue;
mod download;
mod index;
mod layers;
mod lease;
mod progress;
mod pull;
mod work;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::Database;

use super::disk::{Partition, PartitionTable, sealed_memory};
use super::registry::{Registries, install_crypto_provider};
use super::{Converter, Credentials, Image, ImageConfig, ImageDisk, ImageError, ImageId, Reference};
use catalogue::Catalogue;
use download::Downloads;
use index::{Index, Record};
use layers::LayerStore;
pub use lease::ImageLease;
use progress::Pulls;
pub use progress::{LayerProgress, PullProgress};
use work::Work;

/// The images of this host.
#[derive(Debug)]
pub struct ImageStore {
    directory: PathBuf,
    config: ImageConfig,
    registries: Registries,
    layers: Arc<LayerStore>,
    downloads: Downloads,
    pulls: Arc<Pulls>,
    /// References of images, in full, that the collector is to leave alone.
    pinned: HashSet<String>,
    converter: Converter,
    work: Work,
    index: Index,
    catalogue: RwLock<Catalogue>,
    /// Held while index and catalogue are changed together, which waits for the disk.
    changes: Mutex<()>,
}

/// What the images take of their file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// A directory on the file system with the images.
    pub mountpoint: PathBuf,
    /// Bytes of disk that layers take, each counted once.
    pub used_bytes: u64,
    /// Files that layers take.
    pub inodes_used: u64,
}

impl ImageStore {
    /// Opens the store below `root`, which must exist, with its index in `database`; makes both if they are new.
    ///
    /// Cleans up after a crash: downloads that were under way and layers of no image are deleted, images with missing
    /// layers are forgotten. Images that were removed while containers used them stay until [`collect`](Self::collect).
    ///
    /// Layers are converted in processes that `converter` starts.
    pub fn open(
        root: &Path,
        database: Arc<Database>,
        config: ImageConfig,
        converter: Converter,
    ) -> Result<Arc<Self>, ImageError> {
        config.validate()?;
        install_crypto_provider();
        let directory = root.join("images");
        let index = Index::open(database)?;
        let work = Work::default();
        let (layers, records) = LayerStore::open(&directory, index.load()?, work.clone())?;
        for lost in records.lost {
            tracing::warn!(image = %lost, "forgetting an image whose layers are missing or damaged; pull it again");
            index.delete(lost)?;
        }
        let layers = Arc::new(layers);
        Ok(Arc::new(Self {
            directory,
            pulls: Arc::default(),
            pinned: config
                .pinned
                .iter()
                .filter_map(|name| Some(name.parse::<Reference>().ok()?.to_string()))
                .collect(),
            registries: Registries::new(config.clone()),
            config,
            downloads: Downloads::new(Arc::clone(&layers), work.clone(), converter.clone()),
            converter,
            layers,
            work,
            index,
            catalogue: RwLock::new(Catalogue::new(records.whole)),
            changes: Mutex::new(()),
        }))
    }

    /// Pulls the image that `reference` names now, and gives its ID.
    ///
    /// Layers that are here already are not downloaded again; a layer that several pulls want at the same time is
    /// downloaded once. When the future is dropped the pull is given up, and leaves nothing behind.
    pub async fn pull(
        self: &Arc<Self>,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<ImageId, ImageError> {
        let _working = self.work.begin();
        let listed = self.pulls.list(reference);
        tokio::select! {
            biased;
            () = self.work.ending() => Err(ImageError::Ending { reference: reference.to_string() }),
            pulled = pull::pull(self, reference, credentials, &listed) => pulled,
            never = self.log_progress(&listed) => match never {},
        }
    }

    /// The pulls under way, the oldest first.
    pub fn pulls(&self) -> Vec<PullProgress> {
        let pulls = self.pulls.under_way();
        pulls.iter().map(|pull| self.progress(pull)).collect()
    }

    /// Whether the configuration asks to keep the image from the kubelet's collector, by any of its names. Removal by
    /// whoever asks for it works all the same, as CRI wants it.
    pub fn is_pinned(&self, image: &Image) -> bool {
        let mut names = image.repo_tags.iter().chain(&image.repo_digests);
        names.any(|name| self.pinned.contains(name))
    }

    /// All images, in the order of their IDs.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.read().list()
    }

    /// The IDs of all images whose layers are here: those that are listed, and those that were removed while in use.
    pub fn kept(&self) -> Vec<ImageId> {
        self.read().ids()
    }

    /// The image that `name` means: its ID in full, with or without `sha256:`, a beginning of it that no other image
    /// has, or a reference by tag or digest.
    pub fn resolve(&self, name: &str) -> Option<Arc<Image>> {
        self.read().resolve(name)
    }

    /// Removes the image that `name` means, with all its names. No such image is fine.
    ///
    /// What containers still use stays on disk until the last lease is gone.
    pub async fn remove(self: &Arc<Self>, name: &str) -> Result<(), ImageError> {
        let store = Arc::clone(self);
        let name = name.to_owned();
        self.work.blocking(move || store.remove_now(&name)).await
    }

    /// Disk space that images take, from memory.
    pub fn usage(&self) -> Usage {
        let (inodes_used, used_bytes) = self.layers.usage();
        Usage {
            mountpoint: self.directory.clone(),
            used_bytes,
            inodes_used,
        }
    }

    /// The image's OCI configuration, as it came.
    pub fn config_json(&self, image: &Image) -> Result<Vec<u8>, ImageError> {
        self.index
            .config_json(image.id)?
            .ok_or_else(|| ImageError::NotPresent {
                name: image.id.to_string(),
            })
    }

    /// Keeps the image's layers on disk until the lease is dropped.
    pub fn lease(self: &Arc<Self>, image: &Image) -> Result<ImageLease, ImageError> {
        self.lease_by_id(image.id)
    }

    /// Like [`lease`](Self::lease), and also for an image that was removed while in use: how containers are given
    /// theirs back when the daemon has been started anew.
    pub fn lease_by_id(self: &Arc<Self>, id: ImageId) -> Result<ImageLease, ImageError> {
        let leased = self.write().lease(id);
        let image = leased.ok_or_else(|| ImageError::NotPresent { name: id.to_string() })?;
        Ok(ImageLease::new(Arc::clone(self), image))
    }

    /// Deletes removed images that nobody uses. Call it when all containers have their leases back after a start.
    pub async fn collect(self: &Arc<Self>) -> Result<(), ImageError> {
        let store = Arc::clone(self);
        self.work.blocking(move || store.collect_now()).await
    }

    /// Ends the store's work in good order, before the daemon ends: pulls are given up and take what they had made
    /// with them, changes that were begun are finished. From then on nothing is deleted any more, so that the leases
    /// that are given up with the daemon take no layers from pods that live on.
    pub async fn close(&self) {
        self.work.end().await;
        self.layers.freeze();
    }

    /// The disk that shows the image to a VM. Its files stay readable whatever becomes of the image.
    pub fn disk(&self, image: &Image) -> Result<ImageDisk, ImageError> {
        let layers: Vec<_> = image.blobs().collect();
        let first = layers.iter().rposition(|layer| layer.hides_lower).unwrap_or(0);
        let layers = layers.get(first..).unwrap_or_default();
        let partitions: Vec<_> = layers
            .iter()
            .map(|layer| Partition {
                diff_id: layer.diff_id,
                bytes: layer.blob_bytes,
            })
            .collect();
        let table = PartitionTable::new(image.id.0, &partitions);
        let in_memory = |content: &[u8]| {
            sealed_memory(content)
                .map_err(|error| ImageError::store("make a partition table in", "memory", error))
        };
        let mut segments = vec![in_memory(&table.head)?];
        for layer in layers {
            segments.push(self.layers.blob(layer)?);
        }
        segments.push(in_memory(&table.tail)?);
        Ok(ImageDisk {
            segments,
            partitions: u32::try_from(layers.len()).unwrap_or(u32::MAX),
        })
    }

    /// Records a pulled image. The layers it holds become the image's own.
    fn record(&self, pulled: pull::Pulled) -> Result<ImageId, ImageError> {
        let _changing = lock(&self.changes);
        let id = pulled.image.id;
        let (records, is_new) = {
            let catalogue = self.read();
            (
                catalogue.with(pulled.image, pulled.tag, pulled.digest),
                !catalogue.contains(id),
            )
        };
        self.index.put(&records, Some((id, &pulled.config_json)))?;
        self.write().put(records);
        if is_new {
            pulled.layers.into_iter().for_each(layers::HeldLayer::keep);
        }
        Ok(id)
    }

    fn remove_now(&self, name: &str) -> Result<(), ImageError> {
        let _changing = lock(&self.changes);
        let Some(image) = self.resolve(name) else {
            return Ok(());
        };
        // From here on nobody gets a lease of an image without any.
        let taken = self.write().take_unused(image.id);
        if let Some(taken) = taken {
            return self.delete(taken);
        }
        let record = Record {
            removed: true,
            image: catalogue::without_names(&image),
        };
        self.index.put(std::slice::from_ref(&record), None)?;
        self.write().put(vec![record]);
        self.collect_changing()
    }

    fn collect_now(&self) -> Result<(), ImageError> {
        let _changing = lock(&self.changes);
        self.collect_changing()
    }

    /// Deletes what was removed and is not leased. The caller holds `changes`.
    fn collect_changing(&self) -> Result<(), ImageError> {
        while !self.layers.is_frozen() {
            let taken = self.write().take_removed_unused();
            match taken {
                Some(taken) => self.delete(taken)?,
                None => break,
            }
        }
        Ok(())
    }

    /// Deletes an image that was taken out of the catalogue; puts it back if that fails.
    fn delete(&self, taken: Record) -> Result<(), ImageError> {
        if let Err(error) = self.index.delete(taken.image.id) {
            self.write().put(vec![taken]);
            return Err(error);
        }
        for layer in taken.image.blobs() {
            self.layers.release(layer.key());
        }
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, Catalogue> {
        self.catalogue.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Catalogue> {
        self.catalogue.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
