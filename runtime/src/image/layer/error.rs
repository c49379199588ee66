//! Why a layer cannot be converted.

use std::io;
use std::sync::Arc;

use super::super::digest::Digest;
use super::super::error::{ErrorKind, is_no_space, no_space_remedy};
use super::super::tar::TarError;

/// Why a layer cannot be converted. Which layer, of which image, is told by what this is wrapped in.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are the objects that the message names")]
pub enum LayerError {
    /// The bytes of the download differ from their digest.
    #[error(
        "its content has digest {actual}: it is damaged or forged; push the image again or use another registry"
    )]
    WrongDigest { actual: Digest },

    /// The download ended early.
    #[error(
        "it ended after {received} of {expected} bytes; try again, and push the image again if it stays so"
    )]
    Truncated { expected: u64, received: u64 },

    /// The download is longer than the manifest says.
    #[error("it has more than the {expected} bytes that the manifest states; push the image again")]
    TooLong { expected: u64 },

    /// The archive differs from the diff ID in the image's configuration.
    #[error(
        "its archive has diff ID {actual}, but the image's configuration states {expected}; \
             build and push the image again"
    )]
    WrongDiffId { expected: Digest, actual: Digest },

    /// Damaged compressed data.
    #[error("its {format} data cannot be decompressed: {error}; build and push the image again")]
    Decompress {
        format: &'static str,
        #[source]
        error: Arc<io::Error>,
    },

    /// Damaged archive.
    #[error("{0}; build and push the image again")]
    Tar(#[source] TarError),

    /// An entry that no layer may have.
    #[error("its entry {path:?} {reason}; correct the image")]
    Entry { path: String, reason: String },

    /// Over a limit.
    #[error("it has more than {limit} {unit}{}", .key.map(|key| format!("; raise images.{key} if the image is trusted")).unwrap_or_default())]
    TooLarge {
        limit: u64,
        unit: &'static str,
        key: Option<&'static str>,
    },

    /// The blob cannot be written.
    #[error("its blob cannot be written: {error}{}", no_space_remedy(.error))]
    Write {
        #[source]
        error: Arc<io::Error>,
    },

    /// The download was given up.
    #[error("its download was given up")]
    Cancelled,
}

impl LayerError {
    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::WrongDigest { .. }
            | Self::TooLong { .. }
            | Self::WrongDiffId { .. }
            | Self::Decompress { .. }
            | Self::Tar(_)
            | Self::Entry { .. } => ErrorKind::Corrupt,
            Self::Truncated { .. } | Self::Cancelled => ErrorKind::Unavailable,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Write { error } if is_no_space(error) => ErrorKind::NoSpace,
            Self::Write { .. } => ErrorKind::Internal,
        }
    }

    /// Whether the bytes themselves are at fault, so that a wrong digest would be the better explanation.
    pub(super) fn blames_content(&self) -> bool {
        matches!(
            self,
            Self::Decompress { .. } | Self::Tar(_) | Self::Entry { .. } | Self::WrongDiffId { .. }
        )
    }

    pub(super) fn write(error: io::Error) -> Self {
        Self::Write {
            error: Arc::new(error),
        }
    }
}
