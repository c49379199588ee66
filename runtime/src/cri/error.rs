//! The one place where errors become gRPC codes.
//!
//! The kubelet tells NotFound (gone), DeadlineExceeded (a probe that failed) and Unimplemented (do without) apart, and reads
//! the beginning of a message about an image; everything else is for people.

use std::io;

use tonic::{Code, Status};

use crate::{
    container::ContainerError,
    events::{Missed, TooManyListeners},
    image::{CredentialsError, ErrorKind, ImageError, ReferenceError},
    network::NetworkError,
    refusal::Refusal,
    sandbox::{
        PodError, agent::AgentError, machine::MachineError, scratch::ScratchError, stream::StreamError,
    },
    stats::{OfContainerError, StatsError},
    streaming::TooManyTokens,
    table::LookupError,
};

/// Longest message of an answer, in bytes: a message travels in an HTTP/2 header, and clients bound those.
const MESSAGE_BYTES: usize = 4096;

/// An error on its way to a client.
#[derive(Debug)]
pub(super) struct Failure(Status);

impl Failure {
    fn new(code: Code, message: &str) -> Self {
        let mut end = message.len().min(MESSAGE_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        Self(Status::new(code, message.get(..end).unwrap_or_default()))
    }

    /// A pull that failed. The kubelet strips the gRPC wrapping from code Unknown alone and reads the message's beginning.
    pub(super) fn of_pull(error: &ImageError) -> Self {
        match error.kind() {
            ErrorKind::Unavailable => Self::new(Code::Unknown, &format!("RegistryUnavailable: {error}")),
            kind => Self::new(image_code(kind), &error.to_string()),
        }
    }

    /// A call that this version does not have.
    pub(super) fn unimplemented(call: &str) -> Self {
        let message = format!(
            "{call} is not in this version of Bulkhead ({}); docs/cri.md lists what is",
            env!("CARGO_PKG_VERSION")
        );
        Self::new(Code::Unimplemented, &message)
    }

    /// Whether the object that was asked for does not exist.
    pub(super) fn is_not_found(&self) -> bool {
        self.0.code() == Code::NotFound
    }

    /// The status that the client gets.
    pub(super) fn into_status(self) -> Status {
        self.0
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal_code(&refusal), &refusal.to_string())
    }
}

impl From<PodError> for Failure {
    fn from(error: PodError) -> Self {
        Self::new(pod_code(&error), &error.to_string())
    }
}

impl From<ContainerError> for Failure {
    fn from(error: ContainerError) -> Self {
        Self::new(container_code(&error), &error.to_string())
    }
}

impl From<TooManyTokens> for Failure {
    fn from(error: TooManyTokens) -> Self {
        Self::new(Code::ResourceExhausted, &error.to_string())
    }
}

impl From<OfContainerError> for Failure {
    fn from(error: OfContainerError) -> Self {
        let code = match &error {
            OfContainerError::Container(error) => container_code(error),
            OfContainerError::Pod(error) => lookup_code(error),
            OfContainerError::Stats(StatsError::Silent { .. }) => Code::DeadlineExceeded,
            OfContainerError::Stats(StatsError::Agent { source, .. }) => agent_code(source),
        };
        Self::new(code, &error.to_string())
    }
}

impl From<TooManyListeners> for Failure {
    fn from(error: TooManyListeners) -> Self {
        Self::new(Code::ResourceExhausted, &error.to_string())
    }
}

impl From<Missed> for Failure {
    fn from(error: Missed) -> Self {
        Self::new(Code::DataLoss, &error.to_string())
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::new(image_code(error.kind()), &error.to_string())
    }
}

impl From<NetworkError> for Failure {
    fn from(error: NetworkError) -> Self {
        Self::new(network_code(&error), &error.to_string())
    }
}

impl From<ReferenceError> for Failure {
    fn from(error: ReferenceError) -> Self {
        Self::new(Code::InvalidArgument, &format!("image: {error}"))
    }
}

impl From<CredentialsError> for Failure {
    fn from(error: CredentialsError) -> Self {
        Self::new(Code::InvalidArgument, &format!("auth: {error}"))
    }
}

fn refusal_code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Invalid { .. } => Code::InvalidArgument,
        Refusal::Impossible { .. } => Code::FailedPrecondition,
        Refusal::NotYet { .. } => Code::Unimplemented,
    }
}

fn lookup_code(error: &LookupError) -> Code {
    match error {
        LookupError::Unknown(_) => Code::NotFound,
        LookupError::Ambiguous { .. } | LookupError::Empty => Code::InvalidArgument,
    }
}

fn pod_code(error: &PodError) -> Code {
    match error {
        PodError::Refused(refusal) => refusal_code(refusal),
        PodError::NameTaken(_) => Code::AlreadyExists,
        PodError::Lookup(error) => lookup_code(error),
        PodError::NotReady { .. } => Code::FailedPrecondition,
        PodError::Machine { source, .. } => machine_code(source),
        PodError::Scratch { source, .. } => match source {
            ScratchError::File { source, .. } => io_code(source),
            ScratchError::NoMkfs(_) => Code::FailedPrecondition,
            ScratchError::Mkfs { .. } => Code::Internal,
        },
        PodError::Agent { source, .. } => agent_code(source),
        PodError::Network { source, .. } => network_code(source),
        PodError::Host { source, .. } => io_code(source),
        PodError::Store(_) | PodError::Interrupted => Code::Internal,
        PodError::Cancelled { .. } => Code::Cancelled,
        PodError::Container { source, .. } => container_code(source),
    }
}

fn container_code(error: &ContainerError) -> Code {
    match error {
        ContainerError::Refused(refusal) => refusal_code(refusal),
        ContainerError::NameTaken(_) => Code::AlreadyExists,
        ContainerError::Lookup(error) => lookup_code(error),
        ContainerError::Pod(error) => pod_code(error),
        ContainerError::Image(error) => image_code(error.kind()),
        ContainerError::State { .. } | ContainerError::NoVolumePath { .. } => Code::FailedPrecondition,
        ContainerError::NoVolumeImage { .. } => Code::NotFound,
        ContainerError::Agent { source, .. } => agent_code(source),
        ContainerError::Timeout { .. }
        | ContainerError::Unkillable { .. }
        | ContainerError::Stream {
            source: StreamError::Silent(_),
            ..
        } => Code::DeadlineExceeded,
        ContainerError::Crowded { .. } => Code::ResourceExhausted,
        ContainerError::Attach { .. }
        | ContainerError::FellBehind { .. }
        | ContainerError::Log { .. }
        | ContainerError::Stream { .. }
        | ContainerError::Store(_)
        | ContainerError::Interrupted => Code::Internal,
    }
}

fn machine_code(error: &MachineError) -> Code {
    match error {
        MachineError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Code::FailedPrecondition
        }
        MachineError::File { source, .. } => io_code(source),
        MachineError::Silent { .. } => Code::DeadlineExceeded,
        MachineError::Agent(error) => agent_code(error),
        _ => Code::Internal,
    }
}

fn network_code(error: &NetworkError) -> Code {
    match error {
        NetworkError::NotReady(_)
        | NetworkError::PortTaken { .. }
        | NetworkError::NoAddress(_)
        | NetworkError::Interface { .. }
        | NetworkError::Untranslatable { .. }
        | NetworkError::Template { .. }
        | NetworkError::NotAttached(_)
        | NetworkError::CheckGivenUp(_) => Code::FailedPrecondition,
        NetworkError::Annotation { .. } | NetworkError::Unspeakable { .. } | NetworkError::PodCidr(_) => {
            Code::InvalidArgument
        }
        NetworkError::NotUndone { error, .. } => network_code(error),
        NetworkError::Plugin(_)
        | NetworkError::Namespace { .. }
        | NetworkError::BadRecord { .. }
        | NetworkError::Task(_) => Code::Internal,
        NetworkError::Record { source, .. } => io_code(source),
    }
}

/// A guest's code is passed on only where it says something of the request; nothing it says is "not found" or "exists" of
/// what this daemon knows better.
fn agent_code(error: &AgentError) -> Code {
    match error {
        AgentError::Refused { code, .. } => match code {
            Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted => *code,
            _ => Code::Internal,
        },
        AgentError::Unreachable { .. } => Code::Unavailable,
        AgentError::Silent { .. } => Code::DeadlineExceeded,
    }
}

fn image_code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidReference => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Unauthorized => Code::Unauthenticated,
        ErrorKind::Forbidden => Code::PermissionDenied,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::RateLimited | ErrorKind::NoSpace | ErrorKind::TooLarge => Code::ResourceExhausted,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Unsupported | ErrorKind::Untrusted | ErrorKind::Misconfigured => Code::FailedPrecondition,
        ErrorKind::Internal => Code::Internal,
    }
}

fn io_code(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Code::ResourceExhausted
        }
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::NameTaken;

    fn code(failure: impl Into<Failure>) -> Code {
        failure.into().into_status().code()
    }

    #[test]
    fn refusals_tell_wrong_impossible_and_not_yet_apart() {
        assert_eq!(code(Refusal::invalid("f", "r")), Code::InvalidArgument);
        assert_eq!(code(Refusal::impossible("f", "r")), Code::FailedPrecondition);
        assert_eq!(code(Refusal::not_yet("f", "r")), Code::Unimplemented);
    }

    #[test]
    fn what_the_kubelet_tells_apart_has_its_code() {
        assert_eq!(
            code(PodError::Lookup(LookupError::Unknown("x".into()))),
            Code::NotFound
        );
        assert_eq!(code(PodError::Lookup(LookupError::Empty)), Code::InvalidArgument);
        let taken = NameTaken {
            name: "n".into(),
            id: "i".into(),
        };
        assert_eq!(code(PodError::NameTaken(taken)), Code::AlreadyExists);
        let timeout = ContainerError::Timeout {
            id: "c".into(),
            seconds: 1,
        };
        assert_eq!(code(timeout), Code::DeadlineExceeded);
        let missing = ContainerError::Image(ImageError::NotPresent { name: "x".into() });
        assert_eq!(code(missing), Code::NotFound);
    }

    #[test]
    fn failures_of_registries_have_their_codes() {
        let (reference, registry) = (|| "r/x:1".to_owned(), || "r".to_owned());
        let text = || "t".to_owned();
        let missing = || ImageError::Missing {
            reference: reference(),
            registry: registry(),
            what: text(),
        };
        let unauthorized = ImageError::Unauthorized {
            reference: reference(),
            registry: registry(),
            reason: text(),
        };
        for (error, code) in [
            (missing(), Code::NotFound),
            (
                ImageError::AllFailed {
                    reference: reference(),
                    registry: registry(),
                    what: text(),
                    tried: vec![unauthorized.clone(), missing()],
                },
                Code::NotFound,
            ),
            (unauthorized, Code::Unauthenticated),
            (
                ImageError::Forbidden {
                    reference: reference(),
                    registry: registry(),
                    reason: text(),
                },
                Code::PermissionDenied,
            ),
            (
                ImageError::RateLimited {
                    reference: reference(),
                    registry: registry(),
                    retry_after: None,
                },
                Code::ResourceExhausted,
            ),
            (
                ImageError::Untrusted {
                    reference: reference(),
                    registry: registry(),
                    reason: text(),
                    hosts_file: "/h".into(),
                },
                Code::FailedPrecondition,
            ),
            (
                ImageError::HostConfig {
                    reference: reference(),
                    reason: text(),
                },
                Code::FailedPrecondition,
            ),
            (
                ImageError::WrongLength {
                    reference: reference(),
                    registry: registry(),
                    what: text(),
                    expected: 1,
                    actual: 2,
                },
                Code::DataLoss,
            ),
            // The kubelet reads what is wrong with a registry behind this code alone.
            (
                ImageError::Redirects {
                    reference: reference(),
                    registry: registry(),
                    what: text(),
                    reason: text(),
                },
                Code::Unknown,
            ),
            (
                ImageError::TooSlow {
                    reference: reference(),
                    registry: registry(),
                    what: text(),
                    bytes: 1,
                    seconds: 1,
                },
                Code::Unknown,
            ),
        ] {
            let status = Failure::of_pull(&error).into_status();
            assert_eq!(status.code(), code, "{status:?}");
            let told = status.message().starts_with("RegistryUnavailable: ");
            assert_eq!(told, code == Code::Unknown, "{status:?}");
        }
    }

    #[test]
    fn an_unreachable_registry_is_told_as_the_kubelet_reads_it() {
        let error = ImageError::Unreachable {
            reference: "r/x:1".into(),
            registry: "r".into(),
            reason: "refused".into(),
        };
        let status = Failure::of_pull(&error).into_status();
        assert_eq!(status.code(), Code::Unknown);
        assert!(
            status.message().starts_with("RegistryUnavailable: image r/x:1"),
            "{status:?}"
        );
    }

    #[test]
    fn a_guest_cannot_say_that_something_does_not_exist() {
        let error = |code| {
            let source = AgentError::Refused {
                code,
                message: "m".into(),
            };
            self::code(ContainerError::Agent {
                id: "c".into(),
                source,
            })
        };
        assert_eq!(error(Code::NotFound), Code::Internal);
        assert_eq!(error(Code::Unimplemented), Code::Internal);
        assert_eq!(error(Code::InvalidArgument), Code::InvalidArgument);
    }

    #[test]
    fn a_long_message_is_cut_between_letters() {
        let failure = Failure::new(Code::Internal, &"ä".repeat(MESSAGE_BYTES));
        assert_eq!(failure.into_status().message().len(), MESSAGE_BYTES);
    }
}
