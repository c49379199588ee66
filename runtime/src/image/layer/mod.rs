//! Turns one layer, as it comes from a registry, into one EROFS blob, in one pass.
//!
//! Two threads share the work through a short queue of buffers. The first takes compressed bytes and decompresses them
//! ([`compression`]). The second hashes the result, reads the tar archive in it and writes the blob
//! ([`mod@convert`], [`namespace`]). They run in a process of their own, see [`super::converter`]. Memory is bounded by the queue and by what names may take; the files' content is never
//! held, and nothing is ever looked up on the host's file system.

mod compression;
mod convert;
mod directories;
mod error;
mod marks;
mod namespace;
mod walk;

pub use convert::{Converted, convert_archive};
pub(super) use convert::{ExpectedLayer, convert};
pub(super) use directories::settle_directories;
pub use error::LayerError;
pub(super) use error::io_error;

use serde::{Deserialize, Serialize};

/// What one layer may at most cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerLimits {
    /// Bytes of the tar archive, and of the files in it with their holes.
    pub bytes: u64,
    /// Entries of the archive, with the directories it implies.
    pub entries: u64,
}

impl From<&super::ImageConfig> for LayerLimits {
    fn from(config: &super::ImageConfig) -> Self {
        Self {
            bytes: config.max_layer_bytes,
            entries: config.max_layer_entries,
        }
    }
}
