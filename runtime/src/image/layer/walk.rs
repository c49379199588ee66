//! Ways of paths through a layer's tree, as if the layer's root were `/`.

use super::super::erofs::Entry as TreeEntry;
use super::super::erofs::{DirectoryId, Tree};

/// Linux's `PATH_MAX`, the NUL at the end not counted.
pub(super) const MAX_PATH_BYTES: usize = 4095;

/// Linux's `NAME_MAX`, likewise.
const MAX_NAME_BYTES: usize = 255;

/// Symbolic links followed for one name, Linux's `MAXSYMLINKS`.
const MAX_FOLLOWED_LINKS: usize = 40;

/// Steps taken for one name when symbolic links add their own.
const MAX_STEPS: usize = 4096;

/// A way through the tree, name by name, through symbolic links.
pub(super) struct Walk {
    /// Where it stands.
    pub(super) at: DirectoryId,
    /// Names still to go, the next one last.
    ahead: Vec<Box<[u8]>>,
    links: usize,
    steps: usize,
}

/// Where a walk has got to.
pub(super) enum Step {
    /// At its end.
    Arrived(DirectoryId),
    /// The directory has no such name.
    Missing(DirectoryId, Box<[u8]>),
    /// The name, in the directory where the walk stands, is a file.
    NotADirectory(Box<[u8]>),
    /// It goes on for ever, or nearly so.
    TooManyLinks,
}

impl Walk {
    /// A walk from the root, already past the directories it starts with.
    pub(super) fn new(tree: &Tree, components: &[&[u8]]) -> Self {
        let mut at = Tree::ROOT;
        let mut components = components.iter();
        let mut ahead = components.as_slice();
        while let Some(name) = components.next()
            && let Some(TreeEntry::Directory(id)) = tree.get(at, name)
        {
            at = *id;
            ahead = components.as_slice();
        }
        let ahead = ahead.iter().rev().map(|name| Box::from(*name)).collect();
        Self {
            at,
            ahead,
            links: 0,
            steps: 0,
        }
    }

    /// Goes on in a directory that was made for it.
    pub(super) fn enter(&mut self, directory: DirectoryId) {
        self.at = directory;
    }

    /// Goes on until the end or an obstacle.
    pub(super) fn step(&mut self, tree: &Tree) -> Step {
        while let Some(name) = self.ahead.pop() {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Step::TooManyLinks;
            }
            match (&*name, tree.get(self.at, &name)) {
                // These come from links' targets. The root is its own parent, so nothing leads out.
                (b"" | b".", _) => {}
                (b"..", _) => self.at = tree.directory(self.at).parent(),
                (_, None) => return Step::Missing(self.at, name),
                (_, Some(TreeEntry::Directory(id))) => self.at = *id,
                (_, Some(TreeEntry::Symlink(_, target))) => {
                    self.links += 1;
                    if self.links > MAX_FOLLOWED_LINKS {
                        return Step::TooManyLinks;
                    }
                    if target.starts_with(b"/") {
                        self.at = Tree::ROOT;
                    }
                    self.ahead
                        .extend(target.split(|byte| *byte == b'/').rev().map(Box::from));
                }
                (_, Some(TreeEntry::Other(_))) => return Step::NotADirectory(name),
            }
        }
        Step::Arrived(self.at)
    }
}

/// Splits a path into names.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, String> {
    if path.len() > MAX_PATH_BYTES {
        return Err(format!(
            "has a path of {} bytes, more than {MAX_PATH_BYTES}",
            path.len()
        ));
    }
    if path.contains(&0) {
        return Err("has a NUL in its path".into());
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err("leads upwards with '..'".into()),
            name if name.len() > MAX_NAME_BYTES => {
                return Err(format!(
                    "has a name of {} bytes, more than {MAX_NAME_BYTES}",
                    name.len()
                ));
            }
            name => names.push(name),
        }
    }
    Ok(names)
}
