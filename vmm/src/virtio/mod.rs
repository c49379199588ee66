//! Virtio devices (OASIS virtio 1.2) and how they are run.
//!
//! Each device is a folder with the same files: `mod.rs` (what the device is, and its [`device::VirtioDevice`]),
//! `config.rs` (its configuration space), `queue.rs` (what is done with the buffers of its queues) and `state.rs`
//! (what is saved of it). The PCI transport in `crate::pci` knows devices only by that trait.

pub mod device;
pub mod worker;
