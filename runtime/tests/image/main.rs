//! Images from the registry to the disk of a VM, checked with tools that are not ours: the kernel's own EROFS,
//! fsck.erofs, GNU tar, umoci, sfdisk and a real registry.
//!
//! Needs root, for mounts, device nodes and `trusted.*` attributes, and Debian's packages tar, erofs-utils, fdisk,
//! umoci, skopeo, docker-registry and openssl.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cloned_ref_to_slice_refs,
    clippy::needless_pass_by_value,
    reason = "a test that goes wrong here has failed and says where, and reads best in the simplest form"
)]

mod authority;
mod bombs;
mod build;
mod certificates;
mod compare;
mod disks;
mod failures;
mod host;
mod hostile;
mod kills;
mod layers;
mod mirrors;
mod proxies;
mod pulls;
mod real;
mod records;
mod registry;
mod retries;
mod sandbox;
mod sharing;
mod stores;
mod tools;
mod trees;
