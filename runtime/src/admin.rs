//! What the `bulkhead` command shows of a running daemon.

pub mod pods;
