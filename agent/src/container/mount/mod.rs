//! The mounts of a container: what is asked for, what every container has, and how a mount gets to its place.

pub mod attach;
pub mod options;
pub mod standard;
