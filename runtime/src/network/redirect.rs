//! Joins a tap to an interface of a pod: what comes in at one goes out at the other.
//!
//! Each gets an ingress qdisc with a filter that matches everything and hands it to the other's egress (tc-mirred(8)). So
//! packets pass the queueing and the filters that plugins have put on the interface's way out, and those on the host's side of
//! it both ways. The kernel of the host, as it is in that namespace, sees none of them: it never answers for the guest, and the
//! interface can keep its addresses, which plugins look for at CHECK and DEL, and by which ipvlan knows what is its own.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
    tc::{
        TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
        TcFilterMatchAllOption, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType,
        TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
    },
};

use super::netlink::Netlink;

/// Where a filter is in the order of those of an interface: the last, so that filters of plugins come first.
const LAST: u32 = 0xffff;

/// Joins the two, by number; both must be up.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn join(netlink: &mut Netlink, interface: u32, tap: u32) -> io::Result<()> {
    redirect(netlink, interface, tap)?;
    redirect(netlink, tap, interface)
}

/// Sets an interface's largest packet and brings it up.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn bring_up(netlink: &mut Netlink, index: u32, mtu: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::Mtu(mtu));
    netlink.request(RouteNetlinkMessage::SetLink(message), 0)
}

fn redirect(netlink: &mut Netlink, from: u32, to: u32) -> io::Result<()> {
    let mut qdisc = message(from, TcHandle::INGRESS)?;
    qdisc.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    qdisc.attributes.push(TcAttribute::Kind("ingress".to_owned()));
    match netlink.request(
        RouteNetlinkMessage::NewQueueDiscipline(qdisc),
        NLM_F_CREATE | NLM_F_EXCL,
    ) {
        // A plugin's ingress or clsact: both take the filter.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        other => other?,
    }
    match filter(netlink, from, "matchall", match_all(to)) {
        // Not every kernel has that classifier; this one is older than all.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            filter(netlink, from, "u32", match_any(to))
        }
        other => other,
    }
}

fn filter(netlink: &mut Netlink, on: u32, kind: &str, options: Vec<TcOption>) -> io::Result<()> {
    let parent = TcHandle {
        major: u16::MAX,
        minor: TcHandle::MIN_INGRESS,
    };
    let mut filter = message(on, parent)?;
    let all_protocols = u32::from(u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be());
    filter.header.info = LAST << 16 | all_protocols;
    filter.attributes.push(TcAttribute::Kind(kind.to_owned()));
    filter.attributes.push(TcAttribute::Options(options));
    netlink.request(
        RouteNetlinkMessage::NewTrafficFilter(filter),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

fn message(interface: u32, parent: TcHandle) -> io::Result<TcMessage> {
    let index = i32::try_from(interface).map_err(io::Error::other)?;
    let mut message = TcMessage::with_index(index);
    message.header.parent = parent;
    Ok(message)
}

fn match_all(to: u32) -> Vec<TcOption> {
    vec![TcOption::MatchAll(TcFilterMatchAllOption::Action(vec![hand_to(
        to,
    )]))]
}

fn match_any(to: u32) -> Vec<TcOption> {
    // The first four bytes, none of whose bits matter.
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![hand_to(to)])),
    ]
}

fn hand_to(to: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    action
}
