//! Messages of netlink(7): building, sending, and taking apart what the kernel answers.

use std::{io, os::fd::OwnedFd};

use rustix::{
    buffer::spare_capacity,
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink, recv,
        sendto, socket_with,
    },
};

/// Flags of a request (linux/netlink.h).
pub const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// What is there already is replaced.
pub const NLM_F_REPLACE: u16 = 0x100;
/// What is there already is an error.
pub const NLM_F_EXCL: u16 = 0x200;
/// What is not there is made.
pub const NLM_F_CREATE: u16 = 0x400;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Length of struct nlmsghdr and of struct rtattr.
const HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;

/// Most that one answer may have; the kernel's own datagrams are smaller.
const ANSWER_BYTES: usize = 64 * 1024;

/// A message under construction.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of type `kind`, whose fixed part is `body`.
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        Self { bytes }
    }

    /// Appends an attribute.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.bytes.extend(attribute(kind, value));
        self
    }

    fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        let mut put = |at: usize, value: &[u8]| {
            if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
        };
        put(0, &length.to_ne_bytes());
        put(8, &sequence.to_ne_bytes());
        let set = u16_at(&self.bytes, 6).unwrap_or(0) | flags;
        if let Some(place) = self.bytes.get_mut(6..8) {
            place.copy_from_slice(&set.to_ne_bytes());
        }
        self.bytes
    }
}

/// One attribute on its own, to be nested in another.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(ATTRIBUTE_HEADER_BYTES + value.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes
}

/// A message from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its type.
    pub kind: u16,
    /// What follows its header.
    pub body: Vec<u8>,
}

impl Answer {
    /// The attributes behind a fixed part of `fixed` bytes.
    pub fn attributes(&self, fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
        let mut rest = self.body.get(fixed..).unwrap_or_default();
        std::iter::from_fn(move || {
            let length = usize::from(u16_at(rest, 0)?);
            // The high bits are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
            let kind = u16_at(rest, 2)? & 0x3fff;
            let value = rest.get(ATTRIBUTE_HEADER_BYTES..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    /// The value of one attribute behind a fixed part of `fixed` bytes.
    pub fn attribute(&self, fixed: usize, wanted: u16) -> Option<&[u8]> {
        self.attributes(fixed)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    }
}

/// A connection to the kernel's routing family.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one.
    pub fn open() -> io::Result<Self> {
        // NETLINK_ROUTE is protocol 0, which is the default.
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and waits until the kernel has done it.
    ///
    /// # Errors
    ///
    /// The error number by which the kernel refuses.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.send(message, NLM_F_ACK)?;
        // An acknowledgement is an error message with number 0, and comes as an end here.
        self.receive_until_end().map(drop)
    }

    /// Asks for a list.
    pub fn dump(&mut self, message: Message) -> io::Result<Vec<Answer>> {
        self.send(message, NLM_F_DUMP)?;
        self.receive_until_end()
    }

    fn send(&mut self, message: Message, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.finish(flags, self.sequence);
        sendto(
            &self.socket,
            &bytes,
            SendFlags::empty(),
            &SocketAddrNetlink::new(0, 0),
        )?;
        Ok(())
    }

    fn receive_until_end(&self) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::new();
        loop {
            let mut datagram = Vec::with_capacity(ANSWER_BYTES);
            match recv(&self.socket, spare_capacity(&mut datagram), RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            for (sequence, answer) in messages(&datagram) {
                // What is left of an earlier request that failed midway.
                if sequence != self.sequence {
                    continue;
                }
                match answer.kind {
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => {
                        let number = i32_at(&answer.body, 0).unwrap_or(-libc::EIO);
                        return match number {
                            0 => Ok(answers),
                            number => Err(io::Error::from_raw_os_error(number.saturating_neg())),
                        };
                    }
                    _ => answers.push(answer),
                }
            }
        }
    }
}

fn messages(datagram: &[u8]) -> impl Iterator<Item = (u32, Answer)> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        let kind = u16_at(rest, 4)?;
        let sequence = u32_at(rest, 8)?;
        let body = rest.get(HEADER_BYTES..length)?.to_vec();
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((sequence, Answer { kind, body }))
    })
}

/// The number at a place, in the machine's byte order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

/// The number at a place, in the machine's byte order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    u32_at(bytes, at).map(u32::cast_signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_aligned() {
        let message = Message::new(16, 0, &[1, 2, 3, 4])
            .attribute(3, b"eth0\0")
            .attribute(4, &1500_u32.to_ne_bytes())
            .finish(NLM_F_ACK, 7);
        assert_eq!(message.len(), 16 + 4 + 12 + 8);
        let (sequence, answer) = messages(&message).next().unwrap();
        assert_eq!((sequence, answer.kind), (7, 16));
        assert_eq!(answer.attribute(4, 3), Some(&b"eth0\0"[..]));
        assert_eq!(answer.attribute(4, 4), Some(&1500_u32.to_ne_bytes()[..]));
        assert_eq!(answer.attribute(4, 5), None);
    }

    #[test]
    fn cut_off_messages_end_the_list() {
        let message = Message::new(16, 0, &[0; 4]).attribute(3, b"eth0\0").finish(0, 1);
        for cut in 0..message.len() {
            assert_eq!(messages(&message[..cut]).count(), 0, "{cut}");
        }
        let odd = Answer {
            kind: 0,
            body: vec![3, 0, 1, 0],
        };
        assert_eq!(odd.attributes(0).count(), 0, "shorter than its own header");
    }

    #[test]
    fn the_kernel_answers() {
        // RTM_GETLINK: at least the loopback interface is everywhere.
        let links = Netlink::open()
            .unwrap()
            .dump(Message::new(18, 0, &[0; 16]))
            .unwrap();
        assert!(links.iter().any(|link| link.attribute(16, 3) == Some(b"lo\0")));
        let error = Netlink::open()
            .unwrap()
            .request(Message::new(0x7ff, 0, &[0; 16]))
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    }
}
