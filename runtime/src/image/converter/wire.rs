//! What the daemon and a converter tell each other: a request on the command line, an outcome through a pipe.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::Digest;
use super::super::layer::{LayerError, LayerLimits};

/// The most bytes of an outcome, or of what a converter that crashed says last.
pub(super) const MAX_OUTCOME_BYTES: u64 = 64 << 10;

/// What a converter is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// Converts the layer that comes on standard input.
    Layer {
        /// The layer's compressed bytes, for whoever looks at the list of processes.
        blob: Digest,
        diff_id: Digest,
        limits: LayerLimits,
    },
    /// Puts right what layers, from the lowest up, show of their directories.
    Directories {
        /// Whether each layer has directories that its archive does not describe. The layers' files come on standard
        /// input, a socket, in this order.
        implied: Vec<bool>,
        limits: LayerLimits,
    },
}

impl Request {
    pub(super) fn limits(&self) -> LayerLimits {
        match self {
            Self::Layer { limits, .. } | Self::Directories { limits, .. } => *limits,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Layer {
        blob_bytes: u64,
        hides_lower: bool,
        implies_directories: bool,
        entries: u64,
    },
    /// The bytes of the blob that was written; nothing if none is needed.
    Directories {
        blob_bytes: Option<u64>,
    },
    Failed(LayerError),
}

impl Outcome {
    /// Reads what a converter wrote. Whatever it wrote, no control characters come of it.
    pub(super) fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        let mut value = serde_json::from_slice(text)?;
        clean(&mut value);
        serde_json::from_value(value)
    }
}

fn clean(value: &mut Value) {
    match value {
        Value::String(text) => *text = printable(text),
        Value::Array(items) => items.iter_mut().for_each(clean),
        Value::Object(fields) => fields.values_mut().for_each(clean),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// `text` fit for a log and a message.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                '\u{fffd}'
            } else {
                character
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::super::super::tar::TarError;
    use super::*;

    #[test]
    fn every_failure_reads_the_same_on_the_other_side() {
        let digest = Digest::of(b"x");
        let failures = [
            LayerError::WrongDiffId {
                expected: digest,
                actual: Digest::of(b"y"),
            },
            LayerError::Decompress {
                format: "gzip".into(),
                error: Arc::new(io::Error::other("bad block")),
            },
            LayerError::Tar(TarError::Malformed {
                offset: 5,
                reason: "no".into(),
            }),
            LayerError::Tar(TarError::Truncated { offset: 7 }),
            LayerError::Tar(TarError::Read(Arc::new(io::Error::other("gone")))),
            LayerError::Entry {
                path: "a/b".into(),
                reason: "is bad".into(),
            },
            LayerError::TooLarge {
                limit: 4,
                unit: "entries".into(),
                key: Some("max_layer_entries".into()),
            },
            LayerError::Write {
                error: Arc::new(io::Error::from(io::ErrorKind::StorageFull)),
            },
            LayerError::Write {
                error: Arc::new(io::Error::from_raw_os_error(5)),
            },
        ];
        for failure in failures {
            let text = serde_json::to_vec(&Outcome::Failed(failure.clone())).unwrap();
            let Outcome::Failed(read) = Outcome::parse(&text).unwrap() else {
                panic!("{failure} became a success");
            };
            assert_eq!(
                (read.to_string(), read.kind()),
                (failure.to_string(), failure.kind())
            );
        }
    }

    #[test]
    fn control_characters_do_not_reach_a_log() {
        let text = br#"{"failed":{"entry":{"path":"a\u001b[2Jb","reason":"is\nnew"}}}"#;
        let Outcome::Failed(failure) = Outcome::parse(text).unwrap() else {
            panic!("a failure became a success");
        };
        let message = failure.to_string();
        assert!(!message.chars().any(char::is_control), "{message:?}");
        for text in [&b""[..], b"{}", b"null", b"{\"layer\":{}}", b"thread panicked"] {
            assert!(Outcome::parse(text).is_err());
        }
    }
}
