//! CRI as clients see it, without KVM and without the rights of root: the real daemon and its real gRPC socket, a
//! stand-in for the machine (see [`double`]) and one for the host's kernel.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_imports,
    clippy::default_trait_access,
    clippy::many_single_char_names,
    clippy::needless_pass_by_value,
    clippy::field_reassign_with_default,
    clippy::cloned_ref_to_slice_refs,
    reason = "a test that goes wrong here has failed and says where, and reads best in the simplest form"
)]
#![allow(unsafe_code, reason = "the double takes the descriptors it was started with")]

mod admin;
mod containers;
mod double;
mod events;
mod fuzzed;
mod kills;
mod logs;
mod metrics;
mod node;
mod observe;
mod pods;
mod restarts;
mod spdy;
mod stats;
mod streaming;

#[expect(dead_code, reason = "the tests of images use all of it")]
#[path = "../image/authority.rs"]
mod authority;
#[expect(dead_code, unreachable_pub, reason = "the tests of images use all of it")]
#[path = "../image/build.rs"]
mod build;
#[expect(dead_code, reason = "the tests of images use all of it")]
#[path = "../image/registry.rs"]
mod registry;
#[expect(dead_code, reason = "the tests of images use all of it")]
#[path = "../image/tools.rs"]
mod tools;

/// Not a test: the process that stands in for `bulkhead-vmm`.
#[test]
#[ignore = "is started by the daemon in the other tests"]
fn machine() {
    if let Ok(tests) = std::env::var("BULKHEAD_MACHINE_DOUBLE") {
        double::run(tests.parse().unwrap());
    }
}

/// Not a test: the process of a node that is looked at from outside.
#[test]
#[ignore = "is started by another test"]
fn node_apart() {
    if std::env::var_os(fuzzed::apart::VARIABLE).is_some() {
        fuzzed::apart::run();
    }
}
