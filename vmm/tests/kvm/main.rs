//! Machines on real KVM. Each test fails where there is none; that is why all are ignored unless asked for
//! (`cargo test -p bulkhead-vmm --test kvm -- --ignored`, which `hack/test` does in the node).

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed"
)]

mod bare;
mod bare_metal;
mod linux;
mod network;
mod running;
mod save_restore;
