//! End-to-end tests of Bulkhead: what they share to drive a node with the real clients.
//!
//! A test asks for a [`Daemon`] (the node's, or one of its own that it may break), runs [`Pod`]s and [`Container`]s on it
//! with the real `crictl`, and looks at what came of it by `crictl`, by gRPC, by the log files and by what is left on
//! the node ([`Inventory`]). Images with faults come from a [`registry`] inside the test.
//!
//! `hack/test` runs the tests inside the node and says where everything is in the variables of [`Environment`].
#![allow(
    clippy::missing_panics_doc,
    reason = "a broken node or a broken promise ends the test that meets it"
)]

mod container;
mod cri;
mod crictl;
mod critest;
mod daemon;
mod environment;
mod images;
mod inventory;
pub mod log;
mod pod;
mod probe;
pub mod registry;
mod tree;
mod wait;

pub use container::{Container, ContainerSpec, ExecOutput, create_arguments};
pub use cri::{Cri, assert_refused};
pub use crictl::{Crictl, Output};
pub use critest::critest;
pub use daemon::{Daemon, DaemonOptions};
pub use environment::Environment;
pub use inventory::Inventory;
pub use pod::{Pod, PodSpec};
pub use probe::Probe;
pub use tree::{Entry, Tree};
pub use wait::{DEADLINE, until};
