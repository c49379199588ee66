//! The OCI distribution protocol, as much of it as a pull needs (distribution-spec, "Pull").
//!
//! Every answer is bounded: manifests, configurations, tokens and error texts in bytes, everything in silence between
//! two bytes. That is why this is built on an HTTP client and not on a registry client that reads answers whole.

mod auth;
mod connection;
mod manifest;

pub(super) use connection::{Registries, Session};
pub(super) use manifest::{
    Descriptor, DocumentError, Manifest, PLATFORM, ParsedConfig, parse_config, parse_manifest,
};

/// Makes ring the process's provider of cryptography, if none was chosen before. Call it once before the first pull;
/// opening an image store does.
pub fn install_crypto_provider() {
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
