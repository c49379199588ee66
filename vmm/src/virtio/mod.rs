//! Virtio devices (OASIS virtio 1.2) and how they are run.
//!
//! Each device is a folder with the same files: `mod.rs` (what the device is, and its [`device::VirtioDevice`]),
//! `config.rs` (its configuration space), `queue.rs` (what is done with the buffers of its queues) and `state.rs`
//! (what is saved of it). The PCI transport in `crate::pci` knows devices only by that trait.
//!
//! What they share: a [`worker`] is the thread of a device and a [`stage`] whether it runs; a [`ring`] is a queue whose
//! chains are checked, each made of two [`buffer`]s; [`requests`] serves a ring chain by chain, [`scatter`] moves bytes
//! between descriptors and chains, [`saved`] keeps states.

pub mod block;
pub mod buffer;
pub mod config_space;
pub mod console;
pub mod device;
pub mod net;
pub mod requests;
pub mod ring;
pub mod rng;
pub mod saved;
pub mod scatter;
pub mod stage;
pub mod vsock;
pub mod worker;

#[cfg(test)]
mod fake_driver;
