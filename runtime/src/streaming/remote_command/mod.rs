//! A command, or a container's first process, with a client at its standard streams.
//!
//! The protocol is Kubernetes': a stream for each of stdin, stdout and stderr, one for the sizes of a terminal, and one on
//! which the server says at the end how it went.

mod over_spdy;
mod over_websocket;
mod resize;
mod status;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::flow::{Inlet, Outlet};

pub use over_spdy::serve as over_spdy;
pub use over_websocket::serve as over_websocket;
pub use resize::{WindowSize, watch_sizes};
pub use status::status;

/// Which streams a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error; not with a terminal.
    pub stderr: bool,
    /// A terminal, and the sizes of its window.
    pub tty: bool,
}

/// What a command is joined to.
#[derive(Debug)]
pub struct CommandIo {
    /// What the client types. Ends when the client closes it; broken when the client is gone.
    pub stdin: Option<Inlet>,
    /// What the command prints. To be finished when it is at its end.
    pub stdout: Option<Outlet>,
    /// What the command complains of.
    pub stderr: Option<Outlet>,
    /// The latest size of the client's window.
    pub sizes: watch::Receiver<Option<WindowSize>>,
}

/// Something that can be joined to a client's streams.
pub trait Command: Send {
    /// Runs until it has ended and all that it printed is sent, and gives its exit code, or in words why there is none.
    /// When the future is dropped, the client is gone.
    fn run(self: Box<Self>, io: CommandIo) -> BoxFuture<'static, Result<i32, String>>;
}

/// Version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `channel.k8s.io`: an error is text, and a clean end is told by nothing.
    V1,
    /// Almost the same.
    V2,
    /// With the sizes of a window.
    V3,
    /// The end is told as a status in JSON.
    V4,
    /// Over WebSocket only: a client can close its stdin.
    V5,
}

impl Version {
    /// The version of a protocol's name, as SPDY clients offer it. The fifth is not among them: it has nothing that SPDY
    /// does not have already.
    pub fn over_spdy(name: &str) -> Option<Self> {
        match name {
            "v4.channel.k8s.io" => Some(Self::V4),
            "v3.channel.k8s.io" => Some(Self::V3),
            "v2.channel.k8s.io" => Some(Self::V2),
            "channel.k8s.io" => Some(Self::V1),
            _ => None,
        }
    }
}

/// What [`Version::over_spdy`] knows, best first.
pub const SPDY_PROTOCOLS: [&str; 4] = [
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
