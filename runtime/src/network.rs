//! The network of a pod on the host's side: CNI puts interfaces into the pod's network namespace, and each is joined to a tap
//! that the pod's virtual machine is given.

pub(crate) mod cni;
mod config;
mod error;
mod guest;
mod host_ports;
pub(crate) mod namespace;
mod netlink;
mod pod_network;
mod prefix;
mod redirect;
mod survey;
pub(crate) mod tap;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use cni::{
    capabilities::Dns,
    error::{PluginError, PluginFault, PluginMessage},
    plugin::Command,
};
pub use config::NetworkConfig;
pub use error::NetworkError;
pub use guest::{GuestInterface, GuestNeighbor, GuestRoute, MacAddress, MacError};
pub use host_ports::{PortMapping, Protocol};
pub use pod_network::{Attached, Attachment, PodNetwork};
pub use prefix::{IpPrefix, PrefixError};

/// What another thread left when it panicked is still whole: nothing is changed in two steps.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
