//! The suite of all stores.
#![allow(clippy::unwrap_used, missing_docs)]

use atlas_store_sqlite::SqliteStore;
use atlas_store_suite::files::Files;

const FILE: &str = "atlas.db";

async fn sqlite() -> Files<SqliteStore> {
    Files::new(FILE, |folder| SqliteStore::new(folder.join(FILE)).unwrap())
}

atlas_store_suite::store_suite!(sqlite);
