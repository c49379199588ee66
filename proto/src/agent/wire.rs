//! Framing of the doorbell and of stream connections.
//!
//! A frame is a protobuf message behind its length as a base-128 varint ("length-delimited"). A stream connection is:
//!
//! 1. host → agent: a [`StreamHeader`](super::StreamHeader) frame,
//! 2. agent → host: a [`StreamReply`](super::StreamReply) frame,
//! 3. for stdin: host → agent raw bytes. To close the process's stdin the host ends its sending (`shutdown(SHUT_WR)`)
//!    and keeps the stream open until the agent, which has then passed on every byte, closes it. A stream that the host
//!    closes altogether closes nothing: that is a host that is gone, and the next one goes on with a stream of its own;
//! 4. for stdout and stderr: agent → host raw bytes until the agent shuts its side down, which is the stream's end.
//!    The other way the host sends acknowledgements, each the number of bytes of the whole stream that it has safely
//!    put away, as a little-endian `u64`. The agent keeps what is not acknowledged, at most
//!    [`STREAM_WINDOW_BYTES`](super::limits::STREAM_WINDOW_BYTES), and reads no more from the process beyond that: so a
//!    slow reader slows the process, and a daemon that comes back asks for the stream from the last byte it has.
//! 5. for a port: raw bytes both ways, between the host and a TCP connection of the agent's to the pod's loopback, by IPv4
//!    or else by IPv6. It stands when the reply comes; why it does not is in the refusal. Either side ends its sending
//!    without ending the other's; a connection that breaks on one side is closed on the other.

use prost::Message;

use super::limits::FRAME_BYTES;

/// Bytes of one acknowledgement on an output stream.
pub const ACKNOWLEDGEMENT_BYTES: usize = 8;

/// What is wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length says more than [`FRAME_BYTES`], or is no varint of at most ten bytes.
    #[error("the peer announced a frame of more than {FRAME_BYTES} bytes; it speaks another protocol")]
    TooLong,
    /// The bytes are not the message that belongs here.
    #[error("the peer sent a frame that is not the expected message; it speaks another protocol")]
    Malformed(#[source] prost::DecodeError),
}

/// The bytes of `message` as a frame.
pub fn encode(message: &impl Message) -> Vec<u8> {
    message.encode_length_delimited_to_vec()
}

/// Takes a message from the front of `bytes`, which may hold less or more than one frame.
///
/// Gives the message and how many bytes it took, or `None` where more bytes are needed.
///
/// # Errors
///
/// [`FrameError`] when no further byte could make it a frame.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<Option<(M, usize)>, FrameError> {
    let mut length: usize = 0;
    for (position, byte) in bytes.iter().enumerate() {
        if position >= 3 {
            return Err(FrameError::TooLong);
        }
        length |= usize::from(byte & 0x7f) << (7 * position);
        if length > FRAME_BYTES {
            return Err(FrameError::TooLong);
        }
        if byte & 0x80 == 0 {
            let start = position + 1;
            let Some(body) = bytes.get(start..start + length) else {
                return Ok(None);
            };
            let message = M::decode(body).map_err(FrameError::Malformed)?;
            return Ok(Some((message, start + length)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{StreamHeader, StreamKind, StreamReply};

    #[test]
    fn a_frame_comes_back_whole_however_it_is_cut() {
        let header = StreamHeader {
            container_id: "c".repeat(128),
            exec_id: "e1".to_owned(),
            kind: StreamKind::Stderr.into(),
            offset: u64::MAX,
            port: 0,
        };
        let mut bytes = encode(&header);
        let length = bytes.len();
        for cut in 0..length {
            assert!(
                decode::<StreamHeader>(&bytes[..cut]).unwrap().is_none(),
                "cut at {cut}"
            );
        }
        bytes.extend_from_slice(b"raw bytes behind it");
        assert_eq!(decode::<StreamHeader>(&bytes).unwrap(), Some((header, length)));
    }

    #[test]
    fn a_frame_beyond_the_bound_is_refused_before_it_is_read() {
        let reply = StreamReply {
            refusal: "x".repeat(FRAME_BYTES),
        };
        assert!(matches!(
            decode::<StreamReply>(&encode(&reply)[..4]),
            Err(FrameError::TooLong)
        ));
        assert!(matches!(
            decode::<StreamReply>(&[0xff; 10]),
            Err(FrameError::TooLong)
        ));
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        assert!(matches!(
            decode::<StreamReply>(&[2, 0x0f, 0xff]),
            Err(FrameError::Malformed(_))
        ));
    }
}
