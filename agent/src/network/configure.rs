//! Makes the guest's network what the host says it is.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
};

use bulkhead_proto::agent::ConfigureNetworkRequest;

use super::{
    address::{self, AddressError, Mac, Prefix},
    netlink::Netlink,
    rtnetlink::{self, Link, LinkChange, Route},
};
use crate::init::{pci, reaper::Reaper};

/// Longest name of an interface, in bytes (IFNAMSIZ less the closing zero).
const NAME_BYTES: usize = 15;

/// The network cannot be made like that.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Text that is no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// It cannot be a name.
    #[error(
        "{0:?} cannot be the name of a network interface: 1 to {NAME_BYTES} bytes without slash or space"
    )]
    BadName(String),
    /// Two interfaces of one name, or twice the same device.
    #[error("{0} is configured twice")]
    Twice(String),
    /// Out of range.
    #[error("route to {destination}: there is no scope {scope}")]
    BadScope {
        /// Which route.
        destination: String,
        /// As given.
        scope: u32,
    },
    /// The bus cannot be looked at.
    #[error("cannot look for network devices that were attached to the machine")]
    Look(#[source] io::Error),
    /// No such device.
    #[error("there is no network device with address {0}; attach it to the machine first")]
    NoDevice(Mac),
    /// No such interface.
    #[error("{what} names interface {name:?}, which there is not")]
    NoInterface {
        /// What names it.
        what: String,
        /// As given.
        name: String,
    },
    /// The kernel refuses.
    #[error("cannot {what}")]
    Kernel {
        /// What was tried.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An interface as it shall be.
#[derive(Debug)]
struct Interface {
    device: Mac,
    name: String,
    mac: Option<Mac>,
    mtu: Option<u32>,
    addresses: Vec<Prefix>,
}

/// Brings the loopback interface up.
pub fn bring_loopback_up() -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    for link in rtnetlink::links(&mut netlink)? {
        if link.loopback {
            set_up(&mut netlink, link.index)?;
        }
    }
    Ok(())
}

/// Applies `request`: addresses, routes and neighbours that are there and not in it are removed. Devices that are not there yet
/// are looked for on the bus.
pub async fn configure(request: &ConfigureNetworkRequest, reaper: &Reaper) -> Result<(), NetworkError> {
    let interfaces = parse_interfaces(request)?;
    let mut netlink = Netlink::open().map_err(kernel("open a netlink socket"))?;
    let links = rtnetlink::links(&mut netlink).map_err(kernel("list the network interfaces"))?;
    if interfaces.iter().any(|wanted| find(wanted, &links).is_none()) {
        pci::rescan(reaper).await.map_err(NetworkError::Look)?;
    }
    let mut indices: HashMap<String, u32> = HashMap::new();
    for interface in &interfaces {
        let links = rtnetlink::links(&mut netlink).map_err(kernel("list the network interfaces"))?;
        let index = shape_link(&mut netlink, interface, &links)?;
        set_addresses(&mut netlink, interface, index)?;
        set_up(&mut netlink, index).map_err(kernel(format!("bring {} up", interface.name)))?;
        indices.insert(interface.name.clone(), index);
    }
    for link in rtnetlink::links(&mut netlink).map_err(kernel("list the network interfaces"))? {
        indices.entry(link.name).or_insert(link.index);
    }
    set_routes(&mut netlink, request, &indices)?;
    set_neighbors(&mut netlink, request, &indices)
}

fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let what = what.into();
    move |source| NetworkError::Kernel { what, source }
}

fn set_up(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let up = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    rtnetlink::change_link(netlink, index, &up)
}

fn parse_interfaces(request: &ConfigureNetworkRequest) -> Result<Vec<Interface>, NetworkError> {
    let mut seen = HashSet::new();
    request
        .interfaces
        .iter()
        .map(|interface| {
            let device: Mac = interface.device_mac.parse()?;
            let name = &interface.name;
            let plain = name
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
            if !(1..=NAME_BYTES).contains(&name.len()) || !plain || [".", ".."].contains(&name.as_str()) {
                return Err(NetworkError::BadName(name.clone()));
            }
            for key in [
                format!("interface {name}"),
                format!("the device with address {device}"),
            ] {
                if !seen.insert(key.clone()) {
                    return Err(NetworkError::Twice(key));
                }
            }
            Ok(Interface {
                device,
                name: name.clone(),
                mac: match interface.mac.as_str() {
                    "" => None,
                    mac => Some(mac.parse()?),
                },
                mtu: (interface.mtu != 0).then_some(interface.mtu),
                addresses: interface
                    .addresses
                    .iter()
                    .map(|address| address.parse())
                    .collect::<Result<_, _>>()?,
            })
        })
        .collect()
}

/// Gives the device its name, address and MTU. Gives its number.
fn shape_link(netlink: &mut Netlink, wanted: &Interface, links: &[Link]) -> Result<u32, NetworkError> {
    let link = find(wanted, links).ok_or(NetworkError::NoDevice(wanted.device))?;
    let rename = link.name != wanted.name;
    let readdress = wanted.mac.is_some_and(|mac| link.mac != Some(mac));
    if rename && let Some(other) = links.iter().find(|other| other.name == wanted.name) {
        // It gets its own name in its turn, if it has one to get.
        take_down(netlink, other)?;
        let aside = format!("device{}", other.index);
        let change = LinkChange {
            name: Some(&aside),
            ..LinkChange::default()
        };
        rtnetlink::change_link(netlink, other.index, &change)
            .map_err(kernel(format!("rename interface {} to {aside}", other.name)))?;
    }
    if rename || readdress {
        take_down(netlink, link)?;
    }
    let change = LinkChange {
        name: rename.then_some(wanted.name.as_str()),
        mac: wanted.mac.filter(|_| readdress),
        mtu: wanted.mtu,
        up: None,
    };
    rtnetlink::change_link(netlink, link.index, &change).map_err(kernel(format!(
        "set name, address and MTU of the device with address {} to {}, {:?}, {:?}",
        wanted.device, wanted.name, change.mac, change.mtu
    )))?;
    Ok(link.index)
}

/// The device, by the address that it was made with, or had when it was first configured.
fn find<'a>(wanted: &Interface, links: &'a [Link]) -> Option<&'a Link> {
    let by = |matches: &dyn Fn(&Link) -> bool| links.iter().find(|link| !link.loopback && matches(link));
    by(&|link| link.permanent_mac == Some(wanted.device))
        .or_else(|| by(&|link| link.mac == Some(wanted.device)))
        .or_else(|| by(&|link| wanted.mac.is_some() && link.mac == wanted.mac && link.name == wanted.name))
}

fn take_down(netlink: &mut Netlink, link: &Link) -> Result<(), NetworkError> {
    if !link.up {
        return Ok(());
    }
    let down = LinkChange {
        up: Some(false),
        ..LinkChange::default()
    };
    rtnetlink::change_link(netlink, link.index, &down).map_err(kernel(format!("take {} down", link.name)))
}

fn set_addresses(netlink: &mut Netlink, wanted: &Interface, index: u32) -> Result<(), NetworkError> {
    let present = rtnetlink::addresses(netlink, index).map_err(kernel("list the addresses"))?;
    for address in &present {
        // The kernel's own, which go with the link.
        let link_local = matches!(address.address, IpAddr::V6(address) if address.is_unicast_link_local());
        if !wanted.addresses.contains(address) && !link_local {
            rtnetlink::delete_address(netlink, index, address)
                .map_err(kernel(format!("take address {address} from {}", wanted.name)))?;
        }
    }
    for address in &wanted.addresses {
        if !present.contains(address) {
            rtnetlink::add_address(netlink, index, address)
                .map_err(kernel(format!("give address {address} to {}", wanted.name)))?;
        }
    }
    Ok(())
}

fn set_routes(
    netlink: &mut Netlink,
    request: &ConfigureNetworkRequest,
    indices: &HashMap<String, u32>,
) -> Result<(), NetworkError> {
    let mut routes = request
        .routes
        .iter()
        .map(|route| {
            let optional = |text: &str| match text {
                "" => Ok(None),
                text => address::ip(text).map(Some),
            };
            Ok(Route {
                destination: route.destination.parse()?,
                gateway: optional(&route.gateway)?,
                interface: index_of(indices, &route.interface, || {
                    format!("route to {}", route.destination)
                })?,
                source: optional(&route.source)?,
                scope: u8::try_from(route.scope).map_err(|_| NetworkError::BadScope {
                    destination: route.destination.clone(),
                    scope: route.scope,
                })?,
                onlink: route.onlink,
                metric: route.metric,
                mtu: route.mtu,
            })
        })
        .collect::<Result<Vec<Route>, NetworkError>>()?;
    // A gateway must be reachable when its route is set.
    routes.sort_by_key(|route| route.gateway.is_some());
    rtnetlink::delete_routes(netlink).map_err(kernel("delete the routes"))?;
    for route in &routes {
        rtnetlink::add_route(netlink, route)
            .map_err(kernel(format!("set the route to {}", route.destination)))?;
    }
    Ok(())
}

fn set_neighbors(
    netlink: &mut Netlink,
    request: &ConfigureNetworkRequest,
    indices: &HashMap<String, u32>,
) -> Result<(), NetworkError> {
    for interface in &request.interfaces {
        if let Some(index) = indices.get(&interface.name) {
            rtnetlink::delete_neighbors(netlink, *index).map_err(kernel("delete the neighbours"))?;
        }
    }
    for neighbor in &request.neighbors {
        let index = index_of(indices, &neighbor.interface, || {
            format!("neighbour {}", neighbor.address)
        })?;
        let address = address::ip(&neighbor.address)?;
        rtnetlink::add_neighbor(netlink, index, address, neighbor.mac.parse()?)
            .map_err(kernel(format!("set the neighbour {address}")))?;
    }
    Ok(())
}

fn index_of(
    indices: &HashMap<String, u32>,
    name: &str,
    what: impl FnOnce() -> String,
) -> Result<u32, NetworkError> {
    indices
        .get(name)
        .copied()
        .ok_or_else(|| NetworkError::NoInterface {
            what: what(),
            name: name.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::agent;

    use super::*;

    fn request(interfaces: &[(&str, &str)]) -> ConfigureNetworkRequest {
        ConfigureNetworkRequest {
            interfaces: interfaces
                .iter()
                .map(|(device_mac, name)| agent::Interface {
                    device_mac: (*device_mac).to_owned(),
                    name: (*name).to_owned(),
                    ..agent::Interface::default()
                })
                .collect(),
            ..ConfigureNetworkRequest::default()
        }
    }

    #[test]
    fn interfaces_are_named_once_and_well() {
        const MAC: &str = "02:00:00:00:00:01";
        const OTHER: &str = "02:00:00:00:00:02";
        assert!(parse_interfaces(&request(&[(MAC, "eth0"), (OTHER, "eth1")])).is_ok());
        for (first, second) in [((MAC, "eth0"), (OTHER, "eth0")), ((MAC, "eth0"), (MAC, "eth1"))] {
            assert!(matches!(
                parse_interfaces(&request(&[first, second])),
                Err(NetworkError::Twice(_))
            ));
        }
        for bad in ["", ".", "eth/0", "a name", "sixteen-bytes-xx"] {
            assert!(
                matches!(
                    parse_interfaces(&request(&[(MAC, bad)])),
                    Err(NetworkError::BadName(_))
                ),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_device_is_found_again_after_its_address_was_changed() {
        let mac = |last| Mac([2, 0, 0, 0, 0, last]);
        let link = |index, name: &str, mac, permanent_mac| Link {
            index,
            name: name.to_owned(),
            mac,
            permanent_mac,
            up: true,
            loopback: false,
        };
        let wanted = Interface {
            device: mac(1),
            name: "eth0".to_owned(),
            mac: Some(mac(9)),
            mtu: None,
            addresses: Vec::new(),
        };
        let index = |links: &[Link]| find(&wanted, links).map(|link| link.index);
        assert_eq!(index(&[link(2, "x", Some(mac(1)), None)]), Some(2));
        assert_eq!(
            index(&[
                link(2, "a", Some(mac(1)), Some(mac(5))),
                link(3, "eth0", Some(mac(9)), Some(mac(1)))
            ]),
            Some(3)
        );
        assert_eq!(index(&[link(4, "eth0", Some(mac(9)), None)]), Some(4));
        assert_eq!(index(&[link(4, "eth1", Some(mac(9)), None)]), None);
    }
}
