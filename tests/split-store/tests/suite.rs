//! The suite of all stores, over the two-phase commit.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use async_trait::async_trait;
use atlas_engine::ports::Store;
use atlas_openehr::id::ObjectId;
use atlas_split_store::{ROWS, SplitStore, split_store};
use atlas_store_suite::Probe;
use rusqlite::Connection;

struct Split {
    folder: tempfile::TempDir,
    store: Arc<SplitStore>,
}

async fn split() -> Split {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(split_store(folder.path()).unwrap());
    Split { folder, store }
}

#[async_trait]
impl Probe for Split {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn another(&self) -> Arc<dyn Store> {
        Arc::new(split_store(self.folder.path()).unwrap())
    }

    async fn refuse_object(&self, object: &ObjectId) -> bool {
        let connection = Connection::open(self.folder.path().join(ROWS)).unwrap();
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

atlas_store_suite::store_suite!(split);
