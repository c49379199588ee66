//! What the kernel knows of the network in the calling thread's namespace, as far as a guest is told of it.

use std::{collections::BTreeMap, io, net::IpAddr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{
        InfoData, InfoIpVlan, IpVlanMode, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
        RouteType, RouteVia,
    },
    rule::{RuleAttribute, RuleMessage},
};

use super::{
    error::NetworkError,
    guest::{GuestRoute, MacAddress},
    netlink::Netlink,
    prefix::IpPrefix,
};

/// Most objects of one kind that a guest is told of.
const MOST: usize = 4096;

/// An interface.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// Such as "veth"; "device" where the kernel does not say.
    pub(super) kind: String,
    pub(super) mac: MacAddress,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) loopback: bool,
    pub(super) ethernet: bool,
    pub(super) arp: bool,
    /// The number of the bridge, bond or VRF that it belongs to.
    pub(super) controller: Option<u32>,
    /// The mode of an ipvlan interface that is not in mode l2.
    pub(super) ipvlan_layer3: Option<IpVlanMode>,
}

/// Lists all interfaces.
pub(super) fn links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let mut request = LinkMessage::default();
    request
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let answers = netlink.dump(&RouteNetlinkMessage::GetLink(request))?;
    let links = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(link(message)),
        _ => None,
    });
    Ok(links.take(MOST).collect())
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: "device".to_owned(),
        mac: MacAddress::default(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        arp: !message.header.flags.contains(LinkFlags::Noarp),
        controller: None,
        ipvlan_layer3: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(controller) => link.controller = Some(controller),
            LinkAttribute::Address(bytes) => {
                link.mac = bytes.try_into().map(MacAddress).unwrap_or_default();
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = kind.to_string(),
                        LinkInfo::Data(InfoData::IpVlan(facts)) => {
                            link.ipvlan_layer3 = facts.into_iter().find_map(|fact| match fact {
                                InfoIpVlan::Mode(mode) if mode != IpVlanMode::L2 => Some(mode),
                                _ => None,
                            });
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

/// An address of an interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub(super) interface: u32,
    pub(super) prefix: IpPrefix,
}

impl Address {
    pub(super) fn is_link_local(&self) -> bool {
        match self.prefix.address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => address.is_unicast_link_local(),
        }
    }
}

/// Lists the addresses of all interfaces that nobody else was found to have.
pub(super) fn addresses(netlink: &mut Netlink) -> io::Result<Vec<Address>> {
    let answers = netlink.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let addresses = answers.into_iter().filter_map(|answer| {
        let RouteNetlinkMessage::NewAddress(message) = answer else {
            return None;
        };
        let mut failed = message.header.flags.contains(AddressHeaderFlags::Dadfailed);
        let (mut own, mut other) = (None, None);
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Local(address) => own = Some(address),
                // The own address too, but on a link between two where it is the other end's.
                AddressAttribute::Address(address) => other = Some(address),
                AddressAttribute::Flags(flags) => failed |= flags.contains(AddressFlags::Dadfailed),
                _ => {}
            }
        }
        let address = own.or(other).filter(|_| !failed)?;
        // The prefix is that of the other end then.
        let length = match (own, other) {
            (Some(own), Some(other)) if own != other => IpPrefix::host(own).length,
            _ => message.header.prefix_len,
        };
        Some(Address {
            interface: message.header.index,
            prefix: IpPrefix { address, length },
        })
    });
    Ok(addresses.take(MOST).collect())
}

/// A route of the main table.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) destination: IpPrefix,
    /// Made by the kernel when an address was set, or learnt from a router.
    pub(super) by_kernel: bool,
    pub(super) interface: Option<u32>,
    kind: RouteType,
    several_hops: bool,
    encapsulated: bool,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    scope: u8,
    onlink: bool,
    metric: u32,
    mtu: u32,
}

/// Lists the routes of the main table.
pub(super) fn routes(netlink: &mut Netlink) -> io::Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let answers = netlink.dump(&RouteNetlinkMessage::GetRoute(request))?;
        routes.extend(answers.into_iter().filter_map(|answer| match answer {
            // Where the kernel has no IPv6 it lists other families instead.
            RouteNetlinkMessage::NewRoute(message) if message.header.address_family == family => {
                route(message)
            }
            _ => None,
        }));
    }
    routes.truncate(MOST);
    Ok(routes)
}

fn route(message: RouteMessage) -> Option<Route> {
    let header = &message.header;
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => [0; 4].into(),
        _ => [0; 16].into(),
    };
    let mut table = u32::from(header.table);
    let learnt = [
        RouteProtocol::Kernel,
        RouteProtocol::Ra,
        RouteProtocol::IcmpRedirect,
    ];
    let mut route = Route {
        destination: IpPrefix {
            address: any,
            length: header.destination_prefix_length,
        },
        by_kernel: learnt.contains(&header.protocol),
        interface: None,
        kind: header.kind,
        several_hops: false,
        encapsulated: false,
        gateway: None,
        source: None,
        scope: header.scope.into(),
        onlink: header.flags.contains(RouteFlags::Onlink),
        metric: 0,
        mtu: 0,
    };
    let cloned = header.flags.contains(RouteFlags::Cloned);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = number,
            RouteAttribute::Destination(address) => route.destination.address = ip(&address)?,
            RouteAttribute::Oif(index) => route.interface = Some(index),
            RouteAttribute::Gateway(address) => route.gateway = ip(&address),
            RouteAttribute::Via(RouteVia::Inet(address)) => route.gateway = Some(address.into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => route.gateway = Some(address.into()),
            RouteAttribute::PrefSource(address) => route.source = ip(&address),
            RouteAttribute::Priority(metric) => route.metric = metric,
            RouteAttribute::MultiPath(_) => route.several_hops = true,
            RouteAttribute::Encap(_) => route.encapsulated = true,
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics
                    .iter()
                    .find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    })
                    .unwrap_or_default();
            }
            _ => {}
        }
    }
    (table == u32::from(RouteHeader::RT_TABLE_MAIN) && !cloned).then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

impl Route {
    /// The route as the guest must have it, with the names of its interfaces by number. Nothing: its kernel makes it by itself,
    /// or it concerns loopback only.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Untranslatable`], where it is of a kind that the guest is not told of.
    pub(super) fn for_guest(self, names: &BTreeMap<u32, &str>) -> Result<Option<GuestRoute>, NetworkError> {
        let refused = |reason| {
            Err(NetworkError::Untranslatable {
                what: format!("the route to {}", self.destination),
                reason,
            })
        };
        if self.by_kernel || self.destination.address.is_multicast() || self.destination.address.is_loopback()
        {
            return Ok(None);
        }
        if self.kind != RouteType::Unicast {
            return refused("it leads nowhere, and only routes through an interface are known");
        }
        if self.several_hops {
            return refused("it has several next hops");
        }
        if self.encapsulated {
            return refused("it encapsulates packets");
        }
        let Some(name) = self.interface.and_then(|index| names.get(&index)) else {
            return refused("its interface is none that the network's plugins told of");
        };
        Ok(Some(GuestRoute {
            destination: self.destination,
            gateway: self.gateway,
            interface: (*name).to_owned(),
            source: self.source,
            scope: self.scope,
            onlink: self.onlink,
            metric: self.metric,
            mtu: self.mtu,
        }))
    }
}

/// Priorities of the rules that every namespace has (ip-rule(8)).
const STANDARD_RULES: [u32; 3] = [0, 32766, 32767];

/// Refuses routing rules beside those that every namespace has: the guest is told of the main table only.
///
/// # Errors
///
/// [`NetworkError::Untranslatable`], or outside what the kernel says.
pub(super) fn refuse_rules(netlink: &mut Netlink) -> io::Result<Result<(), NetworkError>> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RuleMessage::default();
        request.header.family = family;
        let answers = match netlink.dump(&RouteNetlinkMessage::GetRule(request)) {
            // A kernel without IPv6, or without rules.
            Err(error)
                if [Some(libc::EOPNOTSUPP), Some(libc::EAFNOSUPPORT)].contains(&error.raw_os_error()) =>
            {
                continue;
            }
            other => other?,
        };
        for answer in answers {
            let RouteNetlinkMessage::NewRule(rule) = answer else {
                continue;
            };
            let priority = rule
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RuleAttribute::Priority(priority) => Some(*priority),
                    _ => None,
                })
                .unwrap_or_default();
            if !STANDARD_RULES.contains(&priority) {
                return Ok(Err(NetworkError::Untranslatable {
                    what: format!("the routing rule of priority {priority}"),
                    reason: "a guest has the main table only; do without plugins such as sbr and vrf",
                }));
            }
        }
    }
    Ok(Ok(()))
}

/// Lists the neighbours that were set for good, each with the number of its interface.
pub(super) fn neighbors(netlink: &mut Netlink) -> io::Result<Vec<(u32, IpAddr, MacAddress)>> {
    let answers = netlink.dump(&RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))?;
    let neighbors = answers.into_iter().filter_map(|answer| {
        let RouteNetlinkMessage::NewNeighbour(message) = answer else {
            return None;
        };
        if message.header.state != NeighbourState::Permanent {
            return None;
        }
        let (mut address, mut mac) = (None, None);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(own)) => {
                    address = Some(IpAddr::V4(own));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(own)) => {
                    address = Some(IpAddr::V6(own));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(MacAddress),
                _ => {}
            }
        }
        Some((message.header.ifindex, address?, mac?))
    });
    Ok(neighbors.take(MOST).collect())
}
