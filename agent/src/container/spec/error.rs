//! What can be wrong with a request.

use crate::container::mount::options::OptionError;

/// A request that can never work.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A part that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Text that Linux takes as a C string.
    #[error("{0} contains a zero byte")]
    ZeroByte(&'static str),
    /// A path that would depend on a working directory.
    #[error("{what} {path:?} is not an absolute path")]
    NotAbsolute {
        /// Of what.
        what: &'static str,
        /// As given.
        path: String,
    },
    /// A mount that would hide the container from itself.
    #[error("a mount on {0:?} would hide the whole root file system")]
    MountOnRoot(String),
    /// An option of a mount.
    #[error("mount on {destination}")]
    MountOption {
        /// Where the mount goes.
        destination: String,
        /// Which option and why.
        #[source]
        source: OptionError,
    },
    /// An unknown name.
    #[error("there is no capability {0:?}; names are those of capabilities(7) without CAP_")]
    UnknownCapability(String),
    /// An unknown name.
    #[error("there is no resource limit {0:?}; names are those of setrlimit(2), such as RLIMIT_NOFILE")]
    UnknownLimit(String),
    /// A limit above its ceiling.
    #[error("{name}: the soft limit {soft} is above the hard limit {hard}")]
    SoftAboveHard {
        /// Which.
        name: String,
        /// As given.
        soft: u64,
        /// As given.
        hard: u64,
    },
    /// Out of the kernel's range.
    #[error("{what} is {value}, outside of {range}")]
    OutOfRange {
        /// Which.
        what: &'static str,
        /// As given.
        value: i64,
        /// What it may be.
        range: &'static str,
    },
    /// Entries of an environment have a name.
    #[error("environment entry {0:?} is not NAME=value")]
    BadEnvironment(String),
    /// A number that no message has.
    #[error("there is no {what} {value}")]
    UnknownValue {
        /// Of which kind.
        what: &'static str,
        /// As given.
        value: i32,
    },
    /// A name that is needed.
    #[error("a container that joins another's process namespace needs pid_target")]
    NoTarget,
    /// A control file outside of the group.
    #[error("{0:?} is not the name of a control file")]
    BadControlFile(String),
}
