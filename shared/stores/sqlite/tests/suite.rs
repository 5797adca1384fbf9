//! The suite of all stores.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use async_trait::async_trait;
use atlas_engine::ports::Store;
use atlas_openehr::id::ObjectId;
use atlas_openehr::time::Instant;
use atlas_store_sqlite::SqliteStore;
use atlas_store_suite::{Probe, StoredRow};
use rusqlite::{Connection, params};

struct Sqlite {
    folder: tempfile::TempDir,
    store: Arc<SqliteStore>,
}

impl Sqlite {
    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("atlas.db")
    }
}

async fn sqlite() -> Sqlite {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::new(folder.path().join("atlas.db")).unwrap());
    Sqlite { folder, store }
}

#[async_trait]
impl Probe for Sqlite {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn another(&self) -> Arc<dyn Store> {
        Arc::new(SqliteStore::new(self.path()).unwrap())
    }

    async fn rows(&self) -> Vec<StoredRow> {
        let connection = Connection::open(self.path()).unwrap();
        let mut statement = connection
            .prepare(
                "SELECT id, composition_uid, version, content, checksum, export_mode, time_committed, deleted_at
                 FROM compositions ORDER BY id",
            )
            .unwrap();
        let time = |text: String| Instant::parse(&text).unwrap();
        let rows = statement.query_map([], |row| {
            Ok(StoredRow {
                id: row.get(0)?,
                composition_uid: row.get(1)?,
                version: row.get(2)?,
                content: row.get(3)?,
                checksum: row.get(4)?,
                export_mode: row.get(5)?,
                time_committed: time(row.get(6)?),
                deleted_at: row.get::<_, Option<String>>(7)?.map(time),
            })
        });
        rows.unwrap().map(Result::unwrap).collect()
    }

    async fn tombstone(&self, object: &ObjectId, at: Instant) -> bool {
        let connection = Connection::open(self.path()).unwrap();
        let changed = connection
            .execute(
                "UPDATE compositions SET deleted_at = ?2 WHERE id = ?1",
                params![object.as_str(), at.to_string()],
            )
            .unwrap();
        assert_eq!(changed, 1);
        true
    }
}

atlas_store_suite::store_suite!(sqlite);
