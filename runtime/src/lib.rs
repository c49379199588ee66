//! The host side of a pod.

pub mod image;
