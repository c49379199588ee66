//! The OCI distribution protocol, as much of it as a pull needs (distribution-spec, "Pull").
//!
//! A pull's [`session`] asks the hosts that the host's files name ([`hosts`]), each of which is a [`peer`] with its own
//! credentials and certificates; a [`blob`] comes piece by piece, over as many connections as it takes.
//!
//! Every answer is bounded: manifests, configurations, tokens and error texts in bytes, everything in silence between
//! two bytes and in bytes a second ([`patience`]). That is why this is built on an HTTP client and not on a registry client
//! that reads answers whole.

mod auth;
mod blob;
mod clients;
mod docker_config;
mod failure;
mod hosts;
mod manifest;
mod patience;
mod peer;
mod retry;
mod session;
mod tls;

pub(super) use manifest::{
    Descriptor, DocumentError, Manifest, PLATFORM, ParsedConfig, parse_config, parse_manifest,
};
pub(super) use session::{Registries, Session};

/// Makes ring the process's provider of cryptography, if none was chosen before. Call it once before the first pull;
/// opening an image store does.
pub fn install_crypto_provider() {
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
