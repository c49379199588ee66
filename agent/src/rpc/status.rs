//! Errors as gRPC statuses: the one place that says which error has which code.

use std::error::Error;

use tonic::{Code, Status};

use super::bounds::BoundError;
use crate::{
    container::{
        error::ContainerError,
        launch::report::{Blame, ChildFailure},
        sandbox::SandboxError,
        spec::SpecError,
        sysctl::SysctlError,
    },
    error_text::with_causes,
    network::configure::NetworkError,
    storage::{disks::DiskError, layers::LayerError, overlay::OverlayError, scratch::ScratchError},
};

/// An error that has a code.
pub trait Coded: Error + Sized {
    /// Its code, as the protocol's header defines them.
    fn code(&self) -> Code;

    /// The status: the code, and the error with its causes.
    fn status(&self) -> Status {
        Status::new(self.code(), with_causes(self))
    }
}

impl Coded for BoundError {
    fn code(&self) -> Code {
        match self {
            Self::BadId { .. } => Code::InvalidArgument,
            Self::TooLong { .. } | Self::TooMany { .. } => Code::ResourceExhausted,
        }
    }
}

impl Coded for SpecError {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

impl Coded for ChildFailure {
    fn code(&self) -> Code {
        match self.blame {
            Blame::Request => Code::InvalidArgument,
            Blame::Guest => Code::Internal,
        }
    }
}

impl Coded for DiskError {
    fn code(&self) -> Code {
        match self {
            Self::BadSerial(_) => Code::InvalidArgument,
            Self::NoDisk { .. } | Self::NoPartition { .. } => Code::NotFound,
            Self::Look { .. } => Code::Internal,
        }
    }
}

impl Coded for ScratchError {
    fn code(&self) -> Code {
        match self {
            Self::Disk(error) => error.code(),
            Self::Mount { .. } | Self::Directory { .. } => Code::Internal,
        }
    }
}

impl Coded for SandboxError {
    fn code(&self) -> Code {
        match self {
            Self::LongHostname(_) | Self::Sysctl(SysctlError::BadName(_) | SysctlError::Unknown(_)) => {
                Code::InvalidArgument
            }
            Self::Sysctl(SysctlError::Refused { source, .. }) => match source.raw_os_error() {
                Some(libc::EINVAL | libc::ERANGE) => Code::InvalidArgument,
                _ => Code::Internal,
            },
            Self::Scratch(error) => error.code(),
            Self::Cgroup(_) | Self::Mount(..) | Self::Step { .. } => Code::Internal,
        }
    }
}

impl Coded for NetworkError {
    fn code(&self) -> Code {
        match self {
            Self::Address(_) | Self::BadName(_) | Self::Twice(_) | Self::BadScope { .. } => {
                Code::InvalidArgument
            }
            Self::NoDevice(_) | Self::NoInterface { .. } => Code::NotFound,
            Self::Look(_) | Self::Kernel { .. } => Code::Internal,
        }
    }
}

impl Coded for ContainerError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) | Self::NoExec { .. } => Code::NotFound,
            Self::Exists(_) | Self::ExecExists { .. } => Code::AlreadyExists,
            Self::BeingCreated(_)
            | Self::WrongState { .. }
            | Self::StillRuns { .. }
            | Self::OverLimit { .. }
            | Self::NoTerminal { .. } => Code::FailedPrecondition,
            Self::TooMany { .. } | Self::Overlay(OverlayError::TooMany { .. }) => Code::ResourceExhausted,
            Self::NotInImage { .. } => Code::OutOfRange,
            Self::BadSignal(_) | Self::NotKill(_) | Self::User(_) => Code::InvalidArgument,
            Self::Layer(LayerError::Disk(error)) => error.code(),
            Self::Scratch(error) => error.code(),
            // A value that the kernel does not take for a limit, or a limit that it does not have.
            Self::Cgroup(error) => match error.errno() {
                Some(rustix::io::Errno::INVAL | rustix::io::Errno::RANGE | rustix::io::Errno::NOENT) => {
                    Code::InvalidArgument
                }
                _ => Code::Internal,
            },
            Self::Child(failure) => failure.code(),
            Self::Layer(_) | Self::Overlay(_) | Self::Devpts(_) | Self::DiedEarly | Self::Step { .. } => {
                Code::Internal
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_protocol_and_messages_name_the_cause() {
        let status = ContainerError::NotFound("c1".to_owned()).status();
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), "there is no container c1");
        let status = ContainerError::Step {
            what: "make a terminal",
            source: std::io::Error::from_raw_os_error(libc::ENOSPC),
        }
        .status();
        assert_eq!(status.code(), Code::Internal);
        assert!(
            status
                .message()
                .starts_with("cannot make a terminal: No space left")
        );
        assert!(status.message().contains("os error 28"));
        let status = ContainerError::Child(ChildFailure {
            blame: Blame::Request,
            message: "exec: \"foo\": executable file not found in $PATH".to_owned(),
        })
        .status();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
}
