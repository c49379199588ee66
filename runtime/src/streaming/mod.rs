//! The streaming server: what Exec, Attach and PortForward give a URL of.
//!
//! A CRI call leaves a [`Job`] with the server and gets a URL with a token that works once. The kubelet or crictl connects
//! there, upgrades the connection to SPDY/3.1 or WebSocket, and from then on bytes flow between it and the job: a
//! [`remote_command`] or a [`port_forward`], joined by the queues of [`flow`]. Neither knows of containers or machines.

mod activity;
mod config;
pub mod flow;
pub mod fuzzing;
mod peer;
pub mod port_forward;
pub mod remote_command;
mod request;
mod server;
pub mod spdy;
mod tls;
mod tokens;
mod websocket;

pub use config::StreamingConfig;
pub use server::{OpenError, StreamingServer};
pub use tokens::{Job, JobKind, TooManyTokens};
