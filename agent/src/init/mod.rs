//! What the agent does because it is process 1 of a machine: the first mounts, the limits, the reaping, the end.

pub mod clock;
pub mod doorbell;
pub mod log;
pub mod mounts;
pub mod offload;
pub mod pci;
pub mod poweroff;
pub mod reaper;
pub mod uevents;
