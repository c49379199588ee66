//! What the `bulkhead` command shows of a running daemon.

mod client;
mod columns;
pub mod debug;
pub mod events;
pub mod guest_log;
pub mod images;
pub mod pods;
pub mod top;

pub use client::AdminError;
