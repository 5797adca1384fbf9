//! A store whose rows lie in an SQLite file, in a folder of its own.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use atlas_engine::ports::Store;
use atlas_openehr::id::ObjectId;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::Probe;

/// A [`Probe`] over a folder.
pub struct Files<S> {
    folder: TempDir,
    rows: &'static str,
    open: fn(&Path) -> S,
    store: Arc<S>,
}

impl<S> Files<S> {
    /// An empty folder. `open` answers a handle to the store in it, `rows` is the name of the file that the rows lie in.
    pub fn new(rows: &'static str, open: fn(&Path) -> S) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(open(folder.path()));
        Self {
            folder,
            rows,
            open,
            store,
        }
    }
}

#[async_trait]
impl<S: Store + 'static> Probe for Files<S> {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn another(&self) -> Arc<dyn Store> {
        Arc::new((self.open)(self.folder.path()))
    }

    async fn refuse_object(&self, object: &ObjectId) -> bool {
        let object = object.as_str();
        let connection = Connection::open(self.folder.path().join(self.rows)).unwrap();
        connection
            .execute_batch(&format!(
                "CREATE TRIGGER IF NOT EXISTS \"refuse {object}\" BEFORE INSERT ON compositions WHEN new.id = '{object}'
                 BEGIN SELECT raise(ABORT, 'not wanted: ' || new.id || new.content); END"
            ))
            .unwrap();
        true
    }
}
