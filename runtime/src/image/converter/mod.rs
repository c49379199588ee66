//! Conversions of layers in processes of their own, which may do nothing else.
//!
//! A layer is hostile input for a decompressor, a parser of archives and a writer of file systems. So the daemon starts its
//! own executable again for each layer ([`process`]). The new process gives up whatever it could do besides ([`confine`]), and
//! only then reads its first byte of the layer ([`child`]). It has three descriptors: what it reads, the blob's file, and a
//! pipe for one line of outcome ([`wire`]).
//!
//! What the process says is believed of its own layer alone. The daemon itself checks the digest of what the registry sent
//! ([`Conversion`]), and a layer is shared by those images alone that name the same bytes. So a layer that took its
//! converter over would have a blob of its own making, but could not pass it off as another image's layer.
//!
//! What layers show of their directories is read by such a process as well, because it means reading their blobs.

mod child;
mod confine;
mod conversion;
mod descriptors;
mod process;
mod wire;

pub use child::main;
pub use confine::{Confinement, MEMORY_BYTES};
pub(super) use conversion::Conversion;
pub use process::Converter;
pub(super) use process::settle_directories;
