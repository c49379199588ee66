//! What came of asking one host, when it is not what was asked for.

use std::error::Error as StdError;
use std::path::PathBuf;
use std::time::SystemTime;

use reqwest::StatusCode;

use super::super::{Digest, ErrorKind, ImageError};
use super::patience::{Patience, Trickle};
use super::retry::{Retry, parse_retry_after};

/// One host's failure.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Box<ImageError>,
    pub(super) retry: Retry,
    /// Whether no connection can be made at all, so that there is no use in asking for the next thing.
    pub(super) down: bool,
}

impl Failure {
    pub(super) fn lasting(error: ImageError) -> Self {
        Self {
            error: Box::new(error),
            retry: Retry::Never,
            down: false,
        }
    }

    fn passing(error: ImageError) -> Self {
        Self {
            error: Box::new(error),
            retry: Retry::Later(None),
            down: false,
        }
    }
}

/// How failures name what they are about.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// The image.
    pub(super) reference: String,
    /// The host that was asked, and for which registry.
    pub(super) registry: String,
    /// The repository in it.
    pub(super) repository: String,
    /// Where to write how the host is to be spoken to.
    pub(super) hosts_file: PathBuf,
    /// Why credentials that the host's administrator meant to be shown are not.
    pub(super) unshown: Option<String>,
}

impl Names {
    /// A request that got no answer.
    pub(super) fn unanswered(&self, error: &reqwest::Error) -> Failure {
        let reason = innermost(error);
        let tls = tls_failure(error);
        if let Some(rustls::Error::InvalidCertificate(_)) = tls {
            let (reference, registry) = self.both();
            let hosts_file = self.hosts_file.clone();
            return Failure {
                error: Box::new(ImageError::Untrusted {
                    reference,
                    registry,
                    reason,
                    hosts_file,
                }),
                retry: Retry::Never,
                down: true,
            };
        }
        let reason = match tls {
            Some(rustls::Error::InvalidMessage(_)) => format!(
                "it does not speak TLS ({reason}), as a registry listed in images.plain_http_registries need not"
            ),
            Some(rustls::Error::AlertReceived(_)) => format!(
                "it ended the TLS handshake ({reason}); where it wants a client certificate, name one with `client` in {}",
                self.hosts_file.display()
            ),
            _ => reason,
        };
        let down = error.is_connect() || tls.is_some();
        Failure {
            error: Box::new(self.unreachable(reason)),
            retry: if down { Retry::Never } else { Retry::Later(None) },
            down,
        }
    }

    /// An answer that ended before its end.
    pub(super) fn broken(&self, what: &str, reason: &str) -> Failure {
        let reason = format!("the connection broke while {what} was sent ({reason})");
        Failure::passing(self.unreachable(reason))
    }

    fn unreachable(&self, reason: String) -> ImageError {
        let (reference, registry) = self.both();
        ImageError::Unreachable {
            reference,
            registry,
            reason,
        }
    }

    pub(super) fn silent(&self, what: &str, patience: Patience) -> ImageError {
        let (reference, registry) = self.both();
        ImageError::Stalled {
            reference,
            registry,
            what: what.to_owned(),
            seconds: patience.silence.as_secs(),
        }
    }

    pub(super) fn trickle(&self, what: &str, Trickle { bytes, seconds }: Trickle) -> ImageError {
        let (reference, registry) = self.both();
        ImageError::TooSlow {
            reference,
            registry,
            what: what.to_owned(),
            bytes,
            seconds,
        }
    }

    /// An answer other than the content.
    pub(super) fn refusal(
        &self,
        what: &str,
        status: StatusCode,
        retry_after: Option<&str>,
        body: &[u8],
    ) -> Failure {
        let (code, said) = said_in(body);
        let wait = retry_after.and_then(|text| parse_retry_after(text, SystemTime::now()));
        let (reference, registry) = self.both();
        match status {
            StatusCode::UNAUTHORIZED => self.unauthorized(format!("{status}{said}")),
            StatusCode::FORBIDDEN => Failure::lasting(ImageError::Forbidden {
                reference,
                registry,
                reason: self.with_unshown(format!("{status}{said}")),
            }),
            StatusCode::NOT_FOUND => Failure::lasting(ImageError::Missing {
                reference,
                registry,
                what: if code == "NAME_UNKNOWN" {
                    format!("its repository {}", self.repository)
                } else {
                    what.to_owned()
                },
            }),
            StatusCode::TOO_MANY_REQUESTS => Failure {
                error: Box::new(ImageError::RateLimited {
                    reference,
                    registry,
                    retry_after: retry_after.map(printable),
                }),
                retry: Retry::Later(wait),
                down: false,
            },
            _ => {
                let mut failure = self.bad_answer(what, &format!("{status}{said}"));
                let is_passing = status.is_server_error()
                    && status != StatusCode::NOT_IMPLEMENTED
                    && status != StatusCode::HTTP_VERSION_NOT_SUPPORTED;
                if is_passing {
                    failure.retry = Retry::Later(wait);
                }
                failure
            }
        }
    }

    pub(super) fn unauthorized(&self, reason: String) -> Failure {
        let (reference, registry) = self.both();
        Failure::lasting(ImageError::Unauthorized {
            reference,
            registry,
            reason: self.with_unshown(reason),
        })
    }

    pub(super) fn bad_answer(&self, what: &str, answer: &str) -> Failure {
        let (reference, registry) = self.both();
        Failure::lasting(ImageError::BadAnswer {
            reference,
            registry,
            what: format!("a request for {what}"),
            answer: answer.to_owned(),
        })
    }

    pub(super) fn redirects(&self, what: &str, reason: &str) -> Failure {
        let (reference, registry) = self.both();
        Failure::lasting(ImageError::Redirects {
            reference,
            registry,
            what: what.to_owned(),
            reason: reason.to_owned(),
        })
    }

    pub(super) fn wrong_length(&self, what: &str, expected: u64, actual: u64) -> Failure {
        let (reference, registry) = self.both();
        Failure::lasting(ImageError::WrongLength {
            reference,
            registry,
            what: what.to_owned(),
            expected,
            actual,
        })
    }

    pub(super) fn wrong_digest(&self, what: &str, expected: Digest, actual: Digest) -> Failure {
        Failure::lasting(ImageError::DigestMismatch {
            reference: self.reference.clone(),
            what: what.to_owned(),
            expected,
            actual,
        })
    }

    pub(super) fn too_large(&self, what: &str, limit: u64, key: &'static str) -> Failure {
        Failure::lasting(ImageError::TooLarge {
            reference: self.reference.clone(),
            what: what.to_owned(),
            limit,
            unit: "bytes",
            key,
        })
    }

    pub(super) fn host_config(&self, reason: String) -> Failure {
        Failure::lasting(ImageError::HostConfig {
            reference: self.reference.clone(),
            reason,
        })
    }

    fn both(&self) -> (String, String) {
        (self.reference.clone(), self.registry.clone())
    }

    fn with_unshown(&self, reason: String) -> String {
        match &self.unshown {
            Some(unshown) => format!("{reason}; {unshown}"),
            None => reason,
        }
    }
}

/// Whether another attempt, or another host, may do better where `error` ended a download halfway.
pub(super) fn may_pass(error: &ImageError) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::RateLimited)
}

/// The message at the bottom of an error: the layers above it say little.
pub(super) fn innermost(error: &reqwest::Error) -> String {
    let mut deepest: &dyn StdError = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// What rustls has to do with it.
fn tls_failure(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An I/O error shows its own content's source as its source, and not its content.
        let content = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if let Some(content) = content {
            next = Some(content);
        } else {
            next = error.source();
        }
    }
    None
}

/// The code in a registry's error body, and what it says (distribution-spec, "Error Codes"), to follow its status.
fn said_in(body: &[u8]) -> (String, String) {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Body { errors }) = serde_json::from_slice(body) else {
        return Default::default();
    };
    match errors.into_iter().next() {
        Some(Item { code, message }) => {
            let said = format!(": {} {}", printable(&code), printable(&message));
            (code, said)
        }
        None => Default::default(),
    }
}

/// A stranger's text for our messages: short, in one line.
fn printable(text: &str) -> String {
    text.chars()
        .take(200)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
