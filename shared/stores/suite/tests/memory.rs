//! The twin in memory passes the suite of the real stores, or it would be no twin.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use async_trait::async_trait;
use atlas_engine::memory::{Atomicity, MemoryStore};
use atlas_engine::ports::Store;
use atlas_openehr::id::ObjectId;
use atlas_openehr::time::Instant;
use atlas_store_suite::{Probe, StoredRow};

struct Memory(MemoryStore);

async fn memory() -> Memory {
    Memory(MemoryStore::new(Atomicity::Transactions))
}

#[async_trait]
impl Probe for Memory {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.0.clone())
    }

    async fn another(&self) -> Arc<dyn Store> {
        Arc::new(self.0.clone())
    }

    async fn rows(&self) -> Vec<StoredRow> {
        let stored = self.0.compositions().into_iter();
        stored
            .map(|row| StoredRow {
                id: row.meta.uid.object_id().as_str().to_owned(),
                composition_uid: row.meta.uid.as_str().to_owned(),
                version: row.meta.uid.version(),
                content: row.content,
                checksum: row.checksum.to_string(),
                export_mode: row.format.name().to_owned(),
                time_committed: row.meta.committed,
                deleted_at: None,
            })
            .collect()
    }

    async fn tombstone(&self, _object: &ObjectId, _at: Instant) -> bool {
        false
    }
}

atlas_store_suite::store_suite!(memory);
