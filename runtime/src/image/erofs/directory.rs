//! A directory's data: blocks of fixed-size entries followed by their names (`struct erofs_dirent`).
//!
//! Entries are sorted by name over the whole directory, `.` and `..` among them, because the kernel finds a name by
//! binary search, first for the block and then in it.

use super::format::{BLOCK_BYTES, DIRENT_BYTES, FileType};
use super::tree::{Directory, Entry};

const SELF: &[u8] = b".";
const PARENT: &[u8] = b"..";

/// What an entry of a directory points to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target<'a> {
    Itself,
    Parent,
    Child(&'a Entry),
}

impl Target<'_> {
    fn file_type(&self) -> FileType {
        match self {
            Self::Itself | Self::Parent => FileType::Directory,
            Self::Child(entry) => entry.file_type(),
        }
    }
}

/// Bytes of the directory's data. All blocks but the last count in full.
pub(super) fn data_bytes(directory: &Directory) -> usize {
    let mut blocks = 0;
    let mut last = 0;
    for block in Blocks::of(directory) {
        blocks += 1;
        last = block.iter().map(|(name, _)| DIRENT_BYTES + name.len()).sum();
    }
    (blocks - 1) * BLOCK_BYTES + last
}

/// The directory's data, with `nid_of` telling the inode number behind each entry.
pub(super) fn encode(directory: &Directory, mut nid_of: impl FnMut(Target<'_>) -> u64) -> Vec<u8> {
    let mut data = Vec::new();
    for block in Blocks::of(directory) {
        data.resize(data.len().next_multiple_of(BLOCK_BYTES), 0);
        let mut name_offset = block.len() * DIRENT_BYTES;
        for (name, target) in &block {
            data.extend(nid_of(*target).to_le_bytes());
            // Below BLOCK_BYTES, for that is how blocks are cut.
            data.extend(u16::try_from(name_offset).unwrap_or(u16::MAX).to_le_bytes());
            data.extend([target.file_type() as u8, 0]);
            name_offset += name.len();
        }
        for (name, _) in &block {
            data.extend(*name);
        }
    }
    data
}

/// Cuts a directory's entries into blocks.
struct Blocks<'a, I: Iterator<Item = (&'a [u8], Target<'a>)>> {
    entries: std::iter::Peekable<I>,
}

impl<'a> Blocks<'a, std::vec::IntoIter<(&'a [u8], Target<'a>)>> {
    fn of(directory: &'a Directory) -> Blocks<'a, impl Iterator<Item = (&'a [u8], Target<'a>)>> {
        // Names may sort before "." ("-x", "!"), between "." and ".." (".-"), or after.
        let mut dots = [(SELF, Target::Itself), (PARENT, Target::Parent)]
            .into_iter()
            .peekable();
        let mut children = directory
            .entries()
            .map(|(name, entry)| (name, Target::Child(entry)))
            .peekable();
        let entries = std::iter::from_fn(move || match (dots.peek(), children.peek()) {
            (Some(dot), Some(child)) if child.0 < dot.0 => children.next(),
            (Some(_), _) => dots.next(),
            (None, _) => children.next(),
        });
        Blocks {
            entries: entries.peekable(),
        }
    }
}

impl<'a, I: Iterator<Item = (&'a [u8], Target<'a>)>> Iterator for Blocks<'a, I> {
    type Item = Vec<(&'a [u8], Target<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut block = Vec::new();
        let mut used = 0;
        while let Some(entry) = self
            .entries
            .next_if(|(name, _)| used + DIRENT_BYTES + name.len() <= BLOCK_BYTES)
        {
            used += DIRENT_BYTES + entry.0.len();
            block.push(entry);
        }
        (!block.is_empty()).then_some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::super::writer::{Attributes, Inode};
    use super::*;

    fn tree_of(names: &[&[u8]]) -> Tree {
        let mut tree = Tree::new(Attributes::default());
        for (nid, name) in (0..).zip(names) {
            tree.insert(
                Tree::ROOT,
                name,
                Entry::Other(Inode {
                    nid,
                    file_type: FileType::Regular,
                }),
            );
        }
        tree
    }

    fn names_in(data: &[u8]) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        for block in data.chunks(BLOCK_BYTES) {
            let offset = |i: usize| usize::from(u16::from_le_bytes([block[i * 12 + 8], block[i * 12 + 9]]));
            let count = offset(0) / DIRENT_BYTES;
            for i in 0..count {
                let end = if i + 1 < count { offset(i + 1) } else { block.len() };
                let name = &block[offset(i)..end];
                names.push(name.split(|b| *b == 0).next().unwrap().to_vec());
            }
        }
        names
    }

    #[test]
    fn dots_are_sorted_among_the_names() {
        let tree = tree_of(&[b"-x", b".-", b"...", b"a", b"!"]);
        let data = encode(tree.directory(Tree::ROOT), |_| 5);
        let expected: Vec<&[u8]> = vec![b"!", b"-x", b".", b".-", b"..", b"...", b"a"];
        assert_eq!(names_in(&data), expected);
        assert_eq!(data.len(), data_bytes(tree.directory(Tree::ROOT)));
    }

    #[test]
    fn a_large_directory_is_cut_into_blocks_in_order() {
        let names: Vec<Vec<u8>> = (0..1000).map(|i| format!("{i:0200}").into_bytes()).collect();
        let tree = tree_of(&names.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let data = encode(tree.directory(Tree::ROOT), |_| 5);
        assert_eq!(data.len(), data_bytes(tree.directory(Tree::ROOT)));
        assert_eq!(data.len().div_ceil(BLOCK_BYTES), 1000_usize.div_ceil(4096 / 212));
        let found = names_in(&data);
        assert_eq!(found.len(), 1002);
        assert!(found.is_sorted());
    }
}
