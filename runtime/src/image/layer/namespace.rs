//! Where the entries of a layer's archive go in its file system.
//!
//! Archives are applied as other runtimes apply them, in memory, where no name can lead out of the layer:
//! - A leading `/` or `./` means nothing. `..` in a name or in a hard link's target is refused: no builder writes it.
//! - A parent that is a symbolic link of the same layer is followed, with the layer's root as `/`, as if in a chroot.
//!   Links of lower layers are not seen, since layers are converted one by one and shared by images.
//! - Missing parents become directories of root with mode 0755 and time 0, marked as implied: their attributes are
//!   those of lower layers, which are found when the layers of an image are brought together ([`super::directories`]).
//! - The last entry of a name wins; a directory replaced by a directory keeps its content.
//! - A hard link must have its target in the same layer, and before it.
//! - `.wh.NAME` (OCI image specification, layer.md, "Whiteouts") becomes overlayfs's whiteout, a character device 0/0,
//!   and `.wh..wh..opq` its `trusted.overlay.opaque` attribute. As the specification says, a whiteout hides what lower
//!   layers have and never what this one has, whichever comes first. Other names of AUFS (`.wh..wh.*`) are left out.
//! - Attributes named `trusted.overlay.*` are left out: they are orders to overlayfs, not content. So are attributes
//!   of namespaces that EROFS cannot hold (`system.nfs4_acl`, …), as other runtimes leave out what their file system
//!   cannot hold.

use std::collections::HashSet;
use std::fs::File;

use super::super::erofs::Entry as TreeEntry;
use super::super::erofs::{
    Attributes, Device, Directory, DirectoryId, Inode, Tree, Writer, XattrError, Xattrs,
};
use super::super::tar::{Entry, Kind};
use super::convert::Converted;
use super::walk::{MAX_PATH_BYTES, Step, Walk, components};
use super::{LayerError, marks};

/// Bytes that names, link targets and directories' attributes of one layer may take in memory, about.
const MAX_HELD_BYTES: u64 = 256 << 20;

/// What one name costs in memory besides its bytes.
const NAME_OVERHEAD_BYTES: u64 = 96;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// The file system that a layer becomes.
#[derive(Debug)]
pub(super) struct Namespace {
    tree: Tree,
    writer: Writer,
    /// Directories that hide what lower layers have under their name.
    opaque: HashSet<DirectoryId>,
    /// Directories without an entry of their own.
    implied: HashSet<DirectoryId>,
    /// The inode of all whiteouts.
    whiteout: Option<Inode>,
    entries: u64,
    max_entries: u64,
    held_bytes: u64,
}

impl Namespace {
    pub(super) fn new(file: File, max_entries: u64) -> Self {
        Self {
            tree: Tree::new(implied_directory()),
            writer: Writer::new(file),
            opaque: HashSet::new(),
            implied: HashSet::from([Tree::ROOT]),
            whiteout: None,
            entries: 0,
            max_entries,
            held_bytes: 0,
        }
    }

    /// Where a regular file's data is to be written before the file is added.
    pub(super) fn writer(&mut self) -> &mut Writer {
        &mut self.writer
    }

    /// Adds one entry of the archive.
    pub(super) fn add(&mut self, entry: &Entry) -> Result<(), LayerError> {
        self.try_add(entry).map_err(|failure| match failure {
            Failure::Entry(reason) => LayerError::Entry {
                path: shown(&entry.path),
                reason,
            },
            Failure::Layer(error) => error,
        })
    }

    /// Writes what remains and gives the blob.
    pub(super) fn finish(mut self) -> Result<Converted, LayerError> {
        for (marked, mark) in [(&self.opaque, marks::OPAQUE), (&self.implied, marks::IMPLIED)] {
            for id in marked {
                let Directory { attributes, .. } = self.tree.directory_mut(*id);
                // Fails only if the directory has 128 KiB of other attributes.
                attributes
                    .xattrs
                    .set(mark, marks::SET)
                    .map_err(|error| LayerError::Entry {
                        path: "a directory".into(),
                        reason: format!("cannot be marked: {error}"),
                    })?;
            }
        }
        let hides_lower = self.opaque.contains(&Tree::ROOT);
        let implies_directories = self.implied.iter().any(|id| *id != Tree::ROOT);
        let (file, blob_bytes) = self.writer.finish(&self.tree).map_err(LayerError::write)?;
        Ok(Converted {
            file,
            blob_bytes,
            hides_lower,
            implies_directories,
            entries: self.entries,
        })
    }

    fn try_add(&mut self, entry: &Entry) -> Result<(), Failure> {
        self.count_entry()?;
        let components = components(&entry.path).map_err(Failure::Entry)?;
        let Some((name, parents)) = components.split_last() else {
            return self.set_root(entry);
        };
        if parents.iter().any(|parent| parent.starts_with(AUFS_PREFIX)) {
            self.writer.abandon_file();
            return Ok(());
        }
        if parents.iter().any(|parent| parent.starts_with(WHITEOUT_PREFIX)) {
            return refuse("lies in a whiteout");
        }
        if name.starts_with(WHITEOUT_PREFIX) {
            self.writer.abandon_file();
            let parent = self.parent(parents)?;
            return self.add_whiteout(parent, name);
        }
        let parent = self.parent(parents)?;
        self.add_named(parent, name, entry)
    }

    /// The archive's root: attributes for the directory that is there already.
    fn set_root(&mut self, entry: &Entry) -> Result<(), Failure> {
        if entry.kind != Kind::Directory {
            return refuse("is the root directory but says it is something else");
        }
        self.tree.directory_mut(Tree::ROOT).attributes = attributes(entry)?;
        self.implied.remove(&Tree::ROOT);
        Ok(())
    }

    fn add_named(&mut self, parent: DirectoryId, name: &[u8], entry: &Entry) -> Result<(), Failure> {
        let attributes = attributes(entry)?;
        let (major, minor) = entry.device;
        match entry.kind {
            Kind::Directory => return self.add_directory(parent, name, attributes),
            Kind::HardLink => return self.add_hard_link(parent, name, &entry.link),
            Kind::CharacterDevice | Kind::BlockDevice if major >= 1 << 12 || minor >= 1 << 20 => {
                return refuse(&format!("is device {major}:{minor}, beyond what Linux has"));
            }
            Kind::Symlink if entry.link.is_empty() || entry.link.len() > MAX_PATH_BYTES => {
                return refuse("is a symbolic link whose target has no bytes or more than 4095");
            }
            Kind::Symlink if entry.link.contains(&0) => {
                return refuse("is a symbolic link whose target has a NUL in it");
            }
            _ => {}
        }
        self.hold(name.len() + entry.link.len())?;
        let written = match entry.kind {
            Kind::Symlink => self.writer.symlink(&entry.link, &attributes),
            Kind::CharacterDevice => self
                .writer
                .device(Device::Character { major, minor }, &attributes),
            Kind::BlockDevice => self.writer.device(Device::Block { major, minor }, &attributes),
            Kind::Fifo => self.writer.device(Device::Fifo, &attributes),
            Kind::Regular | Kind::Directory | Kind::HardLink => self.writer.end_file(&attributes),
        };
        let inode = written.map_err(LayerError::write)?;
        let written = match entry.kind {
            Kind::Symlink => TreeEntry::Symlink(inode, entry.link.as_slice().into()),
            _ => TreeEntry::Other(inode),
        };
        self.tree.insert(parent, name, written);
        Ok(())
    }

    fn add_directory(
        &mut self,
        parent: DirectoryId,
        name: &[u8],
        attributes: Attributes,
    ) -> Result<(), Failure> {
        self.hold(name.len() + attributes.xattrs.encoded_bytes())?;
        if let Some(TreeEntry::Directory(id)) = self.tree.get(parent, name) {
            let id = *id;
            self.tree.directory_mut(id).attributes = attributes;
            self.implied.remove(&id);
        } else {
            self.make_directory(parent, name, attributes);
        }
        Ok(())
    }

    /// Makes a directory; one in place of a whiteout hides what lower layers have.
    fn make_directory(&mut self, parent: DirectoryId, name: &[u8], attributes: Attributes) -> DirectoryId {
        let was_whiteout = self.is_whiteout(parent, name);
        let id = self.tree.make_directory(parent, name, attributes);
        if was_whiteout {
            self.opaque.insert(id);
        }
        id
    }

    fn imply_directory(&mut self, parent: DirectoryId, name: &[u8]) -> DirectoryId {
        let id = self.make_directory(parent, name, implied_directory());
        self.implied.insert(id);
        id
    }

    fn is_whiteout(&self, parent: DirectoryId, name: &[u8]) -> bool {
        match (self.tree.get(parent, name), self.whiteout) {
            (Some(TreeEntry::Other(inode)), Some(whiteout)) => *inode == whiteout,
            _ => false,
        }
    }

    fn add_hard_link(&mut self, parent: DirectoryId, name: &[u8], target: &[u8]) -> Result<(), Failure> {
        let shown_target = || shown(target);
        let components = components(target).map_err(|reason| {
            Failure::Entry(format!("is a hard link to {:?}, which {reason}", shown_target()))
        })?;
        let found = match components.split_last() {
            Some((target_name, target_parents)) => {
                self.find_directory(target_parents).and_then(|directory| {
                    Some((
                        directory,
                        *target_name,
                        self.tree.get(directory, target_name)?.clone(),
                    ))
                })
            }
            None => Some((Tree::ROOT, &b"/"[..], TreeEntry::Directory(Tree::ROOT))),
        };
        let Some((directory, target_name, found)) = found else {
            return refuse(&format!(
                "is a hard link to {:?}, which its layer does not have before it; \
                 hard links cannot reach into other layers",
                shown_target()
            ));
        };
        if matches!(found, TreeEntry::Directory(_)) {
            return refuse(&format!("is a hard link to {:?}, a directory", shown_target()));
        }
        if self.is_whiteout(directory, target_name) {
            return refuse(&format!(
                "is a hard link to {:?}, which its layer removes",
                shown_target()
            ));
        }
        self.hold(name.len())?;
        self.tree.link(parent, name, found);
        Ok(())
    }

    fn add_whiteout(&mut self, parent: DirectoryId, name: &[u8]) -> Result<(), Failure> {
        if name == OPAQUE_WHITEOUT {
            self.opaque.insert(parent);
            return Ok(());
        }
        if name.starts_with(AUFS_PREFIX) {
            return Ok(());
        }
        let hidden = name.strip_prefix(WHITEOUT_PREFIX).unwrap_or_default();
        if matches!(hidden, b"" | b"." | b"..") {
            return refuse("is a whiteout of no name");
        }
        match self.tree.get(parent, hidden) {
            Some(TreeEntry::Directory(id)) => {
                self.opaque.insert(*id);
            }
            // What this layer has hides the lower layers' as it is.
            Some(_) => {}
            None => {
                self.hold(hidden.len())?;
                self.put_whiteout(parent, hidden)?;
            }
        }
        Ok(())
    }

    fn put_whiteout(&mut self, parent: DirectoryId, name: &[u8]) -> Result<(), Failure> {
        if let Some(inode) = self.whiteout {
            self.tree.link(parent, name, TreeEntry::Other(inode));
            return Ok(());
        }
        let device = Device::Character { major: 0, minor: 0 };
        let inode = self
            .writer
            .device(device, &Attributes::default())
            .map_err(LayerError::write)?;
        self.whiteout = Some(inode);
        self.tree.insert(parent, name, TreeEntry::Other(inode));
        Ok(())
    }

    /// The directory that `components` lead to; what is missing of it is made.
    fn parent(&mut self, components: &[&[u8]]) -> Result<DirectoryId, Failure> {
        let mut walk = Walk::new(&self.tree, components);
        loop {
            match walk.step(&self.tree) {
                Step::Arrived(directory) => return Ok(directory),
                Step::Missing(directory, name) => {
                    self.count_entry()?;
                    self.hold(name.len())?;
                    let made = self.imply_directory(directory, &name);
                    walk.enter(made);
                }
                Step::NotADirectory(name) => {
                    // A whiteout in the way means: a new directory in place of the lower layers'.
                    let directory = walk.at;
                    if !self.is_whiteout(directory, &name) {
                        return refuse(&format!("lies in {:?}, which is not a directory", shown(&name)));
                    }
                    let made = self.imply_directory(directory, &name);
                    walk.enter(made);
                }
                Step::TooManyLinks => {
                    return refuse("lies behind a loop of symbolic links, or too many of them");
                }
            }
        }
    }

    /// The directory that `components` lead to, if it is there.
    fn find_directory(&self, components: &[&[u8]]) -> Option<DirectoryId> {
        match Walk::new(&self.tree, components).step(&self.tree) {
            Step::Arrived(directory) => Some(directory),
            _ => None,
        }
    }

    fn count_entry(&mut self) -> Result<(), Failure> {
        self.entries += 1;
        if self.entries > self.max_entries {
            let (limit, key) = (self.max_entries, Some("max_layer_entries".into()));
            return Err(LayerError::TooLarge {
                limit,
                unit: "entries".into(),
                key,
            }
            .into());
        }
        Ok(())
    }

    fn hold(&mut self, bytes: usize) -> Result<(), Failure> {
        self.held_bytes += NAME_OVERHEAD_BYTES + bytes as u64;
        if self.held_bytes > MAX_HELD_BYTES {
            let unit = "bytes of names, link targets and directory attributes".into();
            return Err(LayerError::TooLarge {
                limit: MAX_HELD_BYTES,
                unit,
                key: None,
            }
            .into());
        }
        Ok(())
    }
}

/// Why an entry cannot be added.
enum Failure {
    /// It is at fault itself.
    Entry(String),
    Layer(LayerError),
}

impl From<LayerError> for Failure {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

fn refuse<T>(reason: &str) -> Result<T, Failure> {
    Err(Failure::Entry(reason.to_owned()))
}

fn attributes(entry: &Entry) -> Result<Attributes, Failure> {
    let mut xattrs = Xattrs::default();
    for (name, value) in &entry.xattrs {
        if name.starts_with(marks::RESERVED_PREFIX) {
            continue;
        }
        match xattrs.set(name, value) {
            Ok(()) => {}
            Err(XattrError::Namespace(name)) => {
                tracing::debug!(
                    path = shown(&entry.path),
                    name,
                    "leaving out an extended attribute"
                );
            }
            Err(error) => return refuse(&format!("cannot be kept: {error}")),
        }
    }
    Ok(Attributes {
        permissions: entry.permissions,
        uid: entry.uid,
        gid: entry.gid,
        mtime_seconds: entry.mtime_seconds,
        mtime_nanoseconds: entry.mtime_nanoseconds,
        xattrs,
    })
}

fn implied_directory() -> Attributes {
    Attributes {
        permissions: 0o755,
        ..Attributes::default()
    }
}

/// A path for a message.
fn shown(path: &[u8]) -> String {
    let mut text: String = String::from_utf8_lossy(path).chars().take(200).collect();
    if path.len() > 200 && text.len() < path.len() {
        text.push('…');
    }
    text
}
