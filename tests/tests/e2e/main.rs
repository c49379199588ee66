//! Bulkhead as its users see it: the real `crictl`, the real daemon, machines with kernels of their own.
//!
//! These tests run in a node with KVM, by `hack/test`; elsewhere they are ignored.

mod exits;
mod life;
