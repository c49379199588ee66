//! A way in for the fuzz targets, to what is nobody else's business outside of this module.

use super::registry::{parse_config, parse_manifest};
use super::{ContainerDefaults, Reference};

/// Reads `bytes` as everything that a registry or a client may say of an image, and checks that what was understood stays
/// the same when it is written and read again.
///
/// # Panics
///
/// When it does not.
pub fn read_document(bytes: &[u8]) {
    for content_type in [
        None,
        Some("application/vnd.oci.image.index.v1+json"),
        Some("application/vnd.docker.distribution.manifest.v2+json"),
    ] {
        let _ = parse_manifest(bytes, content_type);
    }
    if let Ok(config) = parse_config(bytes) {
        let _ = config.defaults.user();
        let written = serde_json::to_vec(&config.defaults).expect("text and lists can be written");
        let read: ContainerDefaults = serde_json::from_slice(&written).expect("what was written can be read");
        assert_eq!(read, config.defaults);
    }
    if let Some(reference) = std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse::<Reference>().ok())
    {
        let written = reference.to_string();
        let read: Reference = written.parse().expect("a full reference is one");
        assert_eq!(read.to_string(), written);
    }
}
