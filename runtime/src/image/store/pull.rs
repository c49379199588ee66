//! A pull: manifest, configuration, then the layers side by side.

use std::fs::File;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};

use super::super::converter::settle_directories;
use super::super::digest::Hasher;
use super::super::layer::{Converted, ExpectedLayer, LayerLimits};
use super::super::registry::{
    Descriptor, DocumentError, Manifest, PLATFORM, ParsedConfig, Session, parse_config, parse_manifest,
};
use super::super::{
    Credentials, DiffId, Digest, Image, ImageConfig, ImageError, ImageId, LayerKey, Reference, Version,
};
use super::ImageStore;
use super::download::Order;
use super::layers::HeldLayer;
use super::progress::Listed;

/// Indexes may list indexes; nobody nests them deeper.
const MAX_INDEX_DEPTH: usize = 3;

/// An image whose layers are all here, not yet recorded.
#[derive(Debug)]
pub(super) struct Pulled {
    pub(super) image: Image,
    pub(super) config_json: Vec<u8>,
    /// One for each blob of the image.
    pub(super) layers: Vec<HeldLayer>,
    /// The tag it was pulled by, in full.
    pub(super) tag: Option<String>,
    /// The reference by the digest of what the tag pointed to.
    pub(super) digest: String,
}

pub(super) async fn pull(
    store: &Arc<ImageStore>,
    reference: &Reference,
    credentials: Option<Credentials>,
    listed: &Listed,
) -> Result<ImageId, ImageError> {
    let started = std::time::Instant::now();
    let session = Arc::new(store.registries.session(reference, credentials).await?);
    let pull = Pull {
        reference,
        session,
        config: &store.config,
    };
    let (digest, config, layers) = pull.manifest().await?;
    let (config_json, parsed) = pull.image_config(&config).await?;
    let expected = pull.expected_layers(&layers, &parsed.diff_ids)?;

    listed.found(&expected);

    let order = |layer| Order {
        reference: reference.to_string(),
        session: Arc::clone(&pull.session),
        layer,
        limits: LayerLimits::from(&store.config),
    };
    let mut held: Vec<HeldLayer> = futures_util::stream::iter(expected)
        .map(|expected| store.downloads.layer(order(expected)))
        .buffered(store.config.parallel_layers)
        .try_collect()
        .await?;

    let directories = settled_directories(store, reference, &held).await?;
    let image = Image {
        id: ImageId(config.digest),
        repo_tags: Vec::new(),
        repo_digests: Vec::new(),
        size_bytes: 0,
        config: parsed.defaults,
        layers: held.iter().map(|held| held.layer().clone()).collect(),
        directories: directories.as_ref().map(|held| held.layer().clone()),
    };
    let blob_bytes: u64 = image.blobs().map(|layer| layer.blob_bytes).sum();
    let size_bytes = config_json.len() as u64 + blob_bytes;
    held.extend(directories);
    let pulled = Pulled {
        image: Image { size_bytes, ..image },
        config_json,
        layers: held,
        tag: reference.tag().map(|_| reference.to_string()),
        digest: reference.with_digest(digest).to_string(),
    };
    let recording = Arc::clone(store);
    let id = store.work.blocking(move || recording.record(pulled)).await?;
    tracing::info!(%reference, image = %id, size_bytes, elapsed = ?started.elapsed(), "pulled");
    Ok(id)
}

/// The layer that gives directories the attributes they have in the image, if one is needed.
async fn settled_directories(
    store: &ImageStore,
    reference: &Reference,
    held: &[HeldLayer],
) -> Result<Option<HeldLayer>, ImageError> {
    let Some(top) = held.last().filter(|_| held.len() > 1) else {
        return Ok(None);
    };
    let open = |held: &HeldLayer| {
        let layer = held.layer();
        Ok((
            File::from(store.layers.blob(layer)?.file),
            layer.implies_directories,
        ))
    };
    let files = held.iter().map(open).collect::<Result<_, ImageError>>()?;
    let temporary = store.layers.new_blob()?;
    let fail = |error| ImageError::store("write directories to", temporary.path(), error);
    let file = temporary.reopen().map_err(fail)?;
    let limits = LayerLimits::from(&store.config);
    let settling = settle_directories(&store.converter, files, file, limits, store.work.begin());
    let settled = settling.await.map_err(|error| ImageError::Layer {
        reference: reference.to_string(),
        layer: top.layer().source,
        error: Box::new(error),
    })?;
    let Some(blob_bytes) = settled else {
        return Ok(None);
    };
    let layers = Arc::clone(&store.layers);
    store
        .work
        .blocking(move || {
            let fail = |error| ImageError::store("read directories from", temporary.path(), error);
            let mut hasher = Hasher::default();
            let mut file = temporary.reopen().map_err(fail)?;
            let length = std::io::copy(&mut file, &mut hasher).map_err(fail)?;
            if length != blob_bytes {
                let error = std::io::Error::other(format!("it has {length} bytes instead of {blob_bytes}"));
                return Err(fail(error));
            }
            let digest = hasher.finish();
            let converted = Converted {
                file,
                blob_bytes,
                hides_lower: false,
                implies_directories: false,
                entries: 0,
            };
            let key = LayerKey {
                diff_id: digest,
                source: digest,
            };
            layers.adopt(temporary, &converted, key).map(Some)
        })
        .await
}

/// What one pull works with.
struct Pull<'a> {
    reference: &'a Reference,
    session: Arc<Session>,
    config: &'a ImageConfig,
}

impl Pull<'_> {
    /// The digest the reference stands for, and the image's configuration and layers.
    async fn manifest(&self) -> Result<(Digest, Descriptor, Vec<Descriptor>), ImageError> {
        let mut version = self.reference.version().clone();
        let mut resolved = None;
        for _ in 0..=MAX_INDEX_DEPTH {
            let (json, content_type) = self
                .session
                .manifest(&version, self.config.max_manifest_bytes)
                .await?;
            let (digest, what) = match version {
                Version::Tag(_) => (Digest::of(&json), "its manifest".to_owned()),
                Version::Digest(digest) => (digest, format!("its manifest {digest}")),
            };
            let resolved = *resolved.get_or_insert(digest);
            match parse_manifest(&json, content_type.as_deref())
                .map_err(|error| self.document(&what, error))?
            {
                Manifest::Image { config, layers } => return Ok((resolved, config, layers)),
                Manifest::Index(descriptor) => version = Version::Digest(descriptor.digest),
            }
        }
        let reason = format!("it leads through more than {MAX_INDEX_DEPTH} indexes");
        Err(self.document("its index", DocumentError::Malformed(reason)))
    }

    async fn image_config(&self, descriptor: &Descriptor) -> Result<(Vec<u8>, ParsedConfig), ImageError> {
        let (limit, key) = (self.config.max_config_bytes, "max_config_bytes");
        let what = format!("its configuration {}", descriptor.digest);
        let json = self.session.blob(descriptor, &what, limit, key).await?;
        let parsed = parse_config(&json).map_err(|error| self.document(&what, error))?;
        Ok((json.to_vec(), parsed))
    }

    /// Brings together what the manifest and the configuration say about each layer.
    fn expected_layers(
        &self,
        layers: &[Descriptor],
        diff_ids: &[DiffId],
    ) -> Result<Vec<ExpectedLayer>, ImageError> {
        let too_large = |what: &str, limit, unit, key| ImageError::TooLarge {
            reference: self.reference.to_string(),
            what: what.to_owned(),
            limit,
            unit,
            key,
        };
        if layers.len() != diff_ids.len() {
            let (listed, known) = (layers.len(), diff_ids.len());
            let reason = format!("its manifest lists {listed} layers but its configuration {known}");
            return Err(self.document("the image", DocumentError::Malformed(reason)));
        }
        let max_layers = self.config.max_image_layers;
        if layers.len() > max_layers {
            return Err(too_large(
                "the image",
                max_layers as u64,
                "layers",
                "max_image_layers",
            ));
        }
        if let Some(large) = layers
            .iter()
            .find(|layer| layer.size > self.config.max_layer_bytes)
        {
            let what = format!("layer {}", large.digest);
            return Err(too_large(
                &what,
                self.config.max_layer_bytes,
                "bytes",
                "max_layer_bytes",
            ));
        }
        let pairs = layers.iter().zip(diff_ids);
        Ok(pairs
            .map(|(layer, diff_id)| ExpectedLayer {
                blob: layer.digest,
                blob_bytes: layer.size,
                diff_id: *diff_id,
            })
            .collect())
    }

    fn document(&self, what: &str, error: DocumentError) -> ImageError {
        let (reference, what) = (self.reference.to_string(), what.to_owned());
        match error {
            DocumentError::Malformed(reason) => ImageError::Malformed {
                reference,
                what,
                reason,
            },
            DocumentError::Unsupported { found, remedy } => ImageError::Unsupported {
                reference,
                what,
                found,
                remedy,
            },
            DocumentError::NoPlatform { offered } => {
                let wanted = format!("{}/{}", PLATFORM.0, PLATFORM.1);
                ImageError::NoPlatform {
                    reference,
                    wanted,
                    offered,
                }
            }
        }
    }
}
