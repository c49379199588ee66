//! The index on disk: two tables of the daemon's database.

use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use super::super::{Image, ImageError, ImageId};

/// By ID (`sha256:…`), a [`Record`] as JSON.
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");

/// By ID, the image's configuration as it came.
const CONFIGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("image_configs");

/// What is remembered of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) image: Image,
    /// Removed by name, and kept only for those who use it.
    #[serde(default)]
    pub(super) removed: bool,
}

/// The index on disk. Every change is one transaction, on disk when the call returns.
#[derive(Debug)]
pub(super) struct Index {
    database: Arc<Database>,
}

impl Index {
    pub(super) fn open(database: Arc<Database>) -> Result<Self, ImageError> {
        let make = || -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            transaction.open_table(IMAGES)?;
            transaction.open_table(CONFIGS)?;
            transaction.commit()?;
            Ok(())
        };
        make().map_err(|error| failure("make its tables", &error))?;
        Ok(Self { database })
    }

    /// All records. One that cannot be read any more is left out, which makes its layers garbage.
    pub(super) fn load(&self) -> Result<Vec<Record>, ImageError> {
        let load = || -> Result<Vec<Record>, redb::Error> {
            let table = self.database.begin_read()?.open_table(IMAGES)?;
            let mut records = Vec::new();
            for row in table.iter()? {
                let (id, json) = row?;
                match serde_json::from_slice(json.value()) {
                    Ok(record) => records.push(record),
                    Err(error) => {
                        tracing::warn!(image = id.value(), %error, "an image's record cannot be read; pull it again");
                    }
                }
            }
            Ok(records)
        };
        load().map_err(|error| failure("read it", &error))
    }

    /// Writes records, and the configuration of one of them.
    pub(super) fn put(&self, records: &[Record], config: Option<(ImageId, &[u8])>) -> Result<(), ImageError> {
        let put = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(IMAGES)?;
                for record in records {
                    let json = serde_json::to_vec(record).map_err(std::io::Error::other)?;
                    table.insert(record.image.id.to_string().as_str(), json.as_slice())?;
                }
                if let Some((id, json)) = config {
                    transaction
                        .open_table(CONFIGS)?
                        .insert(id.to_string().as_str(), json)?;
                }
            }
            transaction.commit()?;
            Ok(())
        };
        put().map_err(|error| failure("write to it", &error))
    }

    pub(super) fn delete(&self, id: ImageId) -> Result<(), ImageError> {
        let id = id.to_string();
        let delete = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            transaction.open_table(IMAGES)?.remove(id.as_str())?;
            transaction.open_table(CONFIGS)?.remove(id.as_str())?;
            transaction.commit()?;
            Ok(())
        };
        delete().map_err(|error| failure("delete from it", &error))
    }

    pub(super) fn config_json(&self, id: ImageId) -> Result<Option<Vec<u8>>, ImageError> {
        let get = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(CONFIGS)?;
            Ok(table
                .get(id.to_string().as_str())?
                .map(|json| json.value().to_vec()))
        };
        get().map_err(|error| failure("read it", &error))
    }
}

fn failure(action: &'static str, error: &redb::Error) -> ImageError {
    ImageError::Index {
        action,
        reason: error.to_string(),
    }
}
