//! What plugins may ask to be told of a pod: the capabilities of CNI's CONVENTIONS.md, and the one by which Kubernetes'
//! runtimes hand over a pod's annotations.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::network::{error::NetworkError, host_ports::PortMapping, prefix::IpPrefix};

/// Annotations with the bandwidth of a pod, in bits per second as Kubernetes writes quantities.
const INGRESS_BANDWIDTH: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS_BANDWIDTH: &str = "kubernetes.io/egress-bandwidth";

/// Least and most bits per second that Kubernetes takes for a bandwidth.
const BANDWIDTHS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// Name servers and how names are looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers, the first preferred.
    pub nameservers: Vec<String>,
    /// Domains to look names up in, the first preferred.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

/// What is known of a pod.
#[derive(Debug)]
pub(crate) struct PodFacts<'a> {
    /// Its name, and other names it is known by.
    pub(crate) aliases: Vec<&'a str>,
    /// Its annotations.
    pub(crate) annotations: &'a BTreeMap<String, String>,
    /// Its host ports.
    pub(crate) port_mappings: &'a [PortMapping],
    /// Its control group.
    pub(crate) cgroup: Option<&'a str>,
    /// Its name servers, where it has its own.
    pub(crate) dns: Option<&'a Dns>,
    /// The node's pod CIDRs.
    pub(crate) pod_cidrs: &'a [IpPrefix],
}

/// All of it, by capability. A plugin is handed what it asks for.
///
/// # Errors
///
/// [`NetworkError::Annotation`], where a bandwidth is not one.
pub(crate) fn capabilities(pod: &PodFacts<'_>) -> Result<Map<String, Value>, NetworkError> {
    let mut known = Map::new();
    let mut tell = |name: &str, value: Value| {
        known.insert(name.to_owned(), value);
    };
    if !pod.port_mappings.is_empty() {
        let mappings = pod
            .port_mappings
            .iter()
            .copied()
            .map(PortMapping::to_json)
            .collect();
        tell("portMappings", Value::Array(mappings));
    }
    if let Some(bandwidth) = bandwidth(pod.annotations)? {
        tell("bandwidth", bandwidth);
    }
    if !pod.pod_cidrs.is_empty() {
        let ranges = pod
            .pod_cidrs
            .iter()
            .map(|cidr| json!([{"subnet": cidr.to_string()}]));
        tell("ipRanges", Value::Array(ranges.collect()));
    }
    if !pod.aliases.is_empty() {
        tell("aliases", json!(pod.aliases));
    }
    if let Some(cgroup) = pod.cgroup {
        tell("cgroupPath", json!(cgroup));
    }
    if let Some(dns) = pod.dns {
        tell(
            "dns",
            json!({"servers": dns.nameservers, "searches": dns.search, "options": dns.options}),
        );
    }
    if !pod.annotations.is_empty() {
        tell("io.kubernetes.cri.pod-annotations", json!(pod.annotations));
    }
    Ok(known)
}

fn bandwidth(annotations: &BTreeMap<String, String>) -> Result<Option<Value>, NetworkError> {
    let mut limits = Map::new();
    for (annotation, direction) in [(INGRESS_BANDWIDTH, "ingress"), (EGRESS_BANDWIDTH, "egress")] {
        let Some(text) = annotations.get(annotation) else {
            continue;
        };
        let rate = quantity(text)
            .filter(|rate| BANDWIDTHS.contains(rate))
            .ok_or_else(|| NetworkError::Annotation {
                name: annotation,
                value: text.chars().take(80).collect(),
            })?;
        // What may pass at once: a second's worth. The plugin takes less than 4 GiB, and needs room for a large packet.
        let burst = rate.clamp(1 << 20, u64::from(u32::MAX));
        limits.insert(format!("{direction}Rate"), rate.into());
        limits.insert(format!("{direction}Burst"), burst.into());
    }
    Ok((!limits.is_empty()).then_some(Value::Object(limits)))
}

/// A whole number as Kubernetes writes quantities: "10M", "1.5Gi", "5e6".
fn quantity(text: &str) -> Option<u64> {
    let end = text
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor: u64 = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => 10_u64.checked_pow(suffix.strip_prefix(['e', 'E'])?.parse().ok()?)?,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits = |text: &str| -> Option<u64> {
        if text.is_empty() {
            Some(0)
        } else {
            text.parse().ok()
        }
    };
    let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = u128::from(digits(fraction)?) * u128::from(factor) / u128::from(scale);
    digits(whole)?
        .checked_mul(factor)?
        .checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, bits) in [
            ("10M", Some(10_000_000)),
            ("1500", Some(1500)),
            ("1.5Gi", Some(1_610_612_736)),
            ("5e6", Some(5_000_000)),
            (".5k", Some(500)),
            ("1P", Some(1_000_000_000_000_000)),
            ("99999999999P", None),
            ("ten", None),
            ("", None),
            (".", None),
            ("1.2.3", None),
            ("-5", None),
            ("10 M", None),
        ] {
            assert_eq!(quantity(text), bits, "{text}");
        }
    }

    #[test]
    fn a_pod_is_told_by_capability() {
        let annotations = BTreeMap::from([
            (INGRESS_BANDWIDTH.to_owned(), "10M".to_owned()),
            ("a".to_owned(), "b".to_owned()),
        ]);
        let dns = Dns {
            nameservers: vec!["10.0.0.10".to_owned()],
            ..Dns::default()
        };
        let mut pod = PodFacts {
            aliases: vec!["web"],
            annotations: &annotations,
            port_mappings: &[],
            cgroup: Some("/pods/a"),
            dns: Some(&dns),
            pod_cidrs: &["10.1.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
        };
        let known = capabilities(&pod).unwrap();
        assert_eq!(
            Value::Object(known),
            json!({
                "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 10_000_000},
                "ipRanges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]],
                "aliases": ["web"],
                "cgroupPath": "/pods/a",
                "dns": {"servers": ["10.0.0.10"], "searches": [], "options": []},
                "io.kubernetes.cri.pod-annotations": {INGRESS_BANDWIDTH: "10M", "a": "b"},
            })
        );
        let annotations = BTreeMap::from([(EGRESS_BANDWIDTH.to_owned(), "5".to_owned())]);
        pod.annotations = &annotations;
        let message = capabilities(&pod).unwrap_err().to_string();
        assert!(
            message.contains(EGRESS_BANDWIDTH) && message.contains("\"5\""),
            "{message}"
        );
    }
}
