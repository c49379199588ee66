//! Why a layer cannot be converted.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::digest::Digest;
use super::super::error::{ErrorKind, is_no_space, no_space_remedy};
use super::super::tar::TarError;

/// Why a layer cannot be converted. Which layer, of which image, is told by what this is wrapped in.
///
/// Converters tell theirs to the daemon, hence the serialization.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
        format: Cow<'static, str>,
        #[source]
        #[serde(with = "io_error")]
        error: Arc<io::Error>,
    },

    /// Damaged archive.
    #[error("{0}; build and push the image again")]
    Tar(#[source] TarError),

    /// An entry that no layer may have.
    #[error("its entry {path:?} {reason}; correct the image")]
    Entry { path: String, reason: String },

    /// Over a limit.
    #[error("it has more than {limit} {unit}{}", .key.as_ref().map(|key| format!("; raise images.{key} if the image is trusted")).unwrap_or_default())]
    TooLarge {
        limit: u64,
        unit: Cow<'static, str>,
        key: Option<Cow<'static, str>>,
    },

    /// The blob cannot be written.
    #[error("its blob cannot be written: {error}{}", no_space_remedy(.error))]
    Write {
        #[source]
        #[serde(with = "io_error")]
        error: Arc<io::Error>,
    },

    /// The process that converts it did not do so.
    #[error("its converter {reason}; pull it again, and if it stays so build the image anew or report it")]
    Converter { reason: String },

    /// The process that converts it does not get on.
    #[error(
        "its converter took nothing in and brought nothing out for {seconds} s and was ended; \
             pull it again, and look at the host's load and the image store's disk if it stays so"
    )]
    Stuck { seconds: u64 },

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
            Self::Write { .. } | Self::Converter { .. } | Self::Stuck { .. } => ErrorKind::Internal,
        }
    }

    /// Whether the bytes themselves are at fault, so that a wrong digest would be the better explanation.
    pub(in super::super) fn blames_content(&self) -> bool {
        matches!(
            self,
            Self::Decompress { .. } | Self::Tar(_) | Self::Entry { .. } | Self::WrongDiffId { .. }
        )
    }

    pub(in super::super) fn write(error: io::Error) -> Self {
        Self::Write {
            error: Arc::new(error),
        }
    }

    pub(in super::super) fn converter(reason: String) -> Self {
        Self::Converter { reason }
    }

    pub(in super::super) fn stuck(patience: Duration) -> Self {
        Self::Stuck {
            seconds: patience.as_secs(),
        }
    }
}

/// An I/O error as its text, and whether it says that a disk is full.
pub(in super::super) mod io_error {
    use std::io;
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::is_no_space;

    #[derive(Serialize, Deserialize)]
    struct Told {
        text: String,
        no_space: bool,
    }

    pub(in super::super::super) fn serialize<S: Serializer>(
        error: &Arc<io::Error>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let (text, no_space) = (error.to_string(), is_no_space(error));
        Told { text, no_space }.serialize(serializer)
    }

    pub(in super::super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<io::Error>, D::Error> {
        let Told { text, no_space } = Told::deserialize(deserializer)?;
        let kind = if no_space {
            io::ErrorKind::StorageFull
        } else {
            io::ErrorKind::Other
        };
        Ok(Arc::new(io::Error::new(kind, text)))
    }
}
