//! The suite of all stores.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use async_trait::async_trait;
use atlas_engine::ports::Store;
use atlas_openehr::id::ObjectId;
use atlas_store_sqlite::SqliteStore;
use atlas_store_suite::Probe;
use rusqlite::Connection;

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

    async fn refuse_object(&self, object: &ObjectId) -> bool {
        let connection = Connection::open(self.path()).unwrap();
        let triggers: u32 = connection
            .query_row(
                "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'",
                [],
                |row| row.get(0),
            )
            .unwrap();
        connection
            .execute_batch(&format!(
                "CREATE TRIGGER refuse_{triggers} BEFORE INSERT ON compositions WHEN new.id = '{object}'
                 BEGIN SELECT raise(ABORT, 'not wanted: ' || new.id || new.content); END",
                object = object.as_str()
            ))
            .unwrap();
        true
    }
}

atlas_store_suite::store_suite!(sqlite);
