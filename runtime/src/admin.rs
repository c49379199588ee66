//! What the `bulkhead` command shows of a running daemon.

mod client;
mod columns;
pub mod images;
pub mod pods;

pub use client::AdminError;
