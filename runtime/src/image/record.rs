//! What is remembered of a pulled image.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Digest;
use super::digest::DigestError;

/// An image's ID: the digest of its configuration, the same from whatever registry it came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(pub Digest);

/// A layer's diff ID: the digest of its tar archive before compression.
pub type DiffId = Digest;

/// A pulled image. A snapshot: a later pull or removal makes a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The digest of the configuration.
    pub id: ImageId,
    /// Full references by tag that point to this image (`docker.io/library/busybox:latest`), sorted.
    pub repo_tags: Vec<String>,
    /// Full references by the digest of the manifest or index that was pulled, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes its layers and its configuration take, each layer counted in full though images may share it.
    pub size_bytes: u64,
    /// What a container takes from the image when its own configuration says nothing.
    pub config: ContainerDefaults,
    /// The layers, from the lowest up.
    pub layers: Vec<Layer>,
    /// One more layer on top, made here, when upper layers hold directories that only lower ones describe. Named by
    /// the digest of its blob.
    #[serde(default)]
    pub directories: Option<Layer>,
}

impl Image {
    /// All layers on disk, from the lowest up.
    pub fn blobs(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().chain(&self.directories)
    }
}

/// Which layer. Images share a layer if both agree.
///
/// The diff ID is checked by the converter, and the digest by the daemon as well. So a layer that took its converter over
/// can claim any diff ID, but is found under the digest of its own bytes, which no other image names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LayerKey {
    /// The digest of the layer's uncompressed tar archive.
    pub(super) diff_id: DiffId,
    /// The digest of what the registry sent.
    pub(super) source: Digest,
}

/// One layer of an image, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The digest of the layer's uncompressed tar archive.
    pub diff_id: DiffId,
    /// The digest of what the registry sent; of the blob itself where it was made here.
    pub source: Digest,
    /// Bytes of the EROFS blob, a multiple of 4096.
    pub blob_bytes: u64,
    /// Whether the layer hides everything below it (`.wh..wh..opq` in its root directory). Overlayfs does not look
    /// for this mark in a layer's root, so the layers below are left out instead.
    pub hides_lower: bool,
    /// Whether the layer holds directories that its archive has no entry for.
    pub implies_directories: bool,
}

impl Layer {
    /// What its blob is found by.
    pub(super) fn key(&self) -> LayerKey {
        LayerKey {
            diff_id: self.diff_id,
            source: self.source,
        }
    }
}

/// The part of the OCI image configuration that containers start from ("config" in config.md of the OCI image
/// specification).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerDefaults {
    /// `USER`, unparsed: `user`, `uid`, `user:group`, `uid:gid`, or empty. See [`ContainerDefaults::user`].
    pub user_spec: String,
    /// Environment, each `NAME=value`.
    pub env: Vec<String>,
    /// What is started, before `cmd`.
    pub entrypoint: Vec<String>,
    /// Arguments of the entrypoint, or the command itself.
    pub cmd: Vec<String>,
    /// Where it is started; empty means `/`.
    pub working_dir: String,
    /// The signal that stops it, by name or number; empty means `SIGTERM`.
    pub stop_signal: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Ports it listens on, as `80/tcp`. Information only.
    pub exposed_ports: Vec<String>,
    /// Directories the image wants writable volumes at.
    pub volumes: Vec<String>,
}

/// The user a container of the image runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// The image names none: root.
    Unset,
    /// A numeric user ID.
    Uid(i64),
    /// A name from the image's own `/etc/passwd`.
    Name(String),
}

impl ContainerDefaults {
    /// The user part of `USER`: what CRI's `Image` shows as `uid` or `username`.
    pub fn user(&self) -> ImageUser {
        let user = self.user_spec.split(':').next().unwrap_or_default();
        match user.parse::<i64>() {
            _ if user.is_empty() => ImageUser::Unset,
            Ok(uid) => ImageUser::Uid(uid),
            Err(_) => ImageUser::Name(user.to_owned()),
        }
    }
}

impl FromStr for ImageId {
    type Err = DigestError;

    /// Reads `sha256:<hex>` or the 64 hex digits alone.
    fn from_str(text: &str) -> Result<Self, DigestError> {
        Digest::from_hex(text.strip_prefix("sha256:").unwrap_or(text)).map(Self)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name_before_the_colon() {
        let user = |spec: &str| {
            ContainerDefaults {
                user_spec: spec.into(),
                ..ContainerDefaults::default()
            }
            .user()
        };
        assert_eq!(user(""), ImageUser::Unset);
        assert_eq!(user("1002"), ImageUser::Uid(1002));
        assert_eq!(user("1003:1004"), ImageUser::Uid(1003));
        assert_eq!(user("www-data"), ImageUser::Name("www-data".into()));
        assert_eq!(user("www-data:1004"), ImageUser::Name("www-data".into()));
        assert_eq!(user(":1004"), ImageUser::Unset);
    }
}
