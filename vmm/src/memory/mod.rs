//! The guest's memory: where what lies in the guest's physical address space, and the file that holds its RAM.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

mod config_pages;
mod file_reader;
pub mod layout;
mod ram;

pub use config_pages::ConfigPages;
pub use file_reader::FileReader;
pub use ram::{MemoryError, allocate};

/// The guest's whole memory, shared by vCPUs and devices. Every access is bounds-checked by `vm-memory`.
pub type GuestRam = Arc<GuestMemoryMmap<()>>;
