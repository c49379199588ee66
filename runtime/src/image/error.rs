//! Everything that can go wrong with an image, in words for the person who asked for it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::Digest;
use super::config::ImageConfigError;
use super::layer::LayerError;
use super::reference::ReferenceError;

/// Why an image could not be had, kept, or shown to a VM.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are the objects that the message names")]
pub enum ImageError {
    /// The name is no image reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),

    /// The daemon's configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ImageConfigError),

    /// No connection to the registry, or it broke.
    #[error(
        "image {reference}: registry {registry} cannot be reached: {reason}; \
             check its name, the network and any proxy"
    )]
    Unreachable {
        reference: String,
        registry: String,
        reason: String,
    },

    /// The registry has gone silent.
    #[error(
        "image {reference}: no byte of {what} came from registry {registry} for {seconds} s; \
             try again, or raise images.stall_timeout_seconds"
    )]
    Stalled {
        reference: String,
        registry: String,
        what: String,
        seconds: u64,
    },

    /// The registry's certificate is not vouched for by anybody this host trusts.
    #[error(
        "image {reference}: registry {registry} has a TLS certificate that is not trusted: {reason}; name its \
             authority's certificate with `ca` in {hosts_file}, or, to take any, set `skip_verify = true` there"
    )]
    Untrusted {
        reference: String,
        registry: String,
        reason: String,
        hosts_file: PathBuf,
    },

    /// What the host's administrator wrote about registries cannot be used.
    #[error("image {reference}: {reason}")]
    HostConfig { reference: String, reason: String },

    /// Every host that was asked failed.
    #[error(
        "image {reference}: no host of registry {registry} gave {what}: {}",
        each_failure(.reference, .tried)
    )]
    AllFailed {
        reference: String,
        registry: String,
        what: String,
        /// What each host's failure was, in the order they were asked.
        tried: Vec<ImageError>,
    },

    /// The registry sends from one place to the next and never to the content.
    #[error(
        "image {reference}: registry {registry} redirects the request for {what} {reason}; \
             ask who runs the registry to correct its storage's address, or use another registry"
    )]
    Redirects {
        reference: String,
        registry: String,
        what: String,
        reason: String,
    },

    /// The registry sends, but next to nothing.
    #[error(
        "image {reference}: only {bytes} bytes of {what} came from registry {registry} in {seconds} s of waiting; \
             try again later or from a nearer mirror, or lower images.least_bytes_per_second"
    )]
    TooSlow {
        reference: String,
        registry: String,
        what: String,
        bytes: u64,
        seconds: u64,
    },

    /// The registry wants other credentials, or any.
    #[error(
        "image {reference}: registry {registry} refused access ({reason}); \
             give an image pull secret that may read this repository, or correct the image's name"
    )]
    Unauthorized {
        reference: String,
        registry: String,
        reason: String,
    },

    /// The registry knows who asks, and does not let them.
    #[error(
        "image {reference}: registry {registry} forbids access ({reason}); \
             let the account of the image pull secret read this repository, or use another account's"
    )]
    Forbidden {
        reference: String,
        registry: String,
        reason: String,
    },

    /// The registry does not have it.
    #[error(
        "image {reference}: {what} is not in registry {registry}; correct the name, tag or digest, or push it"
    )]
    Missing {
        reference: String,
        registry: String,
        what: String,
    },

    /// The registry asks to be left alone for a while.
    #[error("image {reference}: registry {registry} limits the rate of pulls{}; try later, or with credentials",
            .retry_after.as_ref().map(|wait| format!(" (retry after {wait})")).unwrap_or_default())]
    RateLimited {
        reference: String,
        registry: String,
        retry_after: Option<String>,
    },

    /// The registry failed, or answered what the distribution specification does not allow.
    #[error(
        "image {reference}: registry {registry} answered {what} with {answer}; \
             try again, and if it stays so ask who runs the registry"
    )]
    BadAnswer {
        reference: String,
        registry: String,
        what: String,
        answer: String,
    },

    /// Content is longer or shorter than its descriptor says.
    #[error(
        "image {reference}: {what} has {actual} bytes in registry {registry} instead of {expected}: \
             it is damaged or forged; push the image again or use another registry"
    )]
    WrongLength {
        reference: String,
        registry: String,
        what: String,
        expected: u64,
        actual: u64,
    },

    /// Content differs from its digest.
    #[error(
        "image {reference}: {what} has digest {actual} instead of {expected}: \
             it is damaged or forged; push the image again or use another registry"
    )]
    DigestMismatch {
        reference: String,
        what: String,
        expected: Digest,
        actual: Digest,
    },

    /// A manifest, an index or a configuration that cannot be understood.
    #[error("image {reference}: {what} is malformed: {reason}; build and push the image again")]
    Malformed {
        reference: String,
        what: String,
        reason: String,
    },

    /// Well-formed, but of a kind that Bulkhead does not run.
    #[error("image {reference}: {what} is {found}, which is not supported; {remedy}")]
    Unsupported {
        reference: String,
        what: String,
        found: String,
        remedy: String,
    },

    /// No variant for this machine.
    #[error("image {reference} is not made for {wanted}, only for {offered}; pull one that is")]
    NoPlatform {
        reference: String,
        wanted: String,
        offered: String,
    },

    /// A limit of the configuration, for what is read whole.
    #[error(
        "image {reference}: {what} has more than {limit} {unit}; raise images.{key} if the image is trusted"
    )]
    TooLarge {
        reference: String,
        what: String,
        limit: u64,
        unit: &'static str,
        key: &'static str,
    },

    /// A layer that cannot be had or converted.
    #[error("image {reference}: layer {layer}: {error}")]
    Layer {
        reference: String,
        layer: Digest,
        #[source]
        error: Box<LayerError>,
    },

    /// The image store holds no such image (any more).
    #[error("image {name} is not present; pull it first")]
    NotPresent { name: String },

    /// A file of the image store could not be worked with.
    #[error("image store: cannot {action} {}: {error}{}", .path.display(), no_space_remedy(.error))]
    Store {
        action: &'static str,
        path: PathBuf,
        #[source]
        error: Arc<io::Error>,
    },

    /// The image index could not be read or written.
    #[error("image index: cannot {action}: {reason}; check the state directory's disk")]
    Index { action: &'static str, reason: String },

    /// The daemon ends, and its pulls with it.
    #[error("image {reference}: the daemon is ending; pull it again when it is back")]
    Ending { reference: String },

    /// The system is out of threads or file descriptors, or work was broken off.
    #[error("image {reference}: {reason}")]
    Interrupted { reference: String, reason: String },
}

/// What kind of failure it is, for the one place that turns errors into gRPC codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller's name is no image reference.
    InvalidReference,
    /// The image, or what it consists of, does not exist where it was looked for.
    NotFound,
    /// Credentials are missing or wrong.
    Unauthorized,
    /// The credentials are right, but not enough.
    Forbidden,
    /// The registry's certificate is not trusted.
    Untrusted,
    /// What the host's administrator wrote about registries cannot be used.
    Misconfigured,
    /// The registry cannot be reached, does not answer, or fails; later may be better.
    Unavailable,
    /// The registry limits the rate of requests.
    RateLimited,
    /// What came is damaged, forged, or hostile.
    Corrupt,
    /// What came is well-formed but cannot be run here.
    Unsupported,
    /// A configured limit would be exceeded.
    TooLarge,
    /// The disk, or a quota on it, is full.
    NoSpace,
    /// A fault of this host or of Bulkhead.
    Internal,
}

impl ImageError {
    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference(_) => ErrorKind::InvalidReference,
            Self::Unreachable { .. }
            | Self::Stalled { .. }
            | Self::TooSlow { .. }
            | Self::Redirects { .. }
            | Self::BadAnswer { .. }
            | Self::Ending { .. } => ErrorKind::Unavailable,
            Self::Unauthorized { .. } => ErrorKind::Unauthorized,
            Self::Forbidden { .. } => ErrorKind::Forbidden,
            Self::Untrusted { .. } => ErrorKind::Untrusted,
            Self::HostConfig { .. } => ErrorKind::Misconfigured,
            // The last is the registry itself, or what stands for it.
            Self::AllFailed { tried, .. } => tried.last().map_or(ErrorKind::Unavailable, Self::kind),
            Self::Missing { .. } | Self::NotPresent { .. } => ErrorKind::NotFound,
            Self::RateLimited { .. } => ErrorKind::RateLimited,
            Self::DigestMismatch { .. } | Self::WrongLength { .. } | Self::Malformed { .. } => {
                ErrorKind::Corrupt
            }
            Self::Unsupported { .. } | Self::NoPlatform { .. } => ErrorKind::Unsupported,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Layer { error, .. } => error.kind(),
            Self::Store { error, .. } if is_no_space(error) => ErrorKind::NoSpace,
            Self::Store { .. } | Self::Index { .. } | Self::Config(_) | Self::Interrupted { .. } => {
                ErrorKind::Internal
            }
        }
    }

    pub(super) fn store(action: &'static str, path: impl Into<PathBuf>, error: impl Into<io::Error>) -> Self {
        Self::Store {
            action,
            path: path.into(),
            error: Arc::new(error.into()),
        }
    }
}

/// The failures one after the other, without the image's name before each.
fn each_failure(reference: &str, tried: &[ImageError]) -> String {
    let prefix = format!("image {reference}: ");
    let failures = tried.iter().enumerate().map(|(index, error)| {
        let text = error.to_string();
        format!("({}) {}", index + 1, text.strip_prefix(&prefix).unwrap_or(&text))
    });
    failures.collect::<Vec<_>>().join("; ")
}

/// Whether `error` says that the disk, or a quota on it, is full.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// What to do about `error` if the disk is full, to follow its text.
pub(super) fn no_space_remedy(error: &io::Error) -> &'static str {
    if is_no_space(error) {
        "; remove images or enlarge the disk of the image store"
    } else {
        ""
    }
}
