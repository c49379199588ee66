//! The index in memory: which images there are, under which names, and who uses them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::super::{Digest, Image, ImageId, Reference};
use super::index::Record;

/// All images.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    images: BTreeMap<ImageId, Known>,
    /// Tags and digests in full, and the image each means.
    names: HashMap<String, ImageId>,
}

/// One image.
#[derive(Debug)]
struct Known {
    image: Arc<Image>,
    /// Removed by name, and kept only for those who use it.
    removed: bool,
    leases: usize,
}

impl Catalogue {
    pub(super) fn new(records: Vec<Record>) -> Self {
        let mut catalogue = Self::default();
        catalogue.put(records);
        catalogue
    }

    pub(super) fn list(&self) -> Vec<Arc<Image>> {
        self.images
            .values()
            .filter(|known| !known.removed)
            .map(|known| Arc::clone(&known.image))
            .collect()
    }

    /// The IDs of all images, removed ones that are still in use included.
    pub(super) fn ids(&self) -> Vec<ImageId> {
        self.images.keys().copied().collect()
    }

    pub(super) fn resolve(&self, name: &str) -> Option<Arc<Image>> {
        if let Ok(id) = name.parse::<ImageId>() {
            return self.present(id);
        }
        // A name that could be both a reference and the beginning of an ID is the reference, as elsewhere.
        let by_reference = name.parse::<Reference>().ok().and_then(|reference| {
            self.names
                .get(&reference.to_string())
                .and_then(|id| self.present(*id))
        });
        by_reference.or_else(|| self.by_prefix(name.strip_prefix("sha256:").unwrap_or(name)))
    }

    fn present(&self, id: ImageId) -> Option<Arc<Image>> {
        self.images
            .get(&id)
            .filter(|known| !known.removed)
            .map(|known| Arc::clone(&known.image))
    }

    /// The only image whose ID begins with these hexadecimal digits.
    fn by_prefix(&self, digits: &str) -> Option<Arc<Image>> {
        if digits.is_empty() || digits.len() > 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let lowest = ImageId(Digest::from_hex(&format!("{digits:0<64}")).ok()?);
        let from = (Bound::Included(lowest), Bound::Unbounded);
        let mut candidates = self
            .images
            .range(from)
            .take_while(|(id, _)| id.0.hex().starts_with(digits))
            .filter(|(_, known)| !known.removed)
            .map(|(_, known)| &known.image);
        let only = candidates.next()?;
        candidates.next().is_none().then(|| Arc::clone(only))
    }

    /// Whether the image is there, perhaps removed but still in use.
    pub(super) fn contains(&self, id: ImageId) -> bool {
        self.images.contains_key(&id)
    }

    /// The records that change when `image` was pulled under a tag, which any other image loses, and a digest.
    pub(super) fn with(&self, mut image: Image, tag: Option<String>, digest: String) -> Vec<Record> {
        if let Some(known) = self.images.get(&image.id).filter(|known| !known.removed) {
            image.repo_tags.clone_from(&known.image.repo_tags);
            image.repo_digests.clone_from(&known.image.repo_digests);
        }
        let mut records = Vec::new();
        if let Some(tag) = &tag
            && let Some(loser) = self
                .names
                .get(tag)
                .filter(|id| **id != image.id)
                .and_then(|id| self.present(*id))
        {
            let mut loser = Image::clone(&loser);
            loser.repo_tags.retain(|other| other != tag);
            records.push(Record {
                removed: false,
                image: loser,
            });
        }
        add_sorted(&mut image.repo_tags, tag);
        add_sorted(&mut image.repo_digests, Some(digest));
        records.push(Record {
            removed: false,
            image,
        });
        records
    }

    /// Takes records as they now are. Leases stay.
    pub(super) fn put(&mut self, records: Vec<Record>) {
        for Record { image, removed } in records {
            let id = image.id;
            let leases = self.forget(id).map_or(0, |known| known.leases);
            for name in image.repo_tags.iter().chain(&image.repo_digests) {
                self.names.insert(name.clone(), id);
            }
            self.images.insert(
                id,
                Known {
                    image: Arc::new(image),
                    removed,
                    leases,
                },
            );
        }
    }

    /// Takes an image out that nobody uses.
    pub(super) fn take_unused(&mut self, id: ImageId) -> Option<Record> {
        if self.images.get(&id)?.leases > 0 {
            return None;
        }
        let Known { image, removed, .. } = self.forget(id)?;
        Some(Record {
            image: Arc::unwrap_or_clone(image),
            removed,
        })
    }

    /// Takes an image out that was removed and that nobody uses any more.
    pub(super) fn take_removed_unused(&mut self) -> Option<Record> {
        let (id, _) = self
            .images
            .iter()
            .find(|(_, known)| known.removed && known.leases == 0)?;
        self.take_unused(*id)
    }

    /// Counts one more user.
    pub(super) fn lease(&mut self, id: ImageId) -> Option<Arc<Image>> {
        let known = self.images.get_mut(&id)?;
        known.leases += 1;
        Some(Arc::clone(&known.image))
    }

    /// Counts one user less; says whether that was the last one of a removed image.
    pub(super) fn unlease(&mut self, id: ImageId) -> bool {
        let Some(known) = self.images.get_mut(&id) else {
            return false;
        };
        known.leases = known.leases.saturating_sub(1);
        known.removed && known.leases == 0
    }

    fn forget(&mut self, id: ImageId) -> Option<Known> {
        let known = self.images.remove(&id)?;
        for name in known.image.repo_tags.iter().chain(&known.image.repo_digests) {
            // A tag may have moved on in the same change.
            if self.names.get(name) == Some(&id) {
                self.names.remove(name);
            }
        }
        Some(known)
    }
}

/// The image as it is kept for those who use it still.
pub(super) fn without_names(image: &Image) -> Image {
    Image {
        repo_tags: Vec::new(),
        repo_digests: Vec::new(),
        ..image.clone()
    }
}

fn add_sorted(names: &mut Vec<String>, name: Option<String>) {
    if let Some(name) = name
        && let Err(place) = names.binary_search(&name)
    {
        names.insert(place, name);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::ContainerDefaults;
    use super::*;

    fn image(id: &str) -> Image {
        Image {
            id: format!("{id:0<64}").parse().unwrap(),
            repo_tags: vec![],
            repo_digests: vec![],
            size_bytes: 1,
            config: ContainerDefaults::default(),
            layers: vec![],
            directories: None,
        }
    }

    fn pulled(catalogue: &mut Catalogue, id: &str, tag: Option<&str>) {
        let digest = format!("docker.io/library/a@sha256:{id:f<64}");
        let tag = tag.map(|tag| format!("docker.io/library/a:{tag}"));
        let records = catalogue.with(image(id), tag, digest);
        catalogue.put(records);
    }

    fn found(catalogue: &Catalogue, name: &str) -> Option<String> {
        catalogue
            .resolve(name)
            .map(|image| image.id.0.hex().trim_end_matches('0').to_owned())
    }

    #[test]
    fn a_tag_moves_and_its_old_image_keeps_its_digest() {
        let mut catalogue = Catalogue::default();
        pulled(&mut catalogue, "ab", Some("latest"));
        pulled(&mut catalogue, "ab", Some("v1"));
        pulled(&mut catalogue, "ac", Some("latest"));
        assert_eq!(found(&catalogue, "a").as_deref(), Some("ac"));
        assert_eq!(found(&catalogue, "a:v1").as_deref(), Some("ab"));
        let old = catalogue.resolve("ab").unwrap();
        assert_eq!(old.repo_tags, ["docker.io/library/a:v1"]);
        assert_eq!(old.repo_digests.len(), 1);
        pulled(&mut catalogue, "ac", Some("v1"));
        let old = catalogue.resolve(&old.repo_digests[0]).unwrap();
        assert_eq!((old.repo_tags.len(), old.repo_digests.len()), (0, 1));
    }

    #[test]
    fn names_of_every_kind_are_resolved() {
        let mut catalogue = Catalogue::default();
        pulled(&mut catalogue, "ab", Some("t"));
        pulled(&mut catalogue, "ac", None);
        let full = format!("{:0<64}", "ab");
        for name in [
            "ab",
            "sha256:ab",
            &full,
            &format!("sha256:{full}"),
            "a:t",
            "docker.io/library/a:t",
        ] {
            assert_eq!(found(&catalogue, name).as_deref(), Some("ab"), "{name}");
        }
        for name in [
            "a",
            "",
            "sha256:",
            "abc",
            "zz",
            "b:t",
            &format!("{full}0"),
            &full.to_uppercase(),
        ] {
            assert_eq!(found(&catalogue, name), None, "{name}");
        }
    }

    #[test]
    fn a_removed_image_stays_for_its_users_alone() {
        let mut catalogue = Catalogue::default();
        pulled(&mut catalogue, "ab", Some("t"));
        let id = image("ab").id;
        let leased = catalogue.lease(id).unwrap();
        assert!(catalogue.take_unused(id).is_none());
        catalogue.put(vec![Record {
            removed: true,
            image: without_names(&leased),
        }]);
        assert!(catalogue.list().is_empty());
        assert_eq!(found(&catalogue, "a:t"), None);
        assert_eq!(found(&catalogue, "ab"), None);
        assert!(catalogue.take_removed_unused().is_none());
        assert!(catalogue.unlease(id));
        assert_eq!(catalogue.take_removed_unused().unwrap().image.id, id);
        assert!(!catalogue.contains(id));
    }

    #[test]
    fn pulling_a_removed_image_brings_it_back() {
        let mut catalogue = Catalogue::default();
        pulled(&mut catalogue, "ab", Some("t"));
        let id = image("ab").id;
        let leased = catalogue.lease(id).unwrap();
        catalogue.put(vec![Record {
            removed: true,
            image: without_names(&leased),
        }]);
        pulled(&mut catalogue, "ab", Some("new"));
        assert_eq!(
            catalogue.resolve("ab").unwrap().repo_tags,
            ["docker.io/library/a:new"]
        );
        assert!(!catalogue.unlease(id));
    }
}
