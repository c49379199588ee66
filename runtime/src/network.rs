//! The network of a pod on the host's side.

pub(crate) mod namespace;
