//! The attributes of directories that a layer holds but does not describe.
//!
//! An archive with `etc/hosts` need not have an entry for `etc/`: the directory is then as lower layers have it. Its
//! layer, though, is converted without regard to any other, and overlayfs takes a directory's attributes from the
//! topmost layer that has it. So where that layer only implies the directory, one more layer is put on top, which has
//! nothing but those directories with the attributes they ought to have.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;

use super::super::erofs::{Attributes, DirectoryId, FileType, Reader, Tree, Writer};
use super::marks;

/// The layer that puts right what `layers`, from the lowest up, show of their directories, written to `file`; with its
/// length. Each layer comes with whether it has implied directories. Nothing if all is right.
pub(in super::super) fn settle_directories(
    layers: Vec<(File, bool)>,
    file: File,
) -> io::Result<Option<(File, u64)>> {
    let layers: Vec<_> = layers
        .into_iter()
        .map(|(file, implies)| (Reader::new(file), implies))
        .collect();
    let mut root = Vec::new();
    for (layer, implies) in layers.iter().rev() {
        let part = Part::read(layer, *implies, layer.root()?)?;
        let hides_lower = part.opaque;
        root.push(part);
        if hides_lower {
            break;
        }
    }
    let mut found = Found::default();
    let mut pending = vec![(Vec::new(), root)];
    while let Some((path, parts)) = pending.pop() {
        found.look_at(&path, &parts);
        if !may_be_wrong(&parts) {
            continue;
        }
        for (name, parts) in children(&parts)? {
            pending.push(([path.clone(), vec![name]].concat(), parts));
        }
    }
    found.write(file)
}

/// Whether a directory in this one may be described by another layer than the topmost that has it.
fn may_be_wrong(parts: &[Part<'_>]) -> bool {
    let above_lowest = parts.split_last().map_or(&[][..], |(_, above)| above);
    above_lowest.iter().any(|part| part.layer_implies)
}

/// A directory of the image in one of its layers.
struct Part<'a> {
    layer: &'a Reader,
    /// Whether the layer has implied directories anywhere.
    layer_implies: bool,
    nid: u64,
    /// Without marks.
    attributes: Attributes,
    opaque: bool,
    implied: bool,
}

impl<'a> Part<'a> {
    fn read(layer: &'a Reader, layer_implies: bool, nid: u64) -> io::Result<Self> {
        let mut attributes = layer.attributes(nid)?;
        let (opaque, implied) = marks::take(&mut attributes.xattrs);
        Ok(Self {
            layer,
            layer_implies,
            nid,
            attributes,
            opaque,
            implied,
        })
    }
}

/// The directories in a directory, each with its parts from the topmost layer down, as overlayfs merges them.
fn children<'a>(parts: &[Part<'a>]) -> io::Result<BTreeMap<Vec<u8>, Vec<Part<'a>>>> {
    let mut children: BTreeMap<_, Vec<Part<'a>>> = BTreeMap::new();
    let mut hidden = BTreeSet::new();
    for part in parts {
        for (name, entry) in part.layer.entries(part.nid)? {
            if hidden.contains(&name) {
                continue;
            }
            if entry.file_type != FileType::Directory {
                hidden.insert(name);
                continue;
            }
            let child = Part::read(part.layer, part.layer_implies, entry.nid)?;
            if child.opaque {
                hidden.insert(name.clone());
            }
            children.entry(name).or_default().push(child);
        }
    }
    Ok(children)
}

/// What is known of the directories looked at, by their names from the root.
#[derive(Default)]
struct Found {
    right: HashMap<Vec<Vec<u8>>, Attributes>,
    wrong: BTreeSet<Vec<Vec<u8>>>,
}

impl Found {
    fn look_at(&mut self, path: &[Vec<u8>], parts: &[Part<'_>]) {
        let Some(shown) = parts.first() else { return };
        let right = parts.iter().find(|part| !part.implied).unwrap_or(shown);
        let mut wanted = right.attributes.clone();
        if path.is_empty() {
            // The root's time is not worth a layer: most archives have no entry for the root.
            (wanted.mtime_seconds, wanted.mtime_nanoseconds) =
                (shown.attributes.mtime_seconds, shown.attributes.mtime_nanoseconds);
        }
        if shown.attributes != wanted {
            self.wrong.insert(path.to_vec());
        }
        self.right.insert(path.to_vec(), right.attributes.clone());
    }

    fn write(self, file: File) -> io::Result<Option<(File, u64)>> {
        if self.wrong.is_empty() {
            return Ok(None);
        }
        let right = |path: &[Vec<u8>]| self.right.get(path).cloned().unwrap_or_default();
        let mut tree = Tree::new(right(&[]));
        let mut made: HashMap<&[Vec<u8>], DirectoryId> = HashMap::from([(&[][..], Tree::ROOT)]);
        for path in &self.wrong {
            let mut parent = Tree::ROOT;
            for (index, name) in path.iter().enumerate() {
                let upto = path.get(..=index).unwrap_or(path);
                parent = *made
                    .entry(upto)
                    .or_insert_with(|| tree.make_directory(parent, name, right(upto)));
            }
        }
        Writer::new(file).finish(&tree).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tar::{Entry, Kind};
    use super::super::namespace::Namespace;
    use super::*;

    /// A layer of directories (`name/`), whiteouts and files, each entry with these permissions.
    fn layer(entries: &[(&str, u16)]) -> (File, bool) {
        let mut namespace = Namespace::new(tempfile::tempfile().unwrap(), 100);
        for (path, permissions) in entries {
            let kind = if path.ends_with('/') {
                Kind::Directory
            } else {
                Kind::Regular
            };
            let entry = Entry {
                path: path.as_bytes().to_vec(),
                link: Vec::new(),
                kind,
                size: 0,
                permissions: *permissions,
                uid: 0,
                gid: 0,
                mtime_seconds: 9,
                mtime_nanoseconds: 0,
                device: (0, 0),
                xattrs: vec![(b"user.from".to_vec(), path.as_bytes().to_vec())],
                sparse: None,
            };
            namespace.add(&entry).unwrap();
        }
        let converted = namespace.finish().unwrap();
        (converted.file, converted.implies_directories)
    }

    /// The directories of the layer that puts `layers` right, with their permissions.
    fn settled(layers: &[&[(&str, u16)]]) -> Vec<(String, u16)> {
        let layers = layers.iter().map(|entries| layer(entries)).collect();
        let Some((file, _)) = settle_directories(layers, tempfile::tempfile().unwrap()).unwrap() else {
            return Vec::new();
        };
        let reader = Reader::new(file);
        let mut found = Vec::new();
        let mut pending = vec![(String::new(), reader.root().unwrap())];
        while let Some((path, nid)) = pending.pop() {
            let mut attributes = reader.attributes(nid).unwrap();
            assert_eq!(marks::take(&mut attributes.xattrs), (false, false));
            found.push((path.clone(), attributes.permissions));
            for (name, entry) in reader.entries(nid).unwrap() {
                pending.push((format!("{path}/{}", String::from_utf8(name).unwrap()), entry.nid));
            }
        }
        found.sort();
        found
    }

    fn expect(directories: &[(&str, u16)]) -> Vec<(String, u16)> {
        directories
            .iter()
            .map(|(path, permissions)| ((*path).to_owned(), *permissions))
            .collect()
    }

    #[test]
    fn an_implied_directory_is_as_the_highest_layer_that_describes_it() {
        let lower: &[(&str, u16)] = &[
            ("a/", 0o700),
            ("a/b/", 0o711),
            ("a/b/c/", 0o722),
            ("other/", 0o733),
        ];
        assert_eq!(settled(&[lower]), []);
        assert_eq!(settled(&[lower, &[("a/", 0o755), ("a/x", 0)]]), []);
        let both = expect(&[("", 0o755), ("/a", 0o700), ("/a/b", 0o711)]);
        assert_eq!(settled(&[lower, &[("a/b/x", 0)]]), both);
        assert_eq!(
            settled(&[lower, &[("a/b/", 0o744), ("a/b/x", 0)], &[("a/b/y", 0)]]),
            expect(&[("", 0o755), ("/a", 0o700), ("/a/b", 0o744)])
        );
        assert_eq!(settled(&[&[("new/x", 0)], &[("new/y", 0)]]), []);
        // Whiteouts imply their directory too.
        assert_eq!(settled(&[lower, &[("a/b/.wh.c", 0)]]), both);
    }

    #[test]
    fn what_a_layer_hides_is_not_taken_from_below() {
        let lower: &[(&str, u16)] = &[("a/", 0o700), ("a/b/", 0o711)];
        for hiding in [
            &[(".wh.a", 0)][..],
            &[("a", 0)],
            &[(".wh.a", 0), ("a/b/x", 0)],
            &[("a/.wh..wh..opq", 0), ("a/b/x", 0)],
        ] {
            let without_a = settled(&[lower, hiding, &[("a/b/x", 0)]]);
            assert!(
                !without_a.iter().any(|(path, _)| path == "/a/b"),
                "{hiding:?}: {without_a:?}"
            );
        }
        assert_eq!(settled(&[lower, &[(".wh..wh..opq", 0), ("a/b/x", 0)]]), []);
        assert_eq!(settled(&[lower, &[("a/b/x", 0)], &[(".wh.a", 0)]]), []);
        // A directory's own opaque mark hides what is in it, and its attributes with it.
        assert_eq!(
            settled(&[lower, &[("a/b/.wh..wh..opq", 0)]]),
            expect(&[("", 0o755), ("/a", 0o700)])
        );
    }

    #[test]
    fn the_root_is_put_right_but_not_for_its_time_alone() {
        assert_eq!(settled(&[&[("./", 0o711)], &[("x", 0)]]), expect(&[("", 0o711)]));
        let plain = Attributes {
            permissions: 0o755,
            mtime_seconds: 9,
            ..Attributes::default()
        };
        let mut tree = Tree::new(plain);
        tree.directory_mut(Tree::ROOT).attributes.mtime_nanoseconds = 5;
        let (with_time, _) = Writer::new(tempfile::tempfile().unwrap()).finish(&tree).unwrap();
        let layers = vec![(with_time, false), layer(&[("x", 0)])];
        assert!(
            settle_directories(layers, tempfile::tempfile().unwrap())
                .unwrap()
                .is_none()
        );
    }
}
