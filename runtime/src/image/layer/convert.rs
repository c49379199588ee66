//! The second half of a conversion: decompressed buffers in, their digest and an EROFS blob out.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::super::LayerKey;
use super::super::digest::{Digest, Hasher};
use super::super::tar::{Archive, Entry, Kind, TarError};
use super::compression::decompress;
use super::namespace::Namespace;
use super::{LayerError, LayerLimits};

/// Buffers on their way from one thread to the other.
const QUEUED_BUFFERS: usize = 4;

/// What the manifest and the configuration say about a layer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in super::super) struct ExpectedLayer {
    /// Digest of what the registry sends.
    pub(in super::super) blob: Digest,
    /// Bytes of what the registry sends.
    pub(in super::super) blob_bytes: u64,
    /// Digest of the archive.
    pub(in super::super) diff_id: Digest,
}

impl ExpectedLayer {
    pub(in super::super) fn key(&self) -> LayerKey {
        LayerKey {
            diff_id: self.diff_id,
            source: self.blob,
        }
    }
}

/// A converted layer.
#[derive(Debug)]
pub struct Converted {
    /// The blob's file.
    pub file: File,
    /// Bytes of the blob.
    pub blob_bytes: u64,
    /// Whether the layer hides everything below it.
    pub hides_lower: bool,
    /// Whether it holds directories, other than its root, that the archive has no entry for.
    pub implies_directories: bool,
    /// Files, directories and so on in it.
    pub entries: u64,
}

/// Converts the layer that comes from `input` and writes it to `file`, which must be empty and open for reading and
/// writing. Calls `seal` when it has all its threads and before it reads anything.
pub(in super::super) fn convert(
    input: impl Read + Send,
    file: File,
    diff_id: Digest,
    limits: LayerLimits,
    seal: impl FnOnce() -> Result<(), LayerError>,
) -> Result<Converted, LayerError> {
    let (buffer_sender, buffer_receiver) = sync_channel(QUEUED_BUFFERS);
    let (recycle_sender, recycle_receiver) = sync_channel(QUEUED_BUFFERS + 1);
    let (started, starting) = sync_channel(1);
    let (sealed, sealing) = sync_channel(1);
    thread::scope(|scope| {
        let decompression = thread::Builder::new()
            .name("layer-inflate".into())
            .spawn_scoped(scope, move || {
                // Either channel is closed only when the other side has given up.
                let _ = started.send(());
                match sealing.recv() {
                    Ok(()) => decompress(input, &buffer_sender, &recycle_receiver),
                    Err(_) => Err(LayerError::Cancelled),
                }
            })
            .map_err(LayerError::write)?;
        // A thread that is just beginning does things that are forbidden afterwards.
        let _ = starting.recv();
        let begun = seal().map(|()| sealed.send(()));
        // Otherwise the other thread would wait for ever.
        drop(sealed);
        let _ = begun?;
        let buffers = Buffers::new(buffer_receiver, recycle_sender, limits.bytes);
        let converted = write_blob(buffers, file, diff_id, limits);
        let decompressed = decompression.join().unwrap_or(Err(LayerError::Cancelled));
        match (converted, decompressed) {
            (Ok(converted), Ok(())) => Ok(converted),
            // What is wrong with the compressed data explains whatever is wrong with the archive, and not the other way
            // round; but a limit or a full disk is what it is.
            (Err(error), Err(cause)) if error.blames_content() => Err(cause),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        }
    })
}

fn write_blob(
    buffers: Buffers,
    file: File,
    diff_id: Digest,
    limits: LayerLimits,
) -> Result<Converted, LayerError> {
    let (converted, mut buffers) = convert_archive(buffers, file, limits)?;
    // What follows the archive's end belongs to the layer's digest all the same.
    let actual = buffers
        .finish()
        .map_err(|error| tar_error(TarError::Read(error.into())))?;
    if actual != diff_id {
        return Err(LayerError::WrongDiffId {
            expected: diff_id,
            actual,
        });
    }
    Ok(converted)
}

/// Converts the tar archive at the start of `reader` and writes the blob to `file`, which must be empty and open for
/// reading and writing. Gives `reader` back where the archive ended.
pub fn convert_archive<R: BufRead>(
    reader: R,
    file: File,
    limits: LayerLimits,
) -> Result<(Converted, R), LayerError> {
    let mut archive = Archive::new(reader);
    let mut namespace = Namespace::new(file, limits.entries);
    let mut file_bytes = 0;
    while let Some(entry) = archive.next_entry().map_err(tar_error)? {
        file_bytes += entry.size;
        if file_bytes > limits.bytes {
            return Err(too_many_bytes(limits.bytes));
        }
        if entry.kind == Kind::Regular {
            copy_data(&mut archive, &entry, &mut namespace)?;
        }
        namespace.add(&entry)?;
    }
    Ok((namespace.finish()?, archive.into_inner()))
}

/// Writes a file's data, which comes behind its header and before anything else.
fn copy_data<R: BufRead>(
    archive: &mut Archive<R>,
    entry: &Entry,
    namespace: &mut Namespace,
) -> Result<(), LayerError> {
    let mut copy = |mut bytes: u64, namespace: &mut Namespace| {
        while bytes > 0 {
            let data = archive.data().map_err(tar_error)?;
            let wanted = data
                .get(..usize::try_from(bytes).unwrap_or(usize::MAX))
                .unwrap_or(data);
            let count = wanted.len();
            if count == 0 {
                break;
            }
            namespace.writer().write(wanted).map_err(LayerError::write)?;
            archive.consume(count);
            bytes -= count as u64;
        }
        Ok(())
    };
    let Some(map) = &entry.sparse else {
        return copy(entry.size, namespace);
    };
    let mut position = 0;
    for (offset, length) in map.parts() {
        namespace
            .writer()
            .hole(offset - position)
            .map_err(LayerError::write)?;
        copy(*length, namespace)?;
        position = offset + length;
    }
    namespace
        .writer()
        .hole(entry.size - position)
        .map_err(LayerError::write)
}

fn too_many_bytes(limit: u64) -> LayerError {
    LayerError::TooLarge {
        limit,
        unit: "bytes when unpacked".into(),
        key: Some("max_layer_bytes".into()),
    }
}

/// Finds the layer's own failure inside an archive's, where it passed through as an I/O error.
fn tar_error(error: TarError) -> LayerError {
    if let TarError::Read(inner) = &error
        && let Some(OverLimit(limit)) = inner.get_ref().and_then(|inner| inner.downcast_ref())
    {
        return too_many_bytes(*limit);
    }
    LayerError::Tar(error)
}

/// The archive is longer than allowed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the archive has more than {0} bytes")]
struct OverLimit(u64);

/// The stream of decompressed buffers, hashed and counted.
#[derive(Debug)]
struct Buffers {
    receiver: Receiver<Vec<u8>>,
    recycle: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    hasher: Hasher,
    bytes: u64,
    limit: u64,
}

impl Buffers {
    fn new(receiver: Receiver<Vec<u8>>, recycle: SyncSender<Vec<u8>>, limit: u64) -> Self {
        Self {
            receiver,
            recycle,
            current: Vec::new(),
            position: 0,
            hasher: Hasher::default(),
            bytes: 0,
            limit,
        }
    }

    /// Reads to the end and gives the digest of everything.
    fn finish(&mut self) -> io::Result<Digest> {
        loop {
            let count = self.fill_buf()?.len();
            if count == 0 {
                return Ok(std::mem::take(&mut self.hasher).finish());
            }
            self.consume(count);
        }
    }
}

impl BufRead for Buffers {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.position >= self.current.len() {
            let Ok(next) = self.receiver.recv() else {
                return Ok(&[]);
            };
            self.bytes += next.len() as u64;
            if self.bytes > self.limit {
                return Err(io::Error::other(OverLimit(self.limit)));
            }
            self.hasher.update(&next);
            self.position = 0;
            // The other thread may have ended already and want none back.
            let _ = self.recycle.try_send(std::mem::replace(&mut self.current, next));
        }
        Ok(self.current.get(self.position..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }
}

impl Read for Buffers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let count = available.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}
