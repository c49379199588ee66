//! Container logs in the format of CRI, written on the host.
//!
//! Bytes flow one way: a stream of the guest ([`crate::container`]) → lines ([`mod@format`]) → the file ([`writer`]), and
//! what has been written is acknowledged to the agent, which keeps the rest. So a slow disk slows the container and
//! loses nothing, and a daemon that comes back knows from the file itself how much of each stream it holds
//! ([`position`]).

pub mod condition;
pub mod format;
pub mod position;
pub mod writer;

pub use condition::LogFault;
pub use format::Stream;
pub use writer::{LogError, LogOutcome, LogWriter};
