//! Builds images and puts them into a registry.

use std::io::Write;

use bulkhead_runtime::image::Digest;
use serde_json::json;

use crate::registry::{Answer, Registry};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer's archive.
pub struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// One that begins with these entries, headers and data.
    pub fn from_entries(entries: &[u8]) -> Self {
        Self(tar::Builder::new(entries.to_vec()))
    }

    /// Adds an entry with exactly these fields; the path is not looked at.
    pub fn raw(mut self, kind: tar::EntryType, path: &str, link: &str, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(data.len() as u64);
        let name = header.as_mut_bytes();
        name[..path.len()].copy_from_slice(path.as_bytes());
        name[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub fn file(self, path: &str, data: impl AsRef<[u8]>) -> Self {
        self.raw(tar::EntryType::Regular, path, "", data.as_ref())
    }

    pub fn directory(self, path: &str) -> Self {
        self.raw(tar::EntryType::Directory, path, "", b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(tar::EntryType::Symlink, path, target, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(tar::EntryType::Link, path, target, b"")
    }

    /// Extension records for the next entry.
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A layer as it lies in a registry.
#[derive(Clone)]
pub struct BuiltLayer {
    pub blob: Vec<u8>,
    pub diff_id: Digest,
    pub media_type: String,
}

impl BuiltLayer {
    pub fn plain(archive: Vec<u8>) -> Self {
        Self {
            diff_id: Digest::of(&archive),
            blob: archive,
            media_type: OCI_LAYER.into(),
        }
    }

    pub fn gzip(archive: Vec<u8>) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&archive).unwrap();
        let blob = encoder.finish().unwrap();
        Self {
            diff_id: Digest::of(&archive),
            blob,
            media_type: format!("{OCI_LAYER}+gzip"),
        }
    }

    pub fn zstd(archive: Vec<u8>) -> Self {
        let blob = zstd::encode_all(archive.as_slice(), 1).unwrap();
        Self {
            diff_id: Digest::of(&archive),
            blob,
            media_type: format!("{OCI_LAYER}+zstd"),
        }
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }

    /// The end of the path that it is asked for under.
    pub fn path_end(&self) -> String {
        format!("/blobs/{}", self.digest())
    }
}

/// An image in a registry's repository.
pub struct BuiltImage {
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl BuiltImage {
    pub fn id(&self) -> String {
        Digest::of(&self.config).to_string()
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }
}

/// Pushes an image of `layers` whose configuration has `container` in it.
pub fn push(
    registry: &Registry,
    repository: &str,
    tag: &str,
    layers: &[BuiltLayer],
    container: serde_json::Value,
) -> BuiltImage {
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
    let config = json!({
        "created": "2024-01-01T00:00:00Z", "os": "linux", "architecture": "amd64", "config": container,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    push_with_config(registry, repository, tag, layers, config.to_string().into_bytes())
}

/// Pushes an image with this configuration, whatever it says.
pub fn push_with_config(
    registry: &Registry,
    repository: &str,
    tag: &str,
    layers: &[BuiltLayer],
    config: Vec<u8>,
) -> BuiltImage {
    for layer in layers {
        registry.set(
            &format!("/v2/{repository}/blobs/{}", layer.digest()),
            Answer::ok("x", layer.blob.clone()),
        );
    }
    registry.set(
        &format!("/v2/{repository}/blobs/{}", Digest::of(&config)),
        Answer::ok("x", config.clone()),
    );
    let descriptors: Vec<_> = layers
        .iter()
        .map(|layer| json!({"mediaType": layer.media_type, "digest": layer.digest(), "size": layer.blob.len()}))
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": Digest::of(&config), "size": config.len()},
        "layers": descriptors,
    });
    let manifest = manifest.to_string().into_bytes();
    push_manifest(registry, repository, tag, OCI_MANIFEST, &manifest);
    BuiltImage { config, manifest }
}

/// Pushes a manifest under its tag and its digest.
pub fn push_manifest(registry: &Registry, repository: &str, tag: &str, media_type: &str, manifest: &[u8]) {
    for version in [tag.to_owned(), Digest::of(manifest).to_string()] {
        registry.set(
            &format!("/v2/{repository}/manifests/{version}"),
            Answer::ok(media_type, manifest),
        );
    }
}
