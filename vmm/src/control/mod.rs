//! The control socket: how a machine's owner hot-plugs disks and network interfaces, pauses, resumes, asks for state and ends it.

pub mod client;
pub mod protocol;
pub mod server;
