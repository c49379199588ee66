//! A pod's place in the cluster's network: what CNI is asked for, and what the guest is told of it.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::{
    agent::{ConfigureNetworkRequest, Interface, Neighbor, Route},
    cri::{self, PodSandboxConfig},
};
use futures_util::{StreamExt, stream};

use super::{error::PodError, pod::Pod};
use crate::{
    daemon::Daemon,
    network::{Attached, Attachment, Dns, GuestInterface, NetworkError, PortMapping, Protocol},
    refusal::Refusal,
    store::PodPhase,
};

/// How many pods are checked side by side, and how long it may take for all of them.
const CHECKS_AT_ONCE: usize = 2;
const CHECKS_TIME: Duration = Duration::from_mins(10);

/// What the pod has of the network. Nothing, where the configuration gives pods none but loopback.
#[derive(Debug, Default)]
pub(super) struct Joined {
    /// The devices that the machine is to get.
    pub(super) interfaces: Vec<GuestInterface>,
    /// What the agent is told, so that they are what CNI has made.
    pub(super) request: ConfigureNetworkRequest,
    /// The pod's addresses, the main one first.
    pub(super) addresses: Vec<String>,
}

/// Joins the pod to the network, in its namespace.
///
/// # Errors
///
/// [`PodError::Network`]; then nothing is left of the attachment.
pub(super) async fn attach(daemon: &Daemon, pod: &Pod) -> Result<Joined, PodError> {
    let network = &daemon.network;
    if !network.is_enabled() {
        return Ok(Joined::default());
    }
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    let attachment = Attachment {
        pod_id: pod.id.clone(),
        namespace_path: pod.paths.namespace.clone(),
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        hostname: pod.hostname().to_owned(),
        annotations: pod.config.annotations.clone().into_iter().collect(),
        port_mappings: port_mappings(&pod.config)?,
        queue_pairs: queue_pairs(pod.size.vcpus),
        cgroup_parent: pod.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()),
        dns: pod.config.dns_config.as_ref().map(|dns| Dns {
            nameservers: dns.servers.clone(),
            search: dns.searches.clone(),
            options: dns.options.clone(),
        }),
    };
    let attached = network
        .attach(&attachment)
        .await
        .map_err(|source| PodError::Network {
            // Whoever asked for a pod that is not made has not got its id.
            id: format!("{} ({}/{})", pod.id, attachment.namespace, attachment.name),
            source: Box::new(source),
        })?;
    Ok(Joined {
        request: guest_request(&attached),
        addresses: attached.ips.iter().map(ToString::to_string).collect(),
        interfaces: attached.interfaces,
    })
}

/// Takes the pod out of the network. One that is not in it is not an error.
///
/// # Errors
///
/// [`PodError::Network`]; then it can be tried again.
pub(super) async fn detach(daemon: &Daemon, id: &str) -> Result<(), PodError> {
    daemon
        .network
        .detach(id)
        .await
        .map_err(|source| PodError::Network {
            id: id.to_owned(),
            source: Box::new(source),
        })
}

/// Asks the plugins whether these pods are attached as an earlier daemon left them. What is not is for the operator: it is said
/// in the log and in the pod's status, and changes nothing.
pub(super) async fn check(daemon: &Daemon, pods: Vec<Arc<Pod>>) {
    let attached = pods.into_iter().filter(|pod| {
        let state = pod.state();
        state.phase == PodPhase::Ready && !state.addresses.is_empty()
    });
    let checks = stream::iter(attached).for_each_concurrent(CHECKS_AT_ONCE, async |pod| {
        match daemon.network.check(&pod.id).await {
            Ok(()) => pod.change(|state| state.network_fault.clear()),
            // It is being stopped.
            Err(NetworkError::CheckGivenUp(_)) => {}
            Err(error) => {
                let message = error.to_string();
                tracing::warn!(pod = %pod.id, error = message, "the network of a pod is not as it was made");
                pod.change(|state| state.network_fault = message);
            }
        }
    });
    if tokio::time::timeout(CHECKS_TIME, checks).await.is_err() {
        let seconds = CHECKS_TIME.as_secs();
        tracing::warn!("checking the networks of pods was given up after {seconds} s");
    }
}

/// A second pair of queues is of use to a machine that can run two threads at once, and a third to none of a pod's size.
fn queue_pairs(vcpus: u8) -> u8 {
    vcpus.clamp(1, 2)
}

/// The ports of the host that lead to the pod.
///
/// # Errors
///
/// [`Refusal`] for what is no port, address or protocol.
pub(super) fn port_mappings(config: &PodSandboxConfig) -> Result<Vec<PortMapping>, Refusal> {
    let wanted = config.port_mappings.iter().enumerate();
    // Port 0 of the host asks for none: the kubelet lists every port that a container declares.
    wanted
        .filter(|(_, mapping)| mapping.host_port != 0)
        .map(|(index, mapping)| {
            port_mapping(mapping).map_err(|(field, reason)| {
                Refusal::invalid(format!("config.port_mappings[{index}].{field}"), reason)
            })
        })
        .collect()
}

fn port_mapping(mapping: &cri::PortMapping) -> Result<PortMapping, (&'static str, String)> {
    let port = |field, number: i32| {
        u16::try_from(number)
            .ok()
            .filter(|port| *port > 0)
            .ok_or((field, format!("{number} is no port; one is from 1 to 65535")))
    };
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => Some(
            text.parse()
                .map_err(|_| ("host_ip", format!("{text:?} is no IPv4 or IPv6 address")))?,
        ),
    };
    Ok(PortMapping {
        host_port: port("host_port", mapping.host_port)?,
        container_port: port("container_port", mapping.container_port)?,
        protocol: match cri::Protocol::try_from(mapping.protocol) {
            Ok(cri::Protocol::Tcp) => Protocol::Tcp,
            Ok(cri::Protocol::Udp) => Protocol::Udp,
            Ok(cri::Protocol::Sctp) => Protocol::Sctp,
            Err(_) => {
                return Err((
                    "protocol",
                    format!("{} is neither TCP, UDP nor SCTP", mapping.protocol),
                ));
            }
        },
        host_ip,
    })
}

fn guest_request(attached: &Attached) -> ConfigureNetworkRequest {
    let optional =
        |address: Option<std::net::IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    ConfigureNetworkRequest {
        interfaces: attached
            .interfaces
            .iter()
            .map(|interface| Interface {
                device_mac: interface.mac.to_string(),
                name: interface.name.clone(),
                mac: String::new(),
                mtu: interface.mtu,
                addresses: interface.addresses.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        routes: attached
            .routes
            .iter()
            .map(|route| Route {
                destination: route.destination.to_string(),
                gateway: optional(route.gateway),
                interface: route.interface.clone(),
                source: optional(route.source),
                scope: u32::from(route.scope),
                onlink: route.onlink,
                metric: route.metric,
                mtu: route.mtu,
            })
            .collect(),
        neighbors: attached
            .neighbors
            .iter()
            .map(|neighbor| Neighbor {
                address: neighbor.address.to_string(),
                mac: neighbor.mac.to_string(),
                interface: neighbor.interface.clone(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_port: i32, container_port: i32, protocol: i32, host_ip: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            port_mappings: vec![cri::PortMapping {
                protocol,
                container_port,
                host_port,
                host_ip: host_ip.to_owned(),
            }],
            ..PodSandboxConfig::default()
        }
    }

    #[test]
    fn ports_of_the_host_are_mapped_and_only_those() {
        assert_eq!(port_mappings(&mapping(0, 80, 0, "")), Ok(Vec::new()));
        let expected = PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Sctp,
            host_ip: Some("fd00::1".parse().unwrap()),
        };
        assert_eq!(
            port_mappings(&mapping(8080, 80, cri::Protocol::Sctp.into(), "fd00::1")),
            Ok(vec![expected])
        );
    }

    #[test]
    fn what_is_no_port_is_told_by_field() {
        for (config, field) in [
            (mapping(65_536, 80, 0, ""), "host_port"),
            (mapping(-1, 80, 0, ""), "host_port"),
            (mapping(8080, 0, 0, ""), "container_port"),
            (mapping(8080, 80, 9, ""), "protocol"),
            (mapping(8080, 80, 0, "localhost"), "host_ip"),
        ] {
            let refused = port_mappings(&config).unwrap_err().to_string();
            assert!(
                refused.contains(&format!("port_mappings[0].{field}")),
                "{refused}"
            );
        }
    }
}
