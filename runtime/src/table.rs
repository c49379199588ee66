//! What the daemon knows of its pods or containers, in memory: by id or the unique beginning of one, and by name.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// Objects by id, and the names that are in use.
#[derive(Debug)]
pub struct Table<T> {
    inner: Arc<RwLock<Inner<T>>>,
}

#[derive(Debug)]
struct Inner<T> {
    objects: BTreeMap<String, Arc<T>>,
    /// Id of the object that has the name or will have it.
    names: HashMap<String, String>,
}

/// Why there is no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No id is or begins with this.
    #[error("{0:?} is not known")]
    Unknown(String),
    /// Several do.
    #[error("{prefix:?} is the beginning of {count} ids; give more of it")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// How many ids begin so.
        count: usize,
    },
    /// Nothing was asked for.
    #[error("the id is empty")]
    Empty,
}

/// Why a name could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name {name:?} is in use by {id}; remove that first")]
pub struct NameTaken {
    /// The name.
    pub name: String,
    /// Who has it.
    pub id: String,
}

impl<T> Table<T> {
    /// Keeps `name` for the object with `id`, until the reservation is dropped or the object removed.
    ///
    /// # Errors
    ///
    /// [`NameTaken`] where another object has it.
    pub fn reserve(&self, name: &str, id: &str) -> Result<Reservation<T>, NameTaken> {
        let mut inner = self.write();
        if let Some(holder) = inner.names.get(name) {
            return Err(NameTaken {
                name: name.to_owned(),
                id: holder.clone(),
            });
        }
        inner.names.insert(name.to_owned(), id.to_owned());
        Ok(Reservation {
            table: self.clone(),
            name: name.to_owned(),
            id: id.to_owned(),
            kept: false,
        })
    }

    /// The object whose id is `id`, or the only one whose id begins so.
    ///
    /// # Errors
    ///
    /// [`LookupError`] where there is none or more than one.
    pub fn find(&self, id: &str) -> Result<Arc<T>, LookupError> {
        if id.is_empty() {
            return Err(LookupError::Empty);
        }
        let inner = self.read();
        if let Some(object) = inner.objects.get(id) {
            return Ok(Arc::clone(object));
        }
        let mut beginning = inner
            .objects
            .range(id.to_owned()..)
            .take_while(|(known, _)| known.starts_with(id))
            .map(|(_, object)| object);
        match (beginning.next(), beginning.count()) {
            (None, _) => Err(LookupError::Unknown(id.to_owned())),
            (Some(object), 0) => Ok(Arc::clone(object)),
            (Some(_), more) => Err(LookupError::Ambiguous {
                prefix: id.to_owned(),
                count: more + 1,
            }),
        }
    }

    /// All objects, by id.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.read().objects.values().cloned().collect()
    }

    /// Takes the object with exactly this id out, and frees its name.
    pub fn remove(&self, id: &str) -> Option<Arc<T>> {
        let mut inner = self.write();
        inner.names.retain(|_, holder| holder != id);
        inner.objects.remove(id)
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner<T>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner<T>> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        let inner = Inner {
            objects: BTreeMap::new(),
            names: HashMap::new(),
        };
        Self {
            inner: Arc::new(RwLock::new(inner)),
        }
    }
}

/// A name that is kept for an object in the making. Dropped, the name is free again.
#[derive(Debug)]
#[must_use = "a reservation that is dropped frees the name"]
pub struct Reservation<T> {
    table: Table<T>,
    name: String,
    id: String,
    kept: bool,
}

impl<T> Reservation<T> {
    /// Puts the object into the table under the reserved name.
    pub fn fill(mut self, object: Arc<T>) {
        self.kept = true;
        self.table.write().objects.insert(self.id.clone(), object);
    }
}

impl<T> Drop for Reservation<T> {
    fn drop(&mut self) {
        if !self.kept {
            self.table.write().names.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(ids: &[&str]) -> Table<String> {
        let table = Table::default();
        for id in ids {
            table
                .reserve(&format!("name of {id}"), id)
                .unwrap()
                .fill(Arc::new((*id).to_owned()));
        }
        table
    }

    #[test]
    fn an_object_is_found_by_its_id_and_by_a_unique_beginning() {
        let table = table(&["abc1", "abc2", "abd"]);
        assert_eq!(*table.find("abc1").unwrap(), "abc1");
        assert_eq!(*table.find("abd").unwrap(), "abd");
        assert_eq!(
            table.find("abc").unwrap_err(),
            LookupError::Ambiguous {
                prefix: "abc".into(),
                count: 2
            }
        );
        assert_eq!(table.find("b").unwrap_err(), LookupError::Unknown("b".into()));
        assert_eq!(table.find("").unwrap_err(), LookupError::Empty);
    }

    #[test]
    fn an_id_that_begins_another_is_found_as_itself() {
        assert_eq!(*table(&["ab", "abc"]).find("ab").unwrap(), "ab");
    }

    #[test]
    fn a_name_is_had_once_and_is_free_when_its_holder_is_gone() {
        let table = Table::<()>::default();
        let reservation = table.reserve("n", "1").unwrap();
        assert_eq!(table.reserve("n", "2").unwrap_err().id, "1");
        drop(reservation);
        table.reserve("n", "2").unwrap().fill(Arc::new(()));
        assert_eq!(table.reserve("n", "3").unwrap_err().id, "2");
        assert!(table.remove("2").is_some());
        assert!(table.remove("2").is_none());
        table.reserve("n", "3").unwrap().fill(Arc::new(()));
        assert_eq!(table.all().len(), 1);
    }
}
