//! One virtual machine: KVM, guest memory, boot, PCI, virtio devices and a control socket.
//!
//! The library knows nothing of pods, images or Kubernetes: it gets a [`config::VmConfig`] and open files, and runs one
//! guest. The binary `bulkhead-vmm` is one process per machine; [`control::client`] is how its owner speaks to it.
//!
//! Everything the guest writes (memory, registers, queues, packets) is hostile input: it is bounded and checked, and
//! can at worst end this machine.

pub mod boot;
pub mod config;
pub mod control;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod snapshot;
mod threads;
pub mod virtio;
