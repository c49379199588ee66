//! What containers and the guest use, read from control groups, /proc and writable layers.

pub mod answer;
mod containers;
mod control_files;
mod disks;
mod guest;
mod pressure;
mod processes;
pub mod writable_layer;
