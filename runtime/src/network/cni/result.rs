//! What ADD gives (CNI specification 1.1, section 5; those from 0.3.0 on differ in fields that are not read here).
//!
//! Name servers in it are not for the pod: the kubelet says by `PodSandboxConfig.dns_config` which it has, and every other CRI runtime
//! goes by that alone.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::network::prefix::IpPrefix;

/// Most entries of each list. The plugin's output as a whole is bounded as well.
const MOST_ENTRIES: usize = 4096;

/// A network's answer to ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AddResult {
    /// Interfaces that were made, on the host and in the pod.
    pub(crate) interfaces: Vec<ResultInterface>,
    /// Addresses of the pod, in the network's order.
    pub(crate) ips: Vec<ResultIp>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResultInterface {
    /// Its name.
    pub(crate) name: String,
    /// The pod's namespace; empty on the host.
    pub(crate) sandbox: String,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResultIp {
    /// With its prefix length.
    pub(crate) address: IpPrefix,
    /// Which of the interfaces has it, where that is said.
    pub(crate) interface: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    interfaces: Option<Vec<RawInterface>>,
    ips: Option<Vec<RawIp>>,
}

#[derive(Deserialize)]
struct RawInterface {
    name: String,
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct RawIp {
    address: String,
    #[serde(default)]
    interface: Option<i64>,
}

impl AddResult {
    /// Reads what the last plugin of ADD printed.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) fn parse(value: &Value) -> Result<Self, String> {
        let raw = Raw::deserialize(value).map_err(|error| error.to_string())?;
        let interfaces = bounded("interfaces", raw.interfaces)?
            .into_iter()
            .map(|interface| ResultInterface {
                name: interface.name,
                sandbox: interface.sandbox.unwrap_or_default(),
            })
            .collect::<Vec<_>>();
        let ips = bounded("ips", raw.ips)?
            .into_iter()
            .map(|ip| {
                let address = ip
                    .address
                    .parse::<IpPrefix>()
                    .map_err(|error| error.to_string())?;
                // Some plugins say -1, or the number of an interface that they do not list.
                let interface = ip.interface.and_then(|index| usize::try_from(index).ok());
                Ok(ResultIp {
                    address,
                    interface: interface.filter(|index| *index < interfaces.len()),
                })
            })
            .collect::<Result<Vec<_>, String>>()?;
        Ok(Self { interfaces, ips })
    }

    /// The pod's own addresses: those of interfaces in it, or of no certain interface, without loopback.
    pub(crate) fn pod_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.ips
            .iter()
            .filter(|ip| {
                let interface = ip.interface.and_then(|index| self.interfaces.get(index));
                interface.is_none_or(|interface| !interface.sandbox.is_empty() && interface.name != "lo")
            })
            .map(|ip| ip.address.address)
            .filter(|address| !address.is_loopback() && !address.is_unspecified())
    }
}

fn bounded<T>(what: &str, list: Option<Vec<T>>) -> Result<Vec<T>, String> {
    let list = list.unwrap_or_default();
    if list.len() > MOST_ENTRIES {
        return Err(format!("it has more than {MOST_ENTRIES} {what}"));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn results_of_all_versions_are_read() {
        let result = AddResult::parse(&json!({
            "cniVersion": "0.3.1",
            "interfaces": [
                {"name": "cni0", "mac": "0a:00:00:00:00:01"},
                {"name": "veth1", "sandbox": ""},
                {"name": "eth0", "mac": "0a:00:00:00:00:02", "sandbox": "/run/ns/a", "mtu": 1400, "unknown": []},
                {"name": "lo", "sandbox": "/run/ns/a"},
            ],
            "ips": [
                {"version": "6", "address": "fd00::7/64", "gateway": "fd00::1", "interface": 2},
                {"version": "4", "address": "10.1.0.7/24"},
                {"address": "10.9.0.1/24", "interface": 0},
                {"address": "127.0.0.1/8", "interface": 3},
                {"address": "10.1.0.8/24", "interface": -1},
                {"address": "10.1.0.9/24", "interface": 17},
            ],
            "dns": {"nameservers": ["10.1.0.1"], "search": ["a"], "extra": 1},
        }))
        .unwrap();
        let ips: Vec<String> = result.pod_ips().map(|ip| ip.to_string()).collect();
        assert_eq!(ips, ["fd00::7", "10.1.0.7", "10.1.0.8", "10.1.0.9"]);
        assert_eq!(result.interfaces[2].sandbox, "/run/ns/a");
        let empty = AddResult::parse(&json!({"interfaces": null, "ips": null, "dns": null})).unwrap();
        assert_eq!(empty, AddResult::default());
    }

    #[test]
    fn results_that_are_none_are_refused() {
        for (value, part) in [
            (json!(3), "invalid type"),
            (json!({"ips": [{"address": "10.0.0.1"}]}), "10.0.0.1"),
            (json!({"ips": [{"address": 3}]}), "string"),
            (json!({"interfaces": [{}]}), "name"),
            (
                json!({"interfaces": vec![json!({"name": "a"}); MOST_ENTRIES + 1]}),
                "more than",
            ),
        ] {
            let fault = AddResult::parse(&value).unwrap_err();
            assert!(fault.contains(part), "{fault}");
        }
    }
}
