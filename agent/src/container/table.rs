//! The containers of the pod by name.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bulkhead_proto::agent::limits::CONTAINERS;

use super::{error::ContainerError, state::Container};

/// All containers.
#[derive(Clone, Debug, Default)]
pub struct Table {
    entries: Arc<Mutex<BTreeMap<String, Entry>>>,
}

#[derive(Debug)]
enum Entry {
    /// Its name is taken, and it is being made.
    Creating,
    Ready(Arc<Container>),
}

/// A name that is taken for a container to come; free again if it does not come.
#[derive(Debug)]
pub struct Reservation {
    table: Table,
    id: String,
    used: bool,
}

impl Table {
    /// Takes a name.
    pub fn reserve(&self, id: &str) -> Result<Reservation, ContainerError> {
        let mut entries = self.locked();
        if entries.contains_key(id) {
            return Err(ContainerError::Exists(id.to_owned()));
        }
        if entries.len() >= CONTAINERS {
            return Err(ContainerError::TooMany {
                what: "containers of the pod",
                most: CONTAINERS,
            });
        }
        entries.insert(id.to_owned(), Entry::Creating);
        Ok(Reservation {
            table: self.clone(),
            id: id.to_owned(),
            used: false,
        })
    }

    /// The container of that name.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, ContainerError> {
        match self.locked().get(id) {
            Some(Entry::Ready(container)) => Ok(container.clone()),
            Some(Entry::Creating) => Err(ContainerError::BeingCreated(id.to_owned())),
            None => Err(ContainerError::NotFound(id.to_owned())),
        }
    }

    /// All that are there, by name.
    pub fn all(&self) -> Vec<Arc<Container>> {
        self.locked()
            .values()
            .filter_map(|entry| match entry {
                Entry::Ready(container) => Some(container.clone()),
                Entry::Creating => None,
            })
            .collect()
    }

    /// Whether it is this container that the table has under its name.
    pub fn holds(&self, container: &Arc<Container>) -> bool {
        matches!(
            self.locked().get(container.id()),
            Some(Entry::Ready(held)) if Arc::ptr_eq(held, container)
        )
    }

    /// Forgets a container.
    pub fn forget(&self, id: &str) {
        self.locked().remove(id);
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// The name becomes that of `container`.
    pub fn fill(mut self, container: Arc<Container>) {
        self.used = true;
        self.table
            .locked()
            .insert(self.id.clone(), Entry::Ready(container));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.used {
            self.table.locked().remove(&self.id);
        }
    }
}
