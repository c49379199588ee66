//! The line with which a client of the host's socket says what it wants.

use std::os::unix::net::UnixStream;

use rustix::{
    io::{Errno, retry_on_intr},
    net::{RecvFlags, recv},
};

/// Longest line, its end included.
pub const LINE_BYTES: usize = 64;

/// Port that names none (VMADDR_PORT_ANY).
const ANY_PORT: u32 = u32::MAX;

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A connection to this port of the guest.
    Connect(u32),
    /// The connections that the guest opens to this port of the host.
    Listen(u32),
}

/// What has come of a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// Not all of it yet.
    Partial,
    /// A command. The bytes after it are left in the socket: they belong to the stream.
    Whole(Command),
    /// No command.
    Bad,
    /// The client has gone.
    Closed,
}

/// Looks for a whole line in a non-blocking socket and takes nothing but it.
pub fn read_line(stream: &UnixStream) -> Line {
    let mut bytes = [0; LINE_BYTES];
    let count = match retry_on_intr(|| recv(stream, &mut bytes, RecvFlags::PEEK)) {
        Ok((_, 0)) => return Line::Closed,
        Ok((_, count)) => count,
        Err(Errno::AGAIN) => return Line::Partial,
        Err(_) => return Line::Closed,
    };
    let seen = bytes.get(..count).unwrap_or_default();
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return if count == LINE_BYTES {
            Line::Bad
        } else {
            Line::Partial
        };
    };
    let command = seen.get(..end).and_then(parse);
    let mut line = vec![0; end + 1];
    match retry_on_intr(|| recv(stream, line.as_mut_slice(), RecvFlags::empty())) {
        Ok((_, taken)) if taken == line.len() => command.map_or(Line::Bad, Line::Whole),
        _ => Line::Closed,
    }
}

fn parse(line: &[u8]) -> Option<Command> {
    let (word, port) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let port = port.parse().ok().filter(|port| *port != ANY_PORT)?;
    match word {
        "CONNECT" => Some(Command::Connect(port)),
        "LISTEN" => Some(Command::Listen(port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn commands_are_exact() {
        assert_eq!(parse(b"CONNECT 1024"), Some(Command::Connect(1024)));
        assert_eq!(parse(b"LISTEN 0"), Some(Command::Listen(0)));
        assert_eq!(parse(b"LISTEN 4294967294"), Some(Command::Listen(u32::MAX - 1)));
        for bad in [
            "",
            " ",
            "CONNECT",
            "CONNECT ",
            "CONNECT  1",
            "CONNECT 1 ",
            "connect 1",
            "CONNECT +1",
            "CONNECT -1",
            "CONNECT 0x1",
            "CONNECT 4294967295",
            "CONNECT 99999999999999999999",
            "LISTEN 1\r",
            "LISTEN1",
            "\u{e9} 1",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(parse(b"LISTEN \xff"), None);
    }

    #[test]
    fn a_line_may_come_in_parts_and_what_follows_it_stays() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        assert_eq!(read_line(&ours), Line::Partial);
        theirs.write_all(b"CONN").unwrap();
        assert_eq!(read_line(&ours), Line::Partial);
        theirs.write_all(b"ECT 7\nbytes\n").unwrap();
        assert_eq!(read_line(&ours), Line::Whole(Command::Connect(7)));
        let mut rest = [0; 6];
        (&ours).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"bytes\n");
        theirs.write_all(&[b'x'; LINE_BYTES - 1]).unwrap();
        assert_eq!(read_line(&ours), Line::Partial);
        theirs.write_all(b"x").unwrap();
        assert_eq!(read_line(&ours), Line::Bad);
        drop(theirs);
        let mut rest = Vec::new();
        (&ours).read_to_end(&mut rest).unwrap();
        assert_eq!(read_line(&ours), Line::Closed);
    }
}
