//! The names of a file system that is being written: directories and what they hold.

use std::collections::{BTreeMap, HashMap};

use super::format::FileType;
use super::writer::{Attributes, Inode};

/// The directories of one file system, by number.
#[derive(Debug)]
pub struct Tree {
    directories: Vec<Directory>,
    /// Inodes with, or once with, more than one name, and how many names they have now.
    links: HashMap<u64, u32>,
}

/// The number of a directory in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DirectoryId(usize);

/// One directory.
#[derive(Debug)]
pub struct Directory {
    /// Owner, mode, time, attributes.
    pub attributes: Attributes,
    parent: DirectoryId,
    children: BTreeMap<Box<[u8]>, Entry>,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory of the same tree.
    Directory(DirectoryId),
    /// A symbolic link, already written, and where it points.
    Symlink(Inode, Box<[u8]>),
    /// Anything else, already written.
    Other(Inode),
}

impl Entry {
    fn inode(&self) -> Option<Inode> {
        match self {
            Self::Directory(_) => None,
            Self::Symlink(inode, _) | Self::Other(inode) => Some(*inode),
        }
    }

    pub(super) fn file_type(&self) -> FileType {
        match self {
            Self::Directory(_) => FileType::Directory,
            Self::Symlink(..) => FileType::Symlink,
            Self::Other(inode) => inode.file_type,
        }
    }
}

impl Directory {
    /// Its entries in the order of their bytes.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.children.iter().map(|(name, entry)| (&**name, entry))
    }

    /// The directory it lies in; the root lies in itself.
    pub fn parent(&self) -> DirectoryId {
        self.parent
    }
}

impl Tree {
    /// The root directory.
    pub const ROOT: DirectoryId = DirectoryId(0);

    /// A tree of an empty root directory.
    pub fn new(root: Attributes) -> Self {
        let root = Directory {
            attributes: root,
            parent: Self::ROOT,
            children: BTreeMap::new(),
        };
        Self {
            directories: vec![root],
            links: HashMap::new(),
        }
    }

    /// The directory `id`.
    ///
    /// # Panics
    /// If `id` is of another tree.
    pub fn directory(&self, id: DirectoryId) -> &Directory {
        self.directories
            .get(id.0)
            .expect("a DirectoryId comes from the tree it is used with")
    }

    /// The directory `id`, to change its attributes.
    ///
    /// # Panics
    /// If `id` is of another tree.
    pub fn directory_mut(&mut self, id: DirectoryId) -> &mut Directory {
        self.directories
            .get_mut(id.0)
            .expect("a DirectoryId comes from the tree it is used with")
    }

    /// What `name` stands for in `directory`.
    pub fn get(&self, directory: DirectoryId, name: &[u8]) -> Option<&Entry> {
        self.directory(directory).children.get(name)
    }

    /// Makes an empty directory, in place of whatever had the name.
    pub fn make_directory(
        &mut self,
        parent: DirectoryId,
        name: &[u8],
        attributes: Attributes,
    ) -> DirectoryId {
        let id = DirectoryId(self.directories.len());
        self.directories.push(Directory {
            attributes,
            parent,
            children: BTreeMap::new(),
        });
        self.put(parent, name, Entry::Directory(id));
        id
    }

    /// Gives a written inode its first name, in place of whatever had the name.
    pub fn insert(&mut self, directory: DirectoryId, name: &[u8], entry: Entry) {
        self.put(directory, name, entry);
    }

    /// Gives an inode of the tree one more name, in place of whatever had the name.
    pub fn link(&mut self, directory: DirectoryId, name: &[u8], entry: Entry) {
        if let Some(inode) = entry.inode() {
            *self.links.entry(inode.nid).or_insert(1) += 1;
        }
        self.put(directory, name, entry);
    }

    /// The inodes that have another number of names than one, and that number.
    pub(super) fn link_counts(&self) -> impl Iterator<Item = (u64, u32)> {
        self.links
            .iter()
            .map(|(nid, count)| (*nid, *count))
            .filter(|(_, count)| *count > 1)
    }

    /// The directories that can be reached, each before those in it.
    pub(super) fn reachable(&self) -> Vec<DirectoryId> {
        let mut found = vec![Self::ROOT];
        let mut next = 0;
        while let Some(id) = found.get(next).copied() {
            next += 1;
            found.extend(
                self.directory(id)
                    .children
                    .values()
                    .filter_map(|entry| match entry {
                        Entry::Directory(child) => Some(*child),
                        _ => None,
                    }),
            );
        }
        found
    }

    fn put(&mut self, directory: DirectoryId, name: &[u8], entry: Entry) {
        if let Some(replaced) = self.directory_mut(directory).children.insert(name.into(), entry) {
            self.forget(replaced);
        }
    }

    /// Takes the names below `entry` away; on a stack of its own, for trees may be thousands of levels deep.
    fn forget(&mut self, entry: Entry) {
        let mut doomed = vec![entry];
        while let Some(entry) = doomed.pop() {
            if let Entry::Directory(id) = entry {
                doomed.extend(std::mem::take(&mut self.directory_mut(id).children).into_values());
            } else if let Some(count) = entry.inode().and_then(|inode| self.links.get_mut(&inode.nid)) {
                *count = count.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(nid: u64) -> Entry {
        Entry::Other(Inode {
            nid,
            file_type: FileType::Regular,
        })
    }

    #[test]
    fn replacing_a_directory_takes_its_links_away() {
        let mut tree = Tree::new(Attributes::default());
        let directory = tree.make_directory(Tree::ROOT, b"d", Attributes::default());
        tree.insert(Tree::ROOT, b"a", file(1));
        tree.link(directory, b"b", file(1));
        tree.link(directory, b"c", file(1));
        assert_eq!(tree.link_counts().collect::<Vec<_>>(), [(1, 3)]);
        assert_eq!(tree.reachable(), [Tree::ROOT, directory]);
        tree.insert(Tree::ROOT, b"d", file(2));
        assert_eq!(tree.link_counts().count(), 0);
        assert_eq!(tree.reachable(), [Tree::ROOT]);
        assert_eq!(tree.get(Tree::ROOT, b"d"), Some(&file(2)));
    }
}
