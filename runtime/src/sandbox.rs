//! Pod sandboxes: each a virtual machine with what the host's kernel gives it.
//!
//! [`run`] makes a pod, [`stop`] ends it, [`recover`] finds it again. A [`Pod`] is what lists and statuses show; its
//! [`machine::Machine`] is there while it is ready.

pub mod agent;
mod boot;
mod cgroup;
mod console;
mod doorbell;
mod error;
mod guest_files;
pub mod host;
pub mod machine;
mod network;
pub mod paths;
mod pod;
pub mod port_forward;
pub mod process;
pub(crate) mod recover;
mod rollback;
pub mod run;
pub mod scratch;
pub mod size;
mod spawn;
pub mod stop;
pub mod stream;
pub(crate) mod validate;
pub mod vsock;

pub use error::PodError;
pub use pod::{Pod, PodState};
