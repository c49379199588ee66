//! What containers use, read from their control groups and writable layers.

pub mod containers;
pub mod writable_layer;
