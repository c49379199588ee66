//! What a request asks for and does not get: said by field, before anything is made.

/// Why a request is refused on sight.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It can never work: a field is missing, contradicts another or has a value that means nothing.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field as CRI names it, with those it is in.
        field: String,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// A pod in a virtual machine cannot have it.
    #[error("{field}: {reason}")]
    Impossible {
        /// The field as CRI names it.
        field: String,
        /// Why not, and what to do instead.
        reason: String,
    },
    /// This version does not do it.
    #[error("{field}: {reason}; this version of Bulkhead ({version}) does not have that", version = env!("CARGO_PKG_VERSION"))]
    NotYet {
        /// The field as CRI names it.
        field: String,
        /// What it would have been.
        reason: String,
    },
}

impl Refusal {
    /// A field whose value means nothing.
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// A field that no pod in a virtual machine can have.
    pub fn impossible(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Impossible {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// A field that this version does not honour.
    pub fn not_yet(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::NotYet {
            field: field.into(),
            reason: reason.into(),
        }
    }
}
