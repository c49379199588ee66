//! Writes EROFS file systems, uncompressed, in one pass over what goes in.
//!
//! EROFS is the kernel's read-only file system for images (Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h).
//! Of its format only what every kernel since 5.4 mounts is used, so no incompatible-feature bit is ever set:
//! 4096-byte blocks, 64-byte inodes, plain and inline data, inline extended attributes.
//!
//! Inodes are numbered by their position (`nid` = byte offset / 32), so they may lie anywhere. That makes one pass
//! possible: a file's full blocks go to the blob as they come, and its inode, with the rest of the data behind it,
//! joins a 64 KiB cluster of inodes as soon as the file ends. Only names are held in memory. Directories follow at
//! the end, then link counts and the superblock are put in place. The root directory is the one inode whose place
//! is fixed (behind the superblock), because the superblock has just 16 bits for its number.
//!
//! The same input gives the same bytes: no clock, no random identifier, sorted names.
//!
//! Holes: a file's zeros are not told apart in the format (chunk indexes, which could, cost an incompatible-feature
//! bit and four bytes for each chunk of every file that uses them). Instead runs of zeros are left unwritten, so that the host's file
//! system keeps the blob sparse and they take no disk.

mod blob;
mod directory;
mod format;
mod reader;
mod tree;
mod writer;
mod xattr;

pub use format::{BLOCK_BYTES, FileType};
pub use reader::{Found, Reader};
pub use tree::{Directory, DirectoryId, Entry, Tree};
pub use writer::{Attributes, Device, Inode, Writer};
pub use xattr::{XattrError, Xattrs};
