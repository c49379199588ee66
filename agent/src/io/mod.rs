//! Bytes between the host and the standard streams of processes, or ports of the pod: connections, the window of each
//! stream, and where a connection finds its process.

pub mod connection;
pub mod door;
pub mod input;
pub mod output;
pub mod pipe;
pub mod port;
pub mod registry;
pub mod streams;
pub mod terminal;
pub mod transport;
pub mod window;
