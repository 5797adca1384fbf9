//! The third store: rows in one SQLite file, ledger and templates in another, joined by the engine's two-phase commit. It shows that
//! a store is added without a change outside its crate and the wiring, and it can be killed between the two phases.

use std::path::Path;
use std::sync::Arc;

use atlas_engine::Result;
use atlas_engine::two_phase::TwoPhase;
use atlas_store_sqlite::SqliteStore;

/// The file of the rows, in the folder of a split store.
pub const ROWS: &str = "rows.db";
/// The file of ledger and templates.
pub const LEDGER: &str = "ledger.db";

/// Rows in one file, ledger and templates in another.
pub type SplitStore = TwoPhase<SqliteStore, SqliteStore>;

/// The store in a folder that exists. Touches nothing yet.
///
/// # Errors
/// `Internal` if the system gives no thread.
pub fn split_store(folder: &Path) -> Result<SplitStore> {
    let rows = SqliteStore::new(folder.join(ROWS))?;
    let ledger = SqliteStore::new(folder.join(LEDGER))?;
    Ok(TwoPhase::new(Arc::new(rows), Arc::new(ledger)))
}
