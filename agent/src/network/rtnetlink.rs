//! The objects of rtnetlink(7) that the agent lists, makes and deletes.

use std::net::IpAddr;

use super::{
    address::{Mac, Prefix, octets},
    netlink::{self, Answer, Message, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Netlink, u16_at, u32_at},
};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Lengths of the fixed parts: ifinfomsg, ifaddrmsg, rtmsg, ndmsg.
const LINK_BYTES: usize = 16;
const ADDRESS_BYTES: usize = 8;
const ROUTE_BYTES: usize = 12;
const NEIGHBOR_BYTES: usize = 12;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_PERM_ADDRESS: u16 = 54;
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 2;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_VIA: u16 = 18;
const RTAX_MTU: u16 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its address now.
    pub mac: Option<Mac>,
    /// The address that it was made with.
    pub permanent_mac: Option<Mac>,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
}

/// Changes of an interface; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct LinkChange<'a> {
    /// New name.
    pub name: Option<&'a str>,
    /// New address.
    pub mac: Option<Mac>,
    /// New largest packet.
    pub mtu: Option<u32>,
    /// Up or down.
    pub up: Option<bool>,
}

/// Lists all interfaces.
pub fn links(netlink: &mut Netlink) -> std::io::Result<Vec<Link>> {
    let answers = netlink.dump(Message::new(RTM_GETLINK, 0, &[0; LINK_BYTES]))?;
    Ok(answers.iter().filter_map(link).collect())
}

fn link(answer: &Answer) -> Option<Link> {
    let name = answer.attribute(LINK_BYTES, IFLA_IFNAME)?;
    let flags = u32_at(&answer.body, 8)?;
    let mac = |kind| {
        let bytes = answer.attribute(LINK_BYTES, kind)?;
        Some(Mac(bytes.try_into().ok()?))
    };
    Some(Link {
        index: u32_at(&answer.body, 4)?,
        name: String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name)).into_owned(),
        mac: mac(IFLA_ADDRESS),
        permanent_mac: mac(IFLA_PERM_ADDRESS),
        up: flags & IFF_UP != 0,
        loopback: flags & IFF_LOOPBACK != 0,
    })
}

/// Changes an interface.
pub fn change_link(netlink: &mut Netlink, index: u32, change: &LinkChange<'_>) -> std::io::Result<()> {
    let (flags, mask) = match change.up {
        None => (0, 0),
        Some(true) => (IFF_UP, IFF_UP),
        Some(false) => (0, IFF_UP),
    };
    let body = [
        [0; 4],
        index.to_ne_bytes(),
        flags.to_ne_bytes(),
        mask.to_ne_bytes(),
    ]
    .concat();
    let mut message = Message::new(RTM_NEWLINK, 0, &body);
    if let Some(name) = change.name {
        message = message.attribute(IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
    }
    if let Some(Mac(bytes)) = change.mac {
        message = message.attribute(IFLA_ADDRESS, &bytes);
    }
    if let Some(mtu) = change.mtu {
        message = message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
    }
    netlink.request(message)
}

/// Lists the addresses of an interface.
pub fn addresses(netlink: &mut Netlink, index: u32) -> std::io::Result<Vec<Prefix>> {
    let answers = netlink.dump(Message::new(RTM_GETADDR, 0, &[0; ADDRESS_BYTES]))?;
    Ok(answers
        .iter()
        .filter(|answer| u32_at(&answer.body, 4) == Some(index))
        .filter_map(|answer| {
            let own = answer.attribute(ADDRESS_BYTES, IFA_LOCAL);
            let address = own.or_else(|| answer.attribute(ADDRESS_BYTES, IFA_ADDRESS))?;
            Some(Prefix {
                address: from_octets(address)?,
                length: *answer.body.get(1)?,
            })
        })
        .collect())
}

/// Gives an interface an address, which is usable at once: nobody else can have it, so IPv6 does not ask around first.
pub fn add_address(netlink: &mut Netlink, index: u32, prefix: &Prefix) -> std::io::Result<()> {
    let mut message = address_message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, prefix);
    if let Some(broadcast) = prefix.broadcast() {
        message = message.attribute(IFA_BROADCAST, &broadcast.octets());
    }
    if prefix.address.is_ipv6() {
        message = message.attribute(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes());
    }
    netlink.request(message)
}

/// Takes an address from an interface.
pub fn delete_address(netlink: &mut Netlink, index: u32, prefix: &Prefix) -> std::io::Result<()> {
    netlink.request(address_message(RTM_DELADDR, 0, index, prefix))
}

fn address_message(kind: u16, flags: u16, index: u32, prefix: &Prefix) -> Message {
    let mut body = vec![family(prefix.address), prefix.length, 0, 0];
    body.extend(index.to_ne_bytes());
    let address = octets(prefix.address);
    Message::new(kind, flags, &body)
        .attribute(IFA_LOCAL, &address)
        .attribute(IFA_ADDRESS, &address)
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: Prefix,
    /// Through whom; on the link otherwise.
    pub gateway: Option<IpAddr>,
    /// Through which interface.
    pub interface: u32,
    /// Preferred source.
    pub source: Option<IpAddr>,
    /// RT_SCOPE_*
    pub scope: u8,
    /// The gateway is on the link although no address says so.
    pub onlink: bool,
    /// Lower is preferred; 0 for the kernel's choice.
    pub metric: u32,
    /// Largest packet; 0 for the interface's.
    pub mtu: u32,
}

/// Deletes every route that was set by hand, as all are that [`add_route`] made.
pub fn delete_routes(netlink: &mut Netlink) -> std::io::Result<()> {
    for family in [AF_INET, AF_INET6] {
        let mut body = [0; ROUTE_BYTES];
        if let Some(place) = body.first_mut() {
            *place = family;
        }
        for answer in netlink.dump(Message::new(RTM_GETROUTE, 0, &body))? {
            let Some([_, _, _, _, table, protocol, _, kind, ..]) = answer.body.first_chunk::<ROUTE_BYTES>()
            else {
                continue;
            };
            let by_hand = [RTPROT_BOOT, RTPROT_STATIC].contains(protocol);
            if *table == RT_TABLE_MAIN && *kind == RTN_UNICAST && by_hand {
                netlink.request(Message::new(RTM_DELROUTE, 0, &answer.body))?;
            }
        }
    }
    Ok(())
}

/// Sets a route.
pub fn add_route(netlink: &mut Netlink, route: &Route) -> std::io::Result<()> {
    let flags = if route.onlink { RTNH_F_ONLINK } else { 0 };
    let mut body = vec![
        family(route.destination.address),
        route.destination.length,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_STATIC,
        route.scope,
        RTN_UNICAST,
    ];
    body.extend(flags.to_ne_bytes());
    let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &body)
        .attribute(RTA_DST, &octets(route.destination.network()))
        .attribute(RTA_OIF, &route.interface.to_ne_bytes());
    if let Some(gateway) = route.gateway {
        message = if gateway.is_ipv4() == route.destination.address.is_ipv4() {
            message.attribute(RTA_GATEWAY, &octets(gateway))
        } else {
            let via = [u16::from(family(gateway)).to_ne_bytes().to_vec(), octets(gateway)].concat();
            message.attribute(RTA_VIA, &via)
        };
    }
    if let Some(source) = route.source {
        message = message.attribute(RTA_PREFSRC, &octets(source));
    }
    if route.metric != 0 {
        message = message.attribute(RTA_PRIORITY, &route.metric.to_ne_bytes());
    }
    if route.mtu != 0 {
        message = message.attribute(
            RTA_METRICS,
            &netlink::attribute(RTAX_MTU, &route.mtu.to_ne_bytes()),
        );
    }
    netlink.request(message)
}

/// Deletes every neighbour of an interface that was set by hand.
pub fn delete_neighbors(netlink: &mut Netlink, index: u32) -> std::io::Result<()> {
    for answer in netlink.dump(Message::new(RTM_GETNEIGH, 0, &[0; NEIGHBOR_BYTES]))? {
        let permanent = u16_at(&answer.body, 8) == Some(NUD_PERMANENT);
        if permanent && u32_at(&answer.body, 4) == Some(index) {
            netlink.request(Message::new(RTM_DELNEIGH, 0, &answer.body))?;
        }
    }
    Ok(())
}

/// Sets the hardware address of a neighbour for good.
pub fn add_neighbor(netlink: &mut Netlink, index: u32, address: IpAddr, mac: Mac) -> std::io::Result<()> {
    let mut body = vec![family(address), 0, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend(NUD_PERMANENT.to_ne_bytes());
    body.extend([0, 0]);
    netlink.request(
        Message::new(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &body)
            .attribute(NDA_DST, &octets(address))
            .attribute(NDA_LLADDR, &mac.0),
    )
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

fn from_octets(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}
