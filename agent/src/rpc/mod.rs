//! The control service: every request is checked against the protocol's bounds, parsed, and handed to those who do it.

pub mod answers;
pub mod bounds;
pub mod service;
pub mod status;
