//! rtnetlink(7) on a plain socket: what is asked on a thread inside a pod's namespace is answered there.
//!
//! Messages are built and read by netlink-packet-route. Its companion rtnetlink would bring a connection that is a task of
//! an asynchronous runtime, for which the thread is too short-lived.

use std::{io, os::fd::OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::{
    buffer::spare_capacity,
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink, recv,
        sendto, socket_with,
    },
};

/// Most that one answer may have; the kernel's own datagrams are smaller.
const ANSWER_BYTES: usize = 64 * 1024;

/// What was listed changed meanwhile (linux/netlink.h).
const NLM_F_DUMP_INTR: u16 = 0x10;

/// How often a list that changed meanwhile is asked for.
const DUMP_ATTEMPTS: usize = 10;

/// A connection to the kernel's routing family, in the network namespace of the thread that opens it.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one.
    pub(crate) fn open() -> io::Result<Self> {
        // NETLINK_ROUTE is protocol 0, which is the default.
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks for a change, with flags beside those of every request, and waits until the kernel has done it.
    ///
    /// # Errors
    ///
    /// The error number by which the kernel refuses.
    pub(crate) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, flags | NLM_F_ACK)?;
        self.receive().map(drop)
    }

    /// Asks for a list.
    pub(crate) fn dump(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            self.send(message.clone(), NLM_F_DUMP)?;
            let (answers, interrupted) = self.receive()?;
            if !interrupted {
                return Ok(answers);
            }
        }
        Err(io::Error::other("what was asked for changes all the time"))
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags | NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        sendto(
            &self.socket,
            &bytes,
            SendFlags::empty(),
            &SocketAddrNetlink::new(0, 0),
        )?;
        Ok(())
    }

    /// All answers to the last request, and whether they may not belong together.
    fn receive(&self) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let mut datagram = Vec::with_capacity(ANSWER_BYTES);
            match recv(&self.socket, spare_capacity(&mut datagram), RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let mut rest: &[u8] = &datagram;
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                rest = rest.get(length.max(1).next_multiple_of(4)..).unwrap_or_default();
                // What is left of an earlier request that failed midway.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok((answers, interrupted)),
                    NetlinkPayload::Error(error) if error.code.is_none() => {
                        return Ok((answers, interrupted));
                    }
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    use super::*;

    #[test]
    fn the_kernel_lists_and_refuses() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink
            .dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))
            .unwrap();
        let loopback = |link: &RouteNetlinkMessage| match link {
            RouteNetlinkMessage::NewLink(link) => {
                link.attributes.contains(&LinkAttribute::IfName("lo".to_owned()))
            }
            _ => false,
        };
        assert!(links.iter().any(loopback));
        let mut nobody = LinkMessage::default();
        nobody.header.index = u32::MAX >> 1;
        let error = netlink
            .request(RouteNetlinkMessage::SetLink(nobody), 0)
            .unwrap_err();
        let number = error.raw_os_error();
        assert!(
            [Some(libc::ENODEV), Some(libc::EPERM)].contains(&number),
            "{error}"
        );
    }
}
