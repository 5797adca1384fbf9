//! The suite of all stores.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub
)]

mod common;

use std::sync::Arc;

use async_trait::async_trait;
use atlas_engine::ports::Store;
use atlas_openehr::id::ObjectId;
use atlas_openehr::time::Instant;
use atlas_store_postgres::PostgresStore;
use atlas_store_suite::{Probe, StoredRow};

use common::Database;

struct Server {
    database: Database,
    store: Arc<PostgresStore>,
}

async fn postgres() -> Server {
    let database = Database::new().await;
    let store = database.store();
    Server { database, store }
}

#[async_trait]
impl Probe for Server {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn another(&self) -> Arc<dyn Store> {
        self.database.store()
    }

    async fn rows(&self) -> Vec<StoredRow> {
        let rows = self
            .database
            .client()
            .await
            .query(
                "SELECT id, composition_uid, version, content::text, checksum, export_mode,
                        (extract(epoch FROM time_committed) * 1000000)::bigint AS committed,
                        (extract(epoch FROM deleted_at) * 1000000)::bigint AS deleted
                 FROM compositions ORDER BY id",
                &[],
            )
            .await
            .unwrap();
        rows.iter()
            .map(|row| StoredRow {
                id: row.get(0),
                composition_uid: row.get(1),
                version: row.get::<_, i64>(2).try_into().unwrap(),
                content: row.get(3),
                checksum: row.get(4),
                export_mode: row.get(5),
                time_committed: Instant::from_micros(row.get(6)).unwrap(),
                deleted_at: row
                    .get::<_, Option<i64>>(7)
                    .map(|micros| Instant::from_micros(micros).unwrap()),
            })
            .collect()
    }

    async fn tombstone(&self, object: &ObjectId, at: Instant) -> bool {
        let micros = at.as_micros();
        let client = self.database.client().await;
        let changed = client
            .execute(
                "UPDATE compositions SET deleted_at = 'epoch'::timestamptz + $2 * interval '1 microsecond'
                 WHERE id = $1",
                &[&object.as_str(), &(micros as f64)],
            )
            .await
            .unwrap();
        assert_eq!(changed, 1);
        true
    }
}

atlas_store_suite::store_suite!(postgres);
