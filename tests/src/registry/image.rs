//! Images made in memory: right ones, and wrong ones in one particular way.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Media types of the OCI image specification.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// `sha256:` and the digest of `bytes` in hexadecimal.
pub fn digest_of(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("writing to a string");
    }
    text
}

/// A layer: what the registry serves, and what manifest and config claim of it.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Media type in the manifest.
    pub media_type: String,
    /// Digest in the manifest.
    pub digest: String,
    /// Size in the manifest.
    pub size: u64,
    /// Digest of the uncompressed archive, in the config.
    pub diff_id: String,
    /// What is served under the digest.
    pub body: Body,
}

/// What the registry serves as a blob.
#[derive(Clone, Debug)]
pub enum Body {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These bytes, of which the connection ends after so many.
    Cut(Vec<u8>, usize),
    /// These bytes over and over, without end.
    Endless(Vec<u8>),
    /// These bytes, and then nothing on an open connection.
    Stalled(Vec<u8>),
    /// An error with this HTTP status.
    Status(u16),
}

impl Layer {
    /// An archive compressed with gzip.
    pub fn gzip(archive: &[u8]) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(archive).expect("writing to memory");
        let bytes = encoder.finish().expect("writing to memory");
        Self::of(archive, bytes, "application/vnd.oci.image.layer.v1.tar+gzip")
    }

    /// An archive compressed with zstd.
    pub fn zstd(archive: &[u8]) -> Self {
        let bytes = zstd::encode_all(archive, 1).expect("compressing memory");
        Self::of(archive, bytes, "application/vnd.oci.image.layer.v1.tar+zstd")
    }

    /// An archive as it is.
    pub fn plain(archive: &[u8]) -> Self {
        Self::of(
            archive,
            archive.to_vec(),
            "application/vnd.oci.image.layer.v1.tar",
        )
    }

    /// Served bytes whose manifest entry is right, said to be `archive` compressed.
    pub fn of(archive: &[u8], bytes: Vec<u8>, media_type: &str) -> Self {
        Self {
            media_type: media_type.into(),
            digest: digest_of(&bytes),
            size: bytes.len() as u64,
            diff_id: digest_of(archive),
            body: Body::Bytes(bytes),
        }
    }
}

/// An image.
#[derive(Clone, Debug)]
pub struct Image {
    /// From the lowest to the highest.
    pub layers: Vec<Layer>,
    /// The image's `config`: Env, Cmd, User and so on.
    pub config: Value,
    /// Its `architecture`.
    pub architecture: String,
}

/// An image as the registry serves it.
pub(super) struct Encoded {
    pub manifest: Vec<u8>,
    pub config_digest: String,
    pub config: Vec<u8>,
}

impl Image {
    /// An image of these layers, with a command that is never asked for.
    pub fn new(layers: Vec<Layer>) -> Self {
        Self {
            layers,
            config: json!({ "Cmd": ["/true"] }),
            architecture: "amd64".into(),
        }
    }

    /// Replaces the image's configuration.
    #[must_use]
    pub fn configured(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    pub(super) fn encode(&self) -> Encoded {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
        .to_string()
        .into_bytes();
        let config_digest = digest_of(&config);
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| json!({ "mediaType": layer.media_type, "digest": layer.digest, "size": layer.size }))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": config_digest, "size": config.len() },
            "layers": layers,
        })
        .to_string()
        .into_bytes();
        Encoded {
            manifest,
            config_digest,
            config,
        }
    }

    /// Its config, as the registry serves it.
    pub fn config_json(&self) -> Vec<u8> {
        self.encode().config
    }

    /// Its id in CRI: the digest of its config.
    pub fn id(&self) -> String {
        self.encode().config_digest
    }
}
