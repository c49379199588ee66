//! The disks of the pod and what is mounted from them: read-only image layers, the scratch disk, and the overlay of
//! both that is a container's root.

pub mod disks;
pub mod filesystem;
pub mod image_tree;
pub mod layers;
pub mod overlay;
pub mod scratch;
pub mod tree;
