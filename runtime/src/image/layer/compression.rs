//! The first half of a conversion: compressed bytes in, decompressed buffers out.

use std::io::{BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use flate2::bufread::MultiGzDecoder;

use super::LayerError;

/// Bytes of one decompressed buffer.
const BUFFER_BYTES: usize = 256 << 10;

/// Bytes read at once.
const INPUT_BYTES: usize = 128 << 10;

/// The largest window of zstd, as a power of two: 128 MiB, the most that RFC 8878 lets every decoder refuse to exceed
/// in practice and zstd's own default.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Bytes of the longest magic number.
const MAGIC_BYTES: u64 = 4;

/// Decompresses `input` to its end into `buffers`, taking empty ones from `recycled`.
pub(super) fn decompress(
    mut input: impl Read,
    buffers: &SyncSender<Vec<u8>>,
    recycled: &Receiver<Vec<u8>>,
) -> Result<(), LayerError> {
    let mut magic = Vec::new();
    (&mut input)
        .take(MAGIC_BYTES)
        .read_to_end(&mut magic)
        .map_err(|error| failure("uncompressed", error))?;
    let format = Format::of(&magic);
    let source = BufReader::with_capacity(INPUT_BYTES, Cursor::new(magic).chain(input));
    let name = format.name();
    match format {
        Format::Gzip => pump(MultiGzDecoder::new(source), name, buffers, recycled),
        Format::Zstd => pump(zstd_decoder(source)?, name, buffers, recycled),
        Format::Plain => pump(source, name, buffers, recycled),
    }
}

fn pump(
    mut reader: impl Read,
    format: &'static str,
    buffers: &SyncSender<Vec<u8>>,
    recycled: &Receiver<Vec<u8>>,
) -> Result<(), LayerError> {
    loop {
        let mut buffer = recycled.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.reserve(BUFFER_BYTES);
        let read = (&mut reader).take(BUFFER_BYTES as u64).read_to_end(&mut buffer);
        if matches!(read, Ok(0)) {
            return Ok(());
        }
        // What came before a failure is passed on: the archive's reader may know a better reason to stop.
        let unwanted = buffers.send(buffer).is_err();
        match read {
            Err(error) => return Err(failure(format, error)),
            Ok(_) if unwanted => return Ok(()),
            Ok(_) => {}
        }
    }
}

fn zstd_decoder<R: BufRead>(source: R) -> Result<zstd::Decoder<'static, R>, LayerError> {
    let mut decoder = zstd::Decoder::with_buffer(source).map_err(|error| failure("zstd", error))?;
    decoder
        .window_log_max(ZSTD_WINDOW_LOG_MAX)
        .map_err(|error| failure("zstd", error))?;
    Ok(decoder)
}

fn failure(format: &'static str, error: std::io::Error) -> LayerError {
    LayerError::Decompress {
        format: format.into(),
        error: Arc::new(error),
    }
}

/// How a layer is compressed. Told by its first bytes: media types are often wrong, and magic numbers never are.
#[derive(Debug, Clone, Copy)]
enum Format {
    Gzip,
    Zstd,
    Plain,
}

impl Format {
    fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or one of those that decoders skip: magic 0x184D2A50 to 0x184D2A5F (RFC 8878, 3.1.2).
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Self::Zstd,
            _ => Self::Plain,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Plain => "uncompressed",
        }
    }
}
