//! What can go wrong with CNI's plugins. Every message names the network, the plugin and the command.

use std::{fmt, io};

use super::plugin::Command;

/// A plugin was asked in vain.
#[derive(Debug, thiserror::Error)]
#[error("CNI network {network}: plugin {plugin} at {command}: {fault}")]
pub struct PluginError {
    /// The network's name.
    pub network: String,
    /// The plugin's type.
    pub plugin: String,
    /// What it was asked to do.
    pub command: Command,
    /// What it did instead.
    pub fault: PluginFault,
}

/// What a plugin did wrong.
#[derive(Debug, thiserror::Error)]
pub enum PluginFault {
    /// It is not there.
    #[error("there is no such executable in {0}; install it there or correct `network.bin_dirs`")]
    Missing(String),
    /// It cannot be started.
    #[error("it cannot be started: {0}")]
    Start(#[source] io::Error),
    /// It said so, as the specification has it.
    #[error("error {0}")]
    Refused(PluginMessage),
    /// It failed without saying so as the specification has it.
    #[error("it ended with {status}{}", said(.output))]
    Failed {
        /// Exit status or signal.
        status: String,
        /// What it printed, shortened.
        output: String,
    },
    /// It took too long, and was killed.
    #[error("it was killed because it had not ended after {seconds} s{}", said(.output))]
    TimedOut {
        /// How long it had.
        seconds: u64,
        /// What it had printed to its standard error, shortened.
        output: String,
    },
    /// It printed too much, and was killed.
    #[error("it was killed because it printed more than {0} bytes")]
    TooMuch(usize),
    /// What it printed is not what the specification says.
    #[error("it printed no valid result: {reason}{}", said(.output))]
    Garbage {
        /// What is wrong with it.
        reason: String,
        /// What it printed, shortened.
        output: String,
    },
    /// It could not be talked to.
    #[error("it cannot be talked to: {0}")]
    Io(#[source] io::Error),
}

/// A plugin's own error (section 5 of the specification).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginMessage {
    /// Its number: below 100 as the specification says, others as the plugin likes.
    pub code: u64,
    /// In short.
    pub message: String,
    /// At length; may be empty.
    pub details: String,
}

impl PluginMessage {
    /// The container is not known: there is nothing to clean up.
    pub(crate) const UNKNOWN_CONTAINER: u64 = 3;
}

impl fmt::Display for PluginMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match self.code {
            1 => " (incompatible CNI version)",
            2 => " (unsupported field in the configuration)",
            Self::UNKNOWN_CONTAINER => " (container unknown)",
            4 => " (invalid environment variables)",
            5 => " (I/O failure)",
            6 => " (failed to decode content)",
            7 => " (invalid network configuration)",
            11 => " (try again later)",
            50 => " (not available)",
            51 => " (not available, existing pods may be cut off)",
            _ => "",
        };
        write!(f, "{}{meaning}: {}", self.code, self.message)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        Ok(())
    }
}

fn said(output: &str) -> String {
    if output.is_empty() {
        ", and printed nothing".to_owned()
    } else {
        format!(", and printed: {output}")
    }
}
