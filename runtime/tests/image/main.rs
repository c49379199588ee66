//! Images from the registry to the disk of a VM, checked with tools that are not ours: the kernel's own EROFS,
//! fsck.erofs, GNU tar, umoci, sfdisk and a real registry.
//!
//! Needs root, for mounts, device nodes and `trusted.*` attributes, and Debian's packages tar, erofs-utils and fdisk.

mod build;
mod compare;
mod disks;
mod failures;
mod host;
mod hostile;
mod layers;
mod pulls;
mod registry;
mod stores;
mod tools;
