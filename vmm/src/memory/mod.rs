//! The guest's memory.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

/// The guest's whole memory, shared by vCPUs and devices. Every access is bounds-checked by `vm-memory`.
pub type GuestRam = Arc<GuestMemoryMmap<()>>;
