//! Pod sandboxes.

pub mod agent;
mod cgroup;
mod console;
mod doorbell;
mod guest_files;
pub mod host;
pub mod machine;
pub mod paths;
mod process;
pub mod scratch;
pub mod size;
mod spawn;
pub mod vsock;
