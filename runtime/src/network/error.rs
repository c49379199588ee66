//! What can go wrong with a pod's network.

use std::{io, net::IpAddr, path::PathBuf};

use super::{cni::error::PluginError, host_ports::Protocol};

/// Why a pod's network is not as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no configuration that can be used.
    #[error("the network is not ready: {0}")]
    NotReady(String),
    /// A plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A plugin failed, and so did cleaning up after it, which is tried again when the pod is stopped.
    #[error("{error}; what was done before could not be undone: {undoing}")]
    NotUndone {
        /// What failed first.
        error: Box<NetworkError>,
        /// What failed then.
        undoing: Box<NetworkError>,
    },
    /// Another pod has the port.
    #[error(
        "host port {port}/{protocol} on {address} is taken by pod {holder}; choose another port or host address, or \
         remove that pod"
    )]
    PortTaken {
        /// The host's port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The host's address that was asked for; unspecified for all.
        address: IpAddr,
        /// The pod that has it: its name and id.
        holder: String,
    },
    /// An annotation with a bandwidth.
    #[error("annotation {name} is {value:?}, but must be bits per second from 1k to 1P, such as \"10M\"")]
    Annotation {
        /// The annotation.
        name: &'static str,
        /// What it says.
        value: String,
    },
    /// Something of the pod cannot be told to plugins.
    #[error("{field} {value:?} cannot be handed to CNI plugins: {reason}")]
    Unspeakable {
        /// The field of the pod's configuration.
        field: &'static str,
        /// What it says.
        value: String,
        /// Why not.
        reason: &'static str,
    },
    /// The network gave the pod nothing that it could be reached by.
    #[error("CNI network {0} gave the pod no address; its first plugin must have an `ipam`")]
    NoAddress(String),
    /// No tap can be joined to an interface.
    #[error("interface {interface} ({kind}) cannot be handed to a virtual machine: {reason}")]
    Interface {
        /// The interface in the pod's namespace.
        interface: String,
        /// Its kind, such as "ipvlan".
        kind: String,
        /// Why not, and what would do.
        reason: String,
    },
    /// Something in the pod's namespace has no counterpart in a virtual machine.
    #[error("{what} in the pod's network namespace cannot be carried into a virtual machine: {reason}")]
    Untranslatable {
        /// Such as "the route to 10.0.0.0/8".
        what: String,
        /// Why not.
        reason: &'static str,
    },
    /// The pod's namespace.
    #[error("cannot {action} in the network namespace {namespace}: {source}")]
    Namespace {
        /// The namespace.
        namespace: PathBuf,
        /// What was being done.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// What is remembered of pods' networks.
    #[error("cannot {action} the record of a pod's network in {directory}: {source}")]
    Record {
        /// What was being done.
        action: &'static str,
        /// Where the records are.
        directory: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A record of a pod's network that cannot be used any more.
    #[error(
        "what is remembered of the network of pod {pod_id} is not a CNI configuration: {fault}; delete its record in \
         {directory} to let the pod go without freeing what the network gave it"
    )]
    BadRecord {
        /// The pod.
        pod_id: String,
        /// What is wrong.
        fault: String,
        /// Where the records are.
        directory: PathBuf,
    },
    /// A pod CIDR.
    #[error(
        "pod CIDR {0:?} is not one or two networks such as 10.1.0.0/24 or fd00::/64, separated by a comma"
    )]
    PodCidr(String),
    /// The template of configurations.
    #[error("the template of CNI configurations {template} cannot be used: {reason}")]
    Template {
        /// `network.conf_template`.
        template: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The pod is not attached.
    #[error("pod {0} is attached to no network")]
    NotAttached(String),
    /// The pod was not checked to the end.
    #[error("pod {0} is being attached or detached, and was not checked")]
    CheckGivenUp(String),
    /// The work was lost.
    #[error("the task that sets up the network of a pod ended early: {0}")]
    Task(String),
}
