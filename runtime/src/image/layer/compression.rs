//! The first half of a conversion: compressed pieces in, their digest and decompressed buffers out.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;
use tokio::sync::mpsc;

use super::super::digest::{Digest, Hasher};
use super::LayerError;
use super::convert::ExpectedLayer;

/// Bytes of one decompressed buffer.
pub(super) const BUFFER_BYTES: usize = 256 << 10;

/// The largest window of zstd, as a power of two: 128 MiB, the most that RFC 8878 lets every decoder refuse to exceed
/// in practice and zstd's own default.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// What the downloader hands over.
#[derive(Debug)]
pub(in super::super) enum Piece {
    /// The next bytes.
    Data(Bytes),
    /// There are no more. A queue that closes without this was given up.
    End,
}

/// Decompresses everything that comes in `pieces` into `buffers`, taking empty ones from `recycled`.
///
/// Whatever goes wrong with the content, the rest of the pieces is still read, so that the digest can tell whether
/// the download or the image is damaged. Returns once the digest is known to be right.
pub(super) fn decompress(
    pieces: mpsc::Receiver<Piece>,
    expected: &ExpectedLayer,
    buffers: SyncSender<Vec<u8>>,
    recycled: &Receiver<Vec<u8>>,
) -> Result<(), LayerError> {
    let mut source = Source::new(pieces, expected.blob_bytes);
    let decoded = decode(&mut source, &buffers, recycled);
    // The other thread ends with what it has.
    drop(buffers);
    match &decoded {
        // Nobody wants the rest, or there is none to be had.
        Err(LayerError::Cancelled | LayerError::TooLong { .. }) => return decoded,
        _ => source.drain()?,
    }
    source.check(expected)?;
    decoded
}

fn decode(
    source: &mut Source,
    buffers: &SyncSender<Vec<u8>>,
    recycled: &Receiver<Vec<u8>>,
) -> Result<(), LayerError> {
    // A frame's magic is at most 4 bytes; the first piece of a download may be shorter than that.
    source.gather(4)?;
    let magic = source.current.chunk();
    let (format, mut reader): (_, Box<dyn Read + '_>) = if magic.starts_with(&[0x1f, 0x8b]) {
        ("gzip", Box::new(MultiGzDecoder::new(&mut *source)))
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_zstd_skippable(magic) {
        let fail = |error| LayerError::Decompress {
            format: "zstd",
            error: Arc::new(error),
        };
        let mut decoder = zstd::Decoder::with_buffer(&mut *source).map_err(fail)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(fail)?;
        ("zstd", Box::new(decoder))
    } else {
        ("uncompressed", Box::new(&mut *source))
    };
    loop {
        let mut buffer = recycled.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.reserve(BUFFER_BYTES);
        let read = (&mut reader).take(BUFFER_BYTES as u64).read_to_end(&mut buffer);
        let failure = match read {
            Ok(0) => return Ok(()),
            Ok(_) => None,
            Err(error) => Some(SourceFailure::unwrap(error, format)),
        };
        // What came before a failure is passed on: the archive's reader may know a better reason to stop.
        let unwanted = buffers.send(buffer).is_err();
        match failure {
            Some(failure) => return Err(failure),
            None if unwanted => return Ok(()),
            None => {}
        }
    }
}

/// Frames that a zstd decoder skips: magic 0x184D2A50 to 0x184D2A5F (RFC 8878, 3.1.2).
fn is_zstd_skippable(magic: &[u8]) -> bool {
    matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Reads pieces as one stream, counting and hashing what has been taken.
#[derive(Debug)]
struct Source {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    hasher: Hasher,
    received: u64,
    limit: u64,
    ended: bool,
}

/// A failure of [`Source`] on its way through a decompressor, which knows only [`io::Error`].
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
struct SourceFailure(LayerError);

impl SourceFailure {
    fn unwrap(error: io::Error, format: &'static str) -> LayerError {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()) {
            Some(Self(failure)) => failure.clone(),
            None => LayerError::Decompress {
                format,
                error: Arc::new(error),
            },
        }
    }
}

impl Source {
    fn new(pieces: mpsc::Receiver<Piece>, limit: u64) -> Self {
        Self {
            pieces,
            current: Bytes::new(),
            hasher: Hasher::default(),
            received: 0,
            limit,
            ended: false,
        }
    }

    /// Makes sure that there is something in `current`, unless everything has come.
    fn refill(&mut self) -> Result<(), LayerError> {
        while self.current.is_empty() && !self.ended {
            self.current = self.next_piece()?;
        }
        Ok(())
    }

    /// Joins pieces until `current` has `bytes` bytes or everything has come.
    fn gather(&mut self, bytes: usize) -> Result<(), LayerError> {
        while self.current.len() < bytes && !self.ended {
            let next = self.next_piece()?;
            self.current = [&*self.current, &*next].concat().into();
        }
        Ok(())
    }

    fn next_piece(&mut self) -> Result<Bytes, LayerError> {
        match self.pieces.blocking_recv() {
            Some(Piece::Data(bytes)) => {
                self.received += bytes.len() as u64;
                if self.received > self.limit {
                    return Err(LayerError::TooLong { expected: self.limit });
                }
                self.hasher.update(&bytes);
                Ok(bytes)
            }
            Some(Piece::End) => {
                self.ended = true;
                Ok(Bytes::new())
            }
            None => Err(LayerError::Cancelled),
        }
    }

    fn drain(&mut self) -> Result<(), LayerError> {
        while !self.ended {
            self.next_piece()?;
        }
        Ok(())
    }

    fn check(self, expected: &ExpectedLayer) -> Result<(), LayerError> {
        if self.received < expected.blob_bytes {
            return Err(LayerError::Truncated {
                expected: expected.blob_bytes,
                received: self.received,
            });
        }
        let actual: Digest = self.hasher.finish();
        if actual == expected.blob {
            Ok(())
        } else {
            Err(LayerError::WrongDigest { actual })
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let count = available.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.refill()
            .map_err(|failure| io::Error::other(SourceFailure(failure)))?;
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        self.current.advance(count.min(self.current.len()));
    }
}
