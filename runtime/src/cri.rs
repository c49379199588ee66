//! CRI v1 on a unix socket: thin handlers that check, translate, call and answer.
//!
//! What a request does is in [`crate::sandbox`], [`crate::container`] and [`crate::image`]; errors become gRPC codes in
//! [`error`] and nowhere else.

mod answers;
mod calls;
mod error;
mod events;
mod filter;
mod handler;
mod images;
mod info;
mod listener;
mod lists;
mod metrics;
mod parts;
mod runtime;
pub mod server;
mod stats;
mod status;

/// Version of the interface, as the kubelet expects it in `VersionResponse.version`.
pub const KUBE_API_VERSION: &str = "0.1.0";

/// Name of this runtime: the prefix of container ids in a pod's status.
pub const RUNTIME_NAME: &str = "bulkhead";

/// Version of CRI.
pub const API_VERSION: &str = "v1";
