//! Images: from a reference in a pod's specification to one read-only disk that a VM boots its container from.
//!
//! A pull flows one way: [`Reference`] → [`registry`] (manifest, configuration, compressed layers, every digest
//! checked) → [`layer`] (decompress, read the tar archive, write one EROFS blob, in one pass and without an unpacked
//! tree) → [`ImageStore`] (blobs by diff ID, an index that survives a crash). [`ImageStore::disk`] then shows the
//! layers of an image as the partitions of one disk.
//!
//! Registries and layers are hostile input: whatever they send is bounded in size, count and time, and no path in
//! a layer ever touches the host's file system.

pub mod config;
pub mod converter;
mod credentials;
mod digest;
mod disk;
pub mod erofs;
mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod layer;
mod record;
mod reference;
mod registry;
mod store;
mod tar;

pub use config::ImageConfig;
pub use converter::Converter;
pub use credentials::{Credentials, CredentialsError, Secret};
pub use digest::{Digest, DigestError};
pub use disk::{ImageDisk, Segment};
pub use error::{ErrorKind, ImageError};
pub use layer::{LayerError, LayerLimits};
use record::LayerKey;
pub use record::{ContainerDefaults, DiffId, Image, ImageId, ImageUser, Layer};
pub use reference::{DEFAULT_REGISTRY, Reference, ReferenceError, Version};
pub use registry::install_crypto_provider;
pub use store::{ImageLease, ImageStore, LayerProgress, PullProgress, Usage};
