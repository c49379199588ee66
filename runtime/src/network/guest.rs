//! What a guest is given of its pod's network namespace: a device for each interface, with its addresses, routes and neighbours.
//!
//! The namespace as CNI left it is the truth, and the plugins' results only say where to look: routes and neighbours that a
//! plugin sets are often not in them.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::IpAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::{
    error::NetworkError,
    namespace,
    netlink::Netlink,
    prefix::IpPrefix,
    redirect,
    survey::{self, Link},
    tap::{self, NAME_PREFIX},
};

/// A hardware address of Ethernet. Written such as "02:00:00:00:00:01".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.0.map(|byte| format!("{byte:02x}"));
        f.write_str(&pairs.join(":"))
    }
}

/// Text that is no hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a hardware address such as 02:00:00:00:00:01")]
pub struct MacError;

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(MacError)?;
            // from_str_radix takes a sign.
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacError);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacError)?;
        }
        parts.next().is_none().then_some(Self(bytes)).ok_or(MacError)
    }
}

/// An interface of a pod, joined to a tap.
#[derive(Debug)]
pub struct GuestInterface {
    /// Its name.
    pub name: String,
    /// Its hardware address, which the guest must have too: others know the pod by it.
    pub mac: MacAddress,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Its addresses. One whose network has no route of the kernel's own has its full length, so that the guest's kernel makes
    /// none either.
    pub addresses: Vec<IpPrefix>,
    /// The tap's open queues, one for each queue pair of the machine's device: IFF_TAP, IFF_NO_PI and IFF_VNET_HDR are set.
    pub taps: Vec<OwnedFd>,
}

/// A route of the main table that does not come with an address. Those on the link come first, as later ones may need them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestRoute {
    /// Where to.
    pub destination: IpPrefix,
    /// Through whom; on the link otherwise. May be of the other family.
    pub gateway: Option<IpAddr>,
    /// Through which interface.
    pub interface: String,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// RT_SCOPE_* as the kernel numbers it.
    pub scope: u8,
    /// The gateway is on the link although no address says so.
    pub onlink: bool,
    /// Lower is preferred; 0 where there is none.
    pub metric: u32,
    /// Largest packet in bytes; 0 for the interface's.
    pub mtu: u32,
}

/// A neighbour whose hardware address was set for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestNeighbor {
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: MacAddress,
    /// The interface it is behind.
    pub interface: String,
}

/// What the guest gets.
#[derive(Debug, Default)]
pub(crate) struct GuestNetwork {
    pub(crate) interfaces: Vec<GuestInterface>,
    pub(crate) routes: Vec<GuestRoute>,
    pub(crate) neighbors: Vec<GuestNeighbor>,
}

/// Joins taps of `queue_pairs` queues to the interfaces in the namespace at `namespace`, and tells what the guest must have:
/// those with `names`, which must be there, and then others that are up and have addresses. Blocking.
///
/// # Errors
///
/// [`NetworkError`], when an interface is not there or cannot be joined, when something cannot be carried over, or what the
/// kernel says. Taps are gone then.
pub(crate) fn join(namespace: &Path, names: &[&str], queue_pairs: u8) -> Result<GuestNetwork, NetworkError> {
    namespace::enter(namespace, || Joiner::open(namespace)?.join(names, queue_pairs))
        .map_err(failed(namespace, "enter"))?
}

fn failed<T: Into<String>>(namespace: &Path, action: T) -> impl FnOnce(io::Error) -> NetworkError + use<T> {
    let (namespace, action): (PathBuf, String) = (namespace.to_owned(), action.into());
    move |source| NetworkError::Namespace {
        namespace,
        action,
        source,
    }
}

struct Joiner<'a> {
    namespace: &'a Path,
    netlink: Netlink,
}

impl<'a> Joiner<'a> {
    fn open(namespace: &'a Path) -> Result<Self, NetworkError> {
        let netlink = Netlink::open().map_err(failed(namespace, "open a netlink socket"))?;
        Ok(Self { namespace, netlink })
    }

    fn join(mut self, names: &[&str], queue_pairs: u8) -> Result<GuestNetwork, NetworkError> {
        let chosen = self.choose(names)?;
        let mut network = GuestNetwork::default();
        for (index, link) in chosen.iter().enumerate() {
            refuse(link)?;
            let name = format!("{NAME_PREFIX}{index}");
            let taps =
                tap::create(&name, queue_pairs).map_err(self.failed(format!("make the tap {name}")))?;
            self.attach(link, &name)?;
            network.interfaces.push(GuestInterface {
                name: link.name.clone(),
                mac: link.mac,
                mtu: link.mtu,
                addresses: Vec::new(),
                taps,
            });
        }
        self.survey(&chosen, &mut network)?;
        Ok(network)
    }

    /// The interfaces of the guest, in its order.
    fn choose(&mut self, names: &[&str]) -> Result<Vec<Link>, NetworkError> {
        let mut links = survey::links(&mut self.netlink).map_err(self.failed("list the interfaces"))?;
        let mut chosen: Vec<Link> = Vec::new();
        for name in names {
            if chosen.iter().any(|link| link.name == *name) {
                continue;
            }
            let Some(place) = links.iter().position(|link| link.name == *name) else {
                return Err(NetworkError::Interface {
                    interface: (*name).to_owned(),
                    kind: "of no kind".to_owned(),
                    reason: "the network's plugins say that they made it, but it is not there".to_owned(),
                });
            };
            let link = links.remove(place);
            if !link.loopback {
                chosen.push(link);
            }
        }
        // Plugins that run others, as multus does, tell of the first network's interface only.
        let addresses = survey::addresses(&mut self.netlink).map_err(self.failed("list the addresses"))?;
        let has_address = |link: &Link| {
            addresses
                .iter()
                .any(|address| address.interface == link.index && !address.is_link_local())
        };
        links.retain(|link| {
            link.up
                && link.ethernet
                && link.arp
                && link.controller.is_none()
                && !link.loopback
                && !link.name.starts_with(NAME_PREFIX)
                && has_address(link)
        });
        chosen.extend(links);
        Ok(chosen)
    }

    fn attach(&mut self, link: &Link, tap: &str) -> Result<(), NetworkError> {
        let index = survey::links(&mut self.netlink)
            .and_then(|links| {
                links
                    .iter()
                    .find(|candidate| candidate.name == tap)
                    .map(|tap| tap.index)
                    .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
            })
            .map_err(self.failed(format!("find the tap {tap}")))?;
        for index in [link.index, index] {
            redirect::bring_up(&mut self.netlink, index, link.mtu)
                .map_err(self.failed(format!("bring up {} and {tap} with MTU {}", link.name, link.mtu)))?;
        }
        redirect::join(&mut self.netlink, link.index, index)
            .map_err(self.failed(format!("join {} and {tap} by tc's mirred", link.name)))
    }

    fn survey(&mut self, chosen: &[Link], network: &mut GuestNetwork) -> Result<(), NetworkError> {
        let names: BTreeMap<u32, &str> = chosen
            .iter()
            .map(|link| (link.index, link.name.as_str()))
            .collect();
        survey::refuse_rules(&mut self.netlink).map_err(self.failed("list the routing rules"))??;
        let addresses = survey::addresses(&mut self.netlink).map_err(self.failed("list the addresses"))?;
        let table = survey::routes(&mut self.netlink).map_err(self.failed("list the routes"))?;
        for (link, interface) in chosen.iter().zip(&mut network.interfaces) {
            interface.addresses = addresses
                .iter()
                .filter(|address| address.interface == link.index)
                .map(|address| {
                    let network = address.prefix.network();
                    let reached = table.iter().any(|route| {
                        route.by_kernel && route.destination == network && route.interface == Some(link.index)
                    });
                    if reached {
                        address.prefix
                    } else {
                        IpPrefix::host(address.prefix.address)
                    }
                })
                .collect();
        }
        for route in table {
            network.routes.extend(route.for_guest(&names)?);
        }
        network.routes.sort_by_key(|route| route.gateway.is_some());
        let neighbors = survey::neighbors(&mut self.netlink).map_err(self.failed("list the neighbours"))?;
        network.neighbors = neighbors
            .into_iter()
            .filter_map(|(interface, address, mac)| {
                Some(GuestNeighbor {
                    address,
                    mac,
                    interface: (*names.get(&interface)?).to_owned(),
                })
            })
            .collect();
        Ok(())
    }

    fn failed<T: Into<String>>(&self, action: T) -> impl FnOnce(io::Error) -> NetworkError + use<T> {
        failed(self.namespace, action)
    }
}

/// Refuses an interface whose packets a tap cannot stand for.
fn refuse(link: &Link) -> Result<(), NetworkError> {
    let reason = if let Some(mode) = link.ipvlan_layer3 {
        format!(
            "in mode {mode} it passes on packets without Ethernet, so that the guest would never be told a hardware \
             address; use mode l2, or macvlan, bridge or ptp"
        )
    } else if ["tun", "macvtap", "ipvtap"].contains(&link.kind.as_str()) {
        "it is a tap of another program; let the plugin make a veth, macvlan or ipvlan instead".to_owned()
    } else if !link.ethernet || link.mac == MacAddress::default() {
        "it has no Ethernet; use a plugin that makes an interface with a hardware address".to_owned()
    } else if !link.arp {
        "it does without ARP, which a guest needs to find its neighbours".to_owned()
    } else if let Some(controller) = link.controller {
        format!(
            "it belongs to interface {controller} of the namespace, as to a bridge, a bond or a VRF, which is not carried \
             over"
        )
    } else {
        return Ok(());
    };
    Err(NetworkError::Interface {
        interface: link.name.clone(),
        kind: link.kind.clone(),
        reason,
    })
}

#[cfg(test)]
mod tests;
