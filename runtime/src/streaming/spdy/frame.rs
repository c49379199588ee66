//! Frames of SPDY/3.1 (draft-mbelshe-httpbis-spdy-00, section 2.2, and its version 3.1): what a client sends, taken
//! apart, and the few that a server answers with.

use super::headers::{Encoder, HeaderError};

/// Bytes in front of each frame.
pub const HEAD_BYTES: usize = 8;

/// Most bytes of a control frame behind its head. Data is taken in parts, so a data frame has no such bound.
pub const CONTROL_BYTES: usize = 16 << 10;

/// Most bytes of a data frame that is written.
pub const DATA_BYTES: usize = 64 << 10;

const VERSION: u16 = 3;
const CONTROL_BIT: u8 = 0x80;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Why a stream is refused or broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ResetStatus {
    /// It was not taken up.
    Refused = 3,
    /// It is not wanted any more.
    Cancel = 5,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It is no SPDY, or another version.
    #[error("the client speaks version {0} of SPDY, or no SPDY at all; 3 is spoken here")]
    Version(u16),
    /// Longer than it may be.
    #[error("a control frame of {0} bytes is longer than {CONTROL_BYTES}")]
    TooLong(usize),
    /// Shorter than it must be.
    #[error("a control frame of type {0} is cut short")]
    TooShort(u16),
    /// A stream's number is even, or not beyond the last one.
    #[error("the client opens a stream with number {0}, which is not the next odd one")]
    StreamNumber(u32),
    /// Its headers.
    #[error(transparent)]
    Headers(#[from] HeaderError),
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Bytes of a stream follow.
    Data {
        /// Which stream.
        stream: u32,
        /// Whether they are its last.
        fin: bool,
        /// How many.
        length: usize,
    },
    /// A control frame follows, of at most [`CONTROL_BYTES`].
    Control {
        /// Its type.
        kind: u16,
        /// Its flags.
        flags: u8,
        /// How many bytes it has.
        length: usize,
    },
}

impl Head {
    /// Reads a head.
    ///
    /// # Errors
    ///
    /// [`FrameError`].
    pub fn read(bytes: [u8; HEAD_BYTES]) -> Result<Self, FrameError> {
        let [a, b, c, d, flags, length @ ..] = bytes;
        let length = length
            .iter()
            .fold(0, |length, byte| length << 8 | usize::from(*byte));
        if a & CONTROL_BIT == 0 {
            return Ok(Self::Data {
                stream: u32::from_be_bytes([a, b, c, d]),
                fin: flags & FIN != 0,
                length,
            });
        }
        let version = u16::from_be_bytes([a & !CONTROL_BIT, b]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > CONTROL_BYTES {
            return Err(FrameError::TooLong(length));
        }
        let kind = u16::from_be_bytes([c, d]);
        Ok(Self::Control { kind, flags, length })
    }
}

/// What a client says in a control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control<'a> {
    /// Opens a stream.
    Open {
        /// Its number.
        stream: u32,
        /// Whether the client has nothing to send on it.
        fin: bool,
        /// Its headers, compressed.
        block: &'a [u8],
    },
    /// More headers of a stream, which nobody reads but the decompressor.
    More {
        /// Compressed.
        block: &'a [u8],
    },
    /// Breaks a stream off.
    Reset {
        /// Which.
        stream: u32,
    },
    /// Asks for an echo.
    Ping {
        /// What is to be echoed.
        id: u32,
    },
    /// Everything that is of no consequence here: settings, windows, farewells.
    Nothing,
}

impl<'a> Control<'a> {
    /// Takes the body of a control frame apart.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooShort`].
    pub fn read(kind: u16, flags: u8, body: &'a [u8]) -> Result<Self, FrameError> {
        let short = FrameError::TooShort(kind);
        let number = |place: usize| -> Result<u32, FrameError> {
            let bytes = body.get(place..).and_then(<[u8]>::first_chunk);
            bytes.map(|bytes| u32::from_be_bytes(*bytes)).ok_or(short)
        };
        let stream = |place| Ok::<_, FrameError>(number(place)? & (u32::MAX >> 1));
        Ok(match kind {
            // Behind the number: the one that it belongs to, and its priority.
            SYN_STREAM => Self::Open {
                stream: stream(0)?,
                fin: flags & FIN != 0,
                block: body.get(10..).ok_or(short)?,
            },
            SYN_REPLY | HEADERS => Self::More {
                block: body.get(4..).ok_or(short)?,
            },
            RST_STREAM => Self::Reset { stream: stream(0)? },
            PING => Self::Ping { id: number(0)? },
            _ => Self::Nothing,
        })
    }
}

/// What a server says in a control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A stream is taken up.
    Opened(u32),
    /// A stream is refused, or broken off.
    Reset(u32, ResetStatus),
    /// The echo that was asked for.
    Ping(u32),
    /// The connection ends because of what came; the last stream that was taken up.
    GoAway(u32),
}

impl Reply {
    /// Appends the frame to `bytes`.
    pub fn write(self, encoder: &mut Encoder, bytes: &mut Vec<u8>) {
        let mut body = Vec::new();
        let kind = match self {
            Self::Opened(stream) => {
                body.extend_from_slice(&stream.to_be_bytes());
                encoder.write_empty(&mut body);
                SYN_REPLY
            }
            Self::Reset(stream, status) => {
                body.extend_from_slice(&stream.to_be_bytes());
                body.extend_from_slice(&(status as u32).to_be_bytes());
                RST_STREAM
            }
            Self::Ping(id) => {
                body.extend_from_slice(&id.to_be_bytes());
                PING
            }
            Self::GoAway(last) => {
                const PROTOCOL_ERROR: u32 = 1;
                body.extend_from_slice(&last.to_be_bytes());
                body.extend_from_slice(&PROTOCOL_ERROR.to_be_bytes());
                GOAWAY
            }
        };
        let [version, low] = VERSION.to_be_bytes();
        bytes.extend_from_slice(&[CONTROL_BIT | version, low]);
        bytes.extend_from_slice(&kind.to_be_bytes());
        length(0, body.len(), bytes);
        bytes.extend_from_slice(&body);
    }
}

/// Appends data frames with `data` to `bytes`.
pub fn write_data(stream: u32, data: &[u8], bytes: &mut Vec<u8>) {
    for part in data.chunks(DATA_BYTES) {
        bytes.extend_from_slice(&stream.to_be_bytes());
        length(0, part.len(), bytes);
        bytes.extend_from_slice(part);
    }
}

/// Appends the end of a stream to `bytes`.
pub fn write_end(stream: u32, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&stream.to_be_bytes());
    length(FIN, 0, bytes);
}

/// Flags, and the 24 bits of a length that this side has bounded.
fn length(flags: u8, length: usize, bytes: &mut Vec<u8>) {
    let [_, rest @ ..] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    bytes.push(flags);
    bytes.extend_from_slice(&rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_told_apart() {
        assert_eq!(
            Head::read([0, 0, 1, 5, 1, 0, 1, 2]),
            Ok(Head::Data {
                stream: 261,
                fin: true,
                length: 258
            })
        );
        assert_eq!(
            Head::read([0x80, 3, 0, 6, 0, 0, 0, 4]),
            Ok(Head::Control {
                kind: 6,
                flags: 0,
                length: 4
            })
        );
        assert_eq!(
            Head::read([0x80, 2, 0, 6, 0, 0, 0, 4]),
            Err(FrameError::Version(2))
        );
        assert_eq!(
            Head::read([0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
            Err(FrameError::TooLong(0xff_ffff))
        );
        assert!(matches!(
            Head::read(*b"\x16\x03\x01\x00\x00\x00\x00\x00"),
            Ok(Head::Data { .. })
        ));
    }

    #[test]
    fn control_frames_that_are_cut_short_are_refused() {
        for (kind, least) in [
            (1, 10),
            (2, 4),
            (3, 4),
            (6, 4),
            (8, 4),
            (4, 0),
            (7, 0),
            (9, 0),
            (77, 0),
        ] {
            let body = [7; 20];
            assert!(Control::read(kind, 0, &body[..least]).is_ok(), "{kind}");
            if least > 0 {
                let short = Control::read(kind, 0, &body[..least - 1]);
                assert_eq!(short, Err(FrameError::TooShort(kind)));
            }
        }
    }

    #[test]
    fn a_streams_number_has_31_bits() {
        let mut body = [0xff; 12];
        body[10] = 1;
        assert_eq!(
            Control::read(1, 1, &body),
            Ok(Control::Open {
                stream: u32::MAX >> 1,
                fin: true,
                block: &[1, 0xff]
            })
        );
    }

    #[test]
    fn what_is_written_is_a_frame() {
        let mut bytes = Vec::new();
        Reply::Ping(0x0102_0304).write(&mut Encoder::default(), &mut bytes);
        assert_eq!(bytes, [0x80, 3, 0, 6, 0, 0, 0, 4, 1, 2, 3, 4]);
        bytes.clear();
        Reply::Reset(5, ResetStatus::Refused).write(&mut Encoder::default(), &mut bytes);
        assert_eq!(bytes, [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 3]);
        bytes.clear();
        write_data(9, b"ab", &mut bytes);
        write_end(9, &mut bytes);
        assert_eq!(bytes, *b"\0\0\0\x09\0\0\0\x02ab\0\0\0\x09\x01\0\0\0");
        bytes.clear();
        write_data(9, &vec![0; 3 * DATA_BYTES], &mut bytes);
        assert_eq!(bytes.len(), 3 * (DATA_BYTES + HEAD_BYTES));
    }
}
