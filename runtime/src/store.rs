//! The durable state: what the daemon must know of pods and containers when it comes back.
//!
//! One redb file holds it, together with the index of the images. A record is written before what it tells of is acted
//! on, and a call answers only when its last record is on the disk.

mod records;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

pub use records::{
    ContainerPhase, ContainerRecord, ImageRecord, MachineRecord, PodPhase, PodRecord, UserRecord,
};

const PODS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("pods");
const CONTAINERS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("containers");

/// Bytes of the file's pages that are kept in memory: lists and statuses are not read from the file.
const CACHE_BYTES: usize = 512 * 1024;

/// Why the durable state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened.
    #[error(
        "cannot open the durable state {path}: {source}; if it is damaged, move it away: its pods are then ended and \
         its images pulled again"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<redb::DatabaseError>,
    },
    /// A read or a write failed.
    #[error("the durable state cannot be {what}: {source}; is the disk full or failing?")]
    Access {
        /// "read" or "written".
        what: &'static str,
        /// Why not.
        #[source]
        source: Box<redb::Error>,
    },
    /// A record is not one of ours.
    #[error("the durable state holds a damaged record of {id}: {source}")]
    Record {
        /// Pod or container.
        id: String,
        /// What is wrong with it.
        source: prost::DecodeError,
    },
}

/// The file, opened.
#[derive(Clone, Debug)]
pub struct Store {
    database: Arc<Database>,
}

/// Everything that was remembered.
#[derive(Debug, Default)]
pub struct Remembered {
    /// Pods, in no order.
    pub pods: Vec<PodRecord>,
    /// Containers, in no order.
    pub containers: Vec<ContainerRecord>,
    /// Records that could not be read, each with the reason. They are left in the file.
    pub damaged: Vec<StoreError>,
}

impl Store {
    /// Opens the file at `path`, made if need be. A file that a crash left is repaired.
    ///
    /// # Errors
    ///
    /// [`StoreError::Open`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|source| StoreError::Open {
                path: path.to_owned(),
                source: Box::new(source),
            })?;
        Ok(Self {
            database: Arc::new(database),
        })
    }

    /// The file, for the index of the images.
    pub fn database(&self) -> &Arc<Database> {
        &self.database
    }

    /// Everything there is. Blocking.
    ///
    /// # Errors
    ///
    /// [`StoreError::Access`]; a single record that cannot be read is told in the result instead.
    pub fn load(&self) -> Result<Remembered, StoreError> {
        let mut remembered = Remembered::default();
        let read = |error: redb::Error| StoreError::Access {
            what: "read",
            source: Box::new(error),
        };
        let transaction = self.database.begin_read().map_err(|error| read(error.into()))?;
        for (definition, is_pod) in [(PODS, true), (CONTAINERS, false)] {
            let table = match transaction.open_table(definition) {
                Ok(table) => table,
                Err(redb::TableError::TableDoesNotExist(_)) => continue,
                Err(error) => return Err(read(error.into())),
            };
            for entry in table.iter().map_err(|error| read(error.into()))? {
                let (id, bytes) = entry.map_err(|error| read(error.into()))?;
                let damaged = |source| StoreError::Record {
                    id: id.value().to_owned(),
                    source,
                };
                if is_pod {
                    match PodRecord::decode(bytes.value()) {
                        Ok(record) => remembered.pods.push(record),
                        Err(source) => remembered.damaged.push(damaged(source)),
                    }
                } else {
                    match ContainerRecord::decode(bytes.value()) {
                        Ok(record) => remembered.containers.push(record),
                        Err(source) => remembered.damaged.push(damaged(source)),
                    }
                }
            }
        }
        Ok(remembered)
    }

    /// Writes a pod's record over the one there is.
    ///
    /// # Errors
    ///
    /// [`StoreError::Access`]; then the old record is still there.
    pub async fn put_pod(&self, record: PodRecord) -> Result<(), StoreError> {
        self.write(move |pods, _| {
            pods.insert(record.id.as_str(), record.encode_to_vec().as_slice())?;
            Ok(())
        })
        .await
    }

    /// Writes a container's record over the one there is.
    ///
    /// # Errors
    ///
    /// [`StoreError::Access`]; then the old record is still there.
    pub async fn put_container(&self, record: ContainerRecord) -> Result<(), StoreError> {
        self.write(move |_, containers| {
            containers.insert(record.id.as_str(), record.encode_to_vec().as_slice())?;
            Ok(())
        })
        .await
    }

    /// Forgets a pod and these of its containers, at once.
    ///
    /// # Errors
    ///
    /// [`StoreError::Access`]; then all are still there.
    pub async fn remove_pod(&self, id: String, containers: Vec<String>) -> Result<(), StoreError> {
        self.write(move |pods, table| {
            pods.remove(id.as_str())?;
            for container in &containers {
                table.remove(container.as_str())?;
            }
            Ok(())
        })
        .await
    }

    /// Forgets a container.
    ///
    /// # Errors
    ///
    /// [`StoreError::Access`]; then it is still there.
    pub async fn remove_container(&self, id: String) -> Result<(), StoreError> {
        self.write(move |_, containers| {
            containers.remove(id.as_str())?;
            Ok(())
        })
        .await
    }

    async fn write(
        &self,
        change: impl FnOnce(&mut RecordTable<'_>, &mut RecordTable<'_>) -> Result<(), redb::Error>
        + Send
        + 'static,
    ) -> Result<(), StoreError> {
        let database = Arc::clone(&self.database);
        let written = tokio::task::spawn_blocking(move || {
            let transaction = database.begin_write()?;
            {
                let mut pods = transaction.open_table(PODS)?;
                let mut containers = transaction.open_table(CONTAINERS)?;
                change(&mut pods, &mut containers)?;
            }
            transaction.commit()?;
            Ok::<(), redb::Error>(())
        })
        .await;
        written
            .unwrap_or_else(|panic| Err(redb::Error::Io(std::io::Error::other(panic))))
            .map_err(|error| StoreError::Access {
                what: "written",
                source: Box::new(error),
            })
    }
}

type RecordTable<'txn> = redb::Table<'txn, &'static str, &'static [u8]>;

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: &str) -> PodRecord {
        PodRecord {
            id: id.to_owned(),
            created_at_ns: 7,
            ..PodRecord::default()
        }
    }

    fn container(id: &str, pod: &str) -> ContainerRecord {
        ContainerRecord {
            id: id.to_owned(),
            pod_id: pod.to_owned(),
            ..ContainerRecord::default()
        }
    }

    #[tokio::test]
    async fn what_was_written_is_there_when_the_file_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        {
            let store = Store::open(&path).unwrap();
            store.put_pod(pod("p1")).await.unwrap();
            store.put_pod(pod("p2")).await.unwrap();
            store.put_container(container("c1", "p1")).await.unwrap();
            store.put_container(container("c2", "p2")).await.unwrap();
            store.put_container(container("c3", "p2")).await.unwrap();
            store.remove_pod("p2".into(), vec!["c2".into()]).await.unwrap();
            store.remove_container("c3".into()).await.unwrap();
        }
        let remembered = Store::open(&path).unwrap().load().unwrap();
        assert_eq!(remembered.pods, [pod("p1")]);
        assert_eq!(remembered.containers, [container("c1", "p1")]);
        assert!(remembered.damaged.is_empty());
    }

    #[tokio::test]
    async fn a_damaged_record_does_not_hide_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.redb")).unwrap();
        store.put_pod(pod("p1")).await.unwrap();
        store
            .write(|pods, _| {
                pods.insert("p0", [0xff; 3].as_slice())?;
                Ok(())
            })
            .await
            .unwrap();
        let remembered = store.load().unwrap();
        assert_eq!(remembered.pods, [pod("p1")]);
        assert!(remembered.damaged[0].to_string().contains("p0"));
    }

    #[test]
    fn a_file_that_is_no_store_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        std::fs::write(&path, [0x5a; 8192]).unwrap();
        let message = Store::open(&path).unwrap_err().to_string();
        assert!(
            message.contains("state.redb") && message.contains("move it away"),
            "{message}"
        );
    }
}
