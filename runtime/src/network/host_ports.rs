//! Ports of the host that lead to pods, and which pod has which.
//!
//! CNI's portmap plugin does not notice when two pods ask for the same port: the first rule wins and the second pod is never
//! reached. So it is noticed here.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use serde_json::{Value, json};

use super::error::NetworkError;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port of the host that leads to one of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// The protocol of both.
    pub protocol: Protocol,
    /// The host's; 0 for none, and then nothing is mapped.
    pub host_port: u16,
    /// The pod's.
    pub container_port: u16,
    /// Which of the host's addresses; nothing, or the unspecified address, for all.
    pub host_ip: Option<IpAddr>,
}

impl PortMapping {
    /// As CNI's convention has it.
    pub(crate) fn to_json(self) -> Value {
        let mut mapping = json!({
            "hostPort": self.host_port,
            "containerPort": self.container_port,
            "protocol": self.protocol.to_string(),
        });
        if let (Some(address), Some(fields)) = (self.host_ip, mapping.as_object_mut()) {
            fields.insert("hostIP".to_owned(), address.to_string().into());
        }
        mapping
    }

    fn of_json(value: &Value) -> Option<Self> {
        let port = |key: &str| u16::try_from(value.get(key)?.as_u64()?).ok();
        let protocol = match value.get("protocol")?.as_str()? {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return None,
        };
        Some(Self {
            protocol,
            host_port: port("hostPort")?,
            container_port: port("containerPort")?,
            host_ip: value
                .get("hostIP")
                .and_then(Value::as_str)
                .and_then(|address| address.parse().ok()),
        })
    }

    /// Whether a packet could be meant for both.
    fn meets(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && match (self.host_ip, other.host_ip) {
                (Some(a), Some(b)) if a.is_ipv4() != b.is_ipv4() => false,
                (Some(a), Some(b)) => a == b || a.is_unspecified() || b.is_unspecified(),
                _ => true,
            }
    }
}

/// Who has which ports.
#[derive(Debug, Default)]
pub(crate) struct HostPorts {
    /// By pod: what it is called, and its ports.
    pods: BTreeMap<String, (String, Vec<PortMapping>)>,
}

impl HostPorts {
    /// Gives `pod_id`, called `name`, these ports and no others.
    ///
    /// # Errors
    ///
    /// [`NetworkError::PortTaken`] naming the first that another pod has. Then nothing is given.
    pub(crate) fn take(
        &mut self,
        pod_id: &str,
        name: &str,
        mappings: &[PortMapping],
    ) -> Result<(), NetworkError> {
        for (holder, (holder_name, held)) in self.pods.iter().filter(|(holder, _)| *holder != pod_id) {
            let taken = mappings
                .iter()
                .find(|mapping| held.iter().any(|held| held.meets(mapping)));
            if let Some(mapping) = taken {
                return Err(NetworkError::PortTaken {
                    port: mapping.host_port,
                    protocol: mapping.protocol,
                    address: mapping.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
                    holder: format!("{holder_name} ({holder})"),
                });
            }
        }
        self.pods.remove(pod_id);
        if !mappings.is_empty() {
            self.pods
                .insert(pod_id.to_owned(), (name.to_owned(), mappings.to_vec()));
        }
        Ok(())
    }

    /// Takes back what a pod has, as an earlier daemon wrote it down.
    pub(crate) fn restore(&mut self, pod_id: &str, name: &str, mappings: Option<&Value>) {
        let mappings: Vec<_> = mappings
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(PortMapping::of_json)
            .collect();
        if !mappings.is_empty() {
            self.pods.insert(pod_id.to_owned(), (name.to_owned(), mappings));
        }
    }

    /// A pod needs its ports no longer.
    pub(crate) fn release(&mut self, pod_id: &str) {
        self.pods.remove(pod_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host_port: u16, host_ip: Option<&str>) -> PortMapping {
        PortMapping {
            protocol: Protocol::Tcp,
            host_port,
            container_port: 80,
            host_ip: host_ip.map(|address| address.parse().unwrap()),
        }
    }

    #[test]
    fn a_port_is_one_pods_and_the_error_names_it() {
        let mut ports = HostPorts::default();
        ports.take("a", "default/web", &[tcp(8080, None)]).unwrap();
        let error = ports
            .take("b", "default/other", &[tcp(8080, Some("::1"))])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "host port 8080/tcp on ::1 is taken by pod default/web (a); choose another port or host address, or remove \
             that pod"
        );
        let udp = PortMapping {
            protocol: Protocol::Udp,
            ..tcp(8080, None)
        };
        ports.take("b", "default/other", &[udp, tcp(8081, None)]).unwrap();
        ports.take("a", "default/web", &[tcp(8080, None)]).unwrap();
        ports.release("a");
        ports.take("c", "default/third", &[tcp(8080, None)]).unwrap();
    }

    #[test]
    fn different_addresses_of_the_host_have_ports_of_their_own() {
        let taken = |a, b| {
            let mut ports = HostPorts::default();
            ports.take("a", "a", &[tcp(80, a)]).unwrap();
            ports.take("b", "b", &[tcp(80, b)]).is_err()
        };
        assert!(!taken(Some("10.0.0.1"), Some("10.0.0.2")));
        assert!(!taken(Some("0.0.0.0"), Some("::1")));
        assert!(taken(Some("0.0.0.0"), Some("10.0.0.1")));
        assert!(taken(Some("10.0.0.1"), Some("10.0.0.1")));
        assert!(taken(None, Some("10.0.0.1")));
    }

    #[test]
    fn ports_come_back_from_what_was_written_down() {
        let mapping = tcp(80, Some("10.0.0.1"));
        let mut ports = HostPorts::default();
        ports.restore(
            "a",
            "default/web",
            Some(&json!([mapping.to_json(), {"hostPort": "x"}])),
        );
        assert!(ports.take("b", "b", &[mapping]).is_err());
        ports.restore("c", "c", None);
        ports.release("a");
        ports.take("b", "b", &[mapping]).unwrap();
    }
}
