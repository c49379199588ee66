//! The two interfaces of Bulkhead as types: CRI v1, by which the kubelet speaks to the host daemon, and the agent's
//! protocol, by which the daemon speaks to PID 1 of a pod's guest.
//!
//! There is no logic here but framing and bounds: what a message means is the business of its two ends.

pub mod agent;

/// CRI v1: the package `runtime.v1` of Kubernetes, as `cri/api.proto` declares it.
#[cfg(feature = "cri")]
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    missing_docs,
    deprecated,
    unused_qualifications,
    reason = "generated from cri/api.proto, whose fields are told in docs/cri.md"
)]
pub mod cri {
    use std::fmt;

    tonic::include_proto!("runtime.v1");

    /// The encoded `FileDescriptorSet` that these types were generated from.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.descriptor.bin"));

    /// Names the registry and says which secrets are set, without showing any (`debug_redact` in the interface).
    impl fmt::Debug for AuthConfig {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let secret = |value: &str| if value.is_empty() { "" } else { "<redacted>" };
            f.debug_struct("AuthConfig")
                .field("username", &self.username)
                .field("password", &secret(&self.password))
                .field("auth", &secret(&self.auth))
                .field("server_address", &self.server_address)
                .field("identity_token", &secret(&self.identity_token))
                .field("registry_token", &secret(&self.registry_token))
                .finish()
        }
    }
}
