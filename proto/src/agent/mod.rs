//! The protocol between the host daemon and the agent in a guest: messages, service, bounds and framing.

pub mod limits;
pub mod wire;

pub use messages::*;

#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    missing_docs,
    unused_qualifications,
    reason = "generated from agent/agent.proto, which documents every field"
)]
mod messages {
    tonic::include_proto!("bulkhead.agent.v1");
}

/// Version of the protocol spoken by this build. Raised when an older peer would misunderstand a newer one.
pub const PROTOCOL_VERSION: u32 = 1;

/// vsock port of the guest on which the agent serves [`agent_server::Agent`].
pub const CONTROL_PORT: u32 = 1024;

/// vsock port of the guest on which the agent accepts the standard streams of processes.
pub const STREAM_PORT: u32 = 1025;

/// vsock port of the host to which the agent writes its [`HelloResponse`] when it is ready.
pub const DOORBELL_PORT: u32 = 1;
