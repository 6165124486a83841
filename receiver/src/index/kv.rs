//! The key-value library below the index, and nothing above it knows which one it is.

use std::{os::unix::fs::DirBuilderExt, path::Path};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use thiserror::Error;

use super::Table;
use crate::limits;

/// What the library said.
#[derive(Debug, Clone, Error)]
pub enum KvError {
    /// It failed.
    #[error("index: {0}")]
    Library(std::sync::Arc<fjall::Error>),
    /// An entry does not open with its tenant's key.
    #[error("index: an entry does not open with its tenant's key; `tidelock store rebuild` makes it anew")]
    Cipher,
}

impl From<fjall::Error> for KvError {
    fn from(error: fjall::Error) -> Self {
        Self::Library(std::sync::Arc::new(error))
    }
}

/// Ordered keys and values on disk.
pub(super) struct Kv {
    db: Database,
    chunks: Keyspace,
    catalogue: Keyspace,
}

/// A key and its value.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

impl Kv {
    pub(super) fn open(dir: &Path, cache_bytes: u64) -> Result<Self, KvError> {
        // Names of files must not be readable by others, either.
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(fjall::Error::Io)?;
        let db = Database::builder(dir).cache_size(cache_bytes).worker_threads(1).open()?;
        let options =
            || KeyspaceCreateOptions::default().max_memtable_size(limits::INDEX_WRITE_BUFFER_BYTES / 2);
        let chunks = db.keyspace("chunks", options)?;
        let catalogue = db.keyspace("catalogue", options)?;
        Ok(Self { db, chunks, catalogue })
    }

    fn table(&self, table: Table) -> &Keyspace {
        match table {
            Table::Chunks => &self.chunks,
            Table::Catalogue => &self.catalogue,
        }
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.table(table).get(key)?.map(|value| value.to_vec()))
    }

    /// At most `limit` pairs of a table with `first <= key < end`; the last ones if `newest`. In order of the walk.
    pub(super) fn range(
        &self,
        table: Table,
        first: &[u8],
        end: &[u8],
        newest: bool,
        limit: usize,
    ) -> Result<Vec<Pair>, KvError> {
        let range = self.table(table).range(first..end);
        let pair = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner()?;
            Ok((key.to_vec(), value.to_vec()))
        };
        if newest {
            range.rev().take(limit).map(pair).collect()
        } else {
            range.take(limit).map(pair).collect()
        }
    }

    /// Writes all or nothing; not necessarily durable.
    pub(super) fn write<'a>(
        &self,
        pairs: impl Iterator<Item = (Table, &'a Vec<u8>, &'a Option<Vec<u8>>)>,
    ) -> Result<(), KvError> {
        let mut batch = self.db.batch();
        for (table, key, value) in pairs {
            match value {
                Some(value) => batch.insert(self.table(table), key.as_slice(), value.as_slice()),
                None => batch.remove(self.table(table), key.as_slice()),
            }
        }
        Ok(batch.commit()?)
    }

    /// Makes everything written durable.
    pub(super) fn persist(&self) -> Result<(), KvError> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }
}
