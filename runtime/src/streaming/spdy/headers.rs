//! Header blocks: names and values, compressed with one zlib stream for each direction of a connection.
//!
//! What comes is bounded before and after it is inflated. What goes out is a few bytes, so it is written in stored blocks,
//! which are a zlib stream like any other and need no state of a compressor for each connection.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::{DICTIONARY_ID, dictionary};

/// Most bytes of an inflated block.
pub const INFLATED_BYTES: usize = 16 << 10;

/// Most headers in a block.
pub const HEADERS: usize = 64;

/// What is wrong with a header block. The connection cannot go on behind it: its compression is one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It is no zlib stream with the dictionary of SPDY/3.
    #[error("a header block is not compressed as SPDY/3 has it")]
    Compression,
    /// It inflates to more than it may.
    #[error("a header block inflates to more than {INFLATED_BYTES} bytes")]
    TooLong,
    /// It has more headers than it may.
    #[error("a header block has {0} headers, and {HEADERS} are the most")]
    TooMany(u32),
    /// Lengths in it do not fit, or a text is none.
    #[error("a header block does not hold what it says")]
    Malformed,
}

/// The headers of a stream: names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of the header `name`, which is given in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    fn parse(mut bytes: &[u8]) -> Result<Self, HeaderError> {
        let count = number(&mut bytes)?;
        if usize::try_from(count).map_or(true, |count| count > HEADERS) {
            return Err(HeaderError::TooMany(count));
        }
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = text(&mut bytes)?.to_ascii_lowercase();
            let value = text(&mut bytes)?.to_owned();
            headers.push((name, value));
        }
        if bytes.is_empty() {
            Ok(Self(headers))
        } else {
            Err(HeaderError::Malformed)
        }
    }
}

fn number(bytes: &mut &[u8]) -> Result<u32, HeaderError> {
    let (number, rest) = bytes.split_first_chunk().ok_or(HeaderError::Malformed)?;
    *bytes = rest;
    Ok(u32::from_be_bytes(*number))
}

fn text<'a>(bytes: &mut &'a [u8]) -> Result<&'a str, HeaderError> {
    let length = usize::try_from(number(bytes)?).map_err(|_| HeaderError::Malformed)?;
    let (text, rest) = bytes.split_at_checked(length).ok_or(HeaderError::Malformed)?;
    *bytes = rest;
    std::str::from_utf8(text).map_err(|_| HeaderError::Malformed)
}

/// Reads the header blocks of one direction.
#[derive(Debug)]
pub struct Decoder {
    inflate: Decompress,
}

impl Decoder {
    /// For a new connection.
    pub fn new() -> Self {
        Self {
            inflate: Decompress::new(true),
        }
    }

    /// Reads the next block.
    ///
    /// # Errors
    ///
    /// [`HeaderError`]; then no further block can be read.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        let mut inflated = Vec::new();
        let mut rest = block;
        loop {
            if inflated.len() == inflated.capacity() {
                inflated.reserve(1024);
            }
            let (had_in, had_out) = (self.inflate.total_in(), inflated.len());
            let status = self
                .inflate
                .decompress_vec(rest, &mut inflated, FlushDecompress::Sync);
            let consumed = usize::try_from(self.inflate.total_in() - had_in).unwrap_or(usize::MAX);
            rest = rest.get(consumed..).unwrap_or_default();
            if inflated.len() > INFLATED_BYTES {
                return Err(HeaderError::TooLong);
            }
            match status {
                Ok(Status::StreamEnd) => return Err(HeaderError::Compression),
                Ok(_) if inflated.len() == inflated.capacity() => {}
                Ok(_) if rest.is_empty() => return Headers::parse(&inflated),
                Ok(_) if consumed == 0 && inflated.len() == had_out => {
                    return Err(HeaderError::Compression);
                }
                Ok(_) => {}
                Err(error) if error.needs_dictionary() == Some(DICTIONARY_ID) => {
                    self.inflate
                        .set_dictionary(&dictionary())
                        .map_err(|_| HeaderError::Compression)?;
                }
                Err(_) => return Err(HeaderError::Compression),
            }
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes the header blocks of one direction.
#[derive(Debug, Default)]
pub struct Encoder {
    begun: bool,
}

impl Encoder {
    /// Appends the next block, one without headers, to `bytes`.
    pub fn write_empty(&mut self, bytes: &mut Vec<u8>) {
        if !self.begun {
            // Deflate with a window of 32 KiB, and a dictionary (RFC 1950).
            bytes.extend_from_slice(&[0x78, 0x20]);
            bytes.extend_from_slice(&DICTIONARY_ID.to_be_bytes());
            self.begun = true;
        }
        // A stored block that is not the last one: length, its complement, the number of headers (RFC 1951).
        bytes.extend_from_slice(&[0, 4, 0, !4, !0, 0, 0, 0, 0]);
        // An empty one, where an inflater hands out what it has.
        bytes.extend_from_slice(&[0, 0, 0, !0, !0]);
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    /// Compresses as clients do: with the dictionary, one stream for all blocks.
    struct Client(Compress);

    impl Client {
        fn new() -> Self {
            let mut compress = Compress::new(Compression::best(), true);
            compress.set_dictionary(&dictionary()).unwrap();
            Self(compress)
        }

        fn block(&mut self, bytes: &[u8]) -> Vec<u8> {
            let mut block = Vec::with_capacity(bytes.len() + 1024);
            self.0
                .compress_vec(bytes, &mut block, FlushCompress::Sync)
                .unwrap();
            block
        }
    }

    fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            bytes.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }

    #[test]
    fn blocks_of_one_stream_are_read_one_after_the_other() {
        let (mut client, mut decoder) = (Client::new(), Decoder::new());
        for round in 0..100 {
            let id = round.to_string();
            let block = client.block(&plain(&[("streamType", "data"), ("requestid", &id)]));
            let headers = decoder.read(&block).unwrap();
            assert_eq!(headers.get("streamtype"), Some("data"));
            assert_eq!(headers.get("requestid"), Some(id.as_str()));
            assert_eq!(headers.get("port"), None);
        }
        assert_eq!(
            decoder.read(&client.block(&plain(&[]))).unwrap(),
            Headers::default()
        );
    }

    #[test]
    fn what_is_written_can_be_read_by_any_inflater() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new());
        for _ in 0..3 {
            let mut block = Vec::new();
            encoder.write_empty(&mut block);
            assert_eq!(decoder.read(&block).unwrap(), Headers::default());
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_has_grown() {
        let (mut client, mut decoder) = (Client::new(), Decoder::new());
        let bomb = client.block(&vec![0; 16 << 20]);
        assert!(bomb.len() < 20_000);
        assert_eq!(decoder.read(&bomb), Err(HeaderError::TooLong));
    }

    #[test]
    fn lies_about_lengths_and_counts_are_refused() {
        let many = [u32::MAX.to_be_bytes().to_vec(), vec![0; 100]].concat();
        let long = [vec![0, 0, 0, 1], u32::MAX.to_be_bytes().to_vec()].concat();
        let behind = [plain(&[]), vec![1]].concat();
        let no_text = [plain(&[]), vec![]].concat();
        for (bytes, expected) in [
            (many, Err(HeaderError::TooMany(u32::MAX))),
            (long, Err(HeaderError::Malformed)),
            (behind, Err(HeaderError::Malformed)),
            (
                vec![0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0],
                Err(HeaderError::Malformed),
            ),
            (vec![0, 0], Err(HeaderError::Malformed)),
            (no_text, Ok(Headers::default())),
        ] {
            assert_eq!(Decoder::new().read(&Client::new().block(&bytes)), expected);
        }
    }

    #[test]
    fn what_is_no_stream_with_the_dictionary_is_refused() {
        let mut other = Compress::new(Compression::fast(), true);
        other.set_dictionary(b"another").unwrap();
        let mut foreign = Vec::with_capacity(1000);
        other
            .compress_vec(&plain(&[]), &mut foreign, FlushCompress::Sync)
            .unwrap();
        let mut ended = Vec::with_capacity(1000);
        Compress::new(Compression::fast(), true)
            .compress_vec(&plain(&[]), &mut ended, FlushCompress::Finish)
            .unwrap();
        for block in [&foreign[..], &ended, b"GET / HTTP/1.1\r\n\r\n", &[0xff; 40], &[]] {
            let read = Decoder::new().read(block);
            assert!(
                matches!(read, Err(HeaderError::Compression | HeaderError::Malformed)),
                "{read:?}"
            );
        }
    }
}
