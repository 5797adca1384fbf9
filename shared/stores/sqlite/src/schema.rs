//! Numbered migrations, and which versions of the tables this program may use.

use std::path::Path;

use atlas_engine::{Error, ErrorKind, Result};
use rusqlite::{Connection, TransactionBehavior, params};

use crate::error::explain;

/// In order; the first is number 1. A migration that was published is never changed.
const MIGRATIONS: &[(&str, &str)] = &[
    ("tables", include_str!("migrations/0001_tables.sql")),
    ("suite", include_str!("migrations/0002_suite.sql")),
];

const LATEST: usize = MIGRATIONS.len();

/// Runs the migrations that are missing, in one transaction.
pub(crate) fn prepare(connection: &mut Connection, path: &Path) -> Result<()> {
    refuse_newer(connection, path)?;
    migrate(connection).map_err(|error| {
        explain(
            error,
            "bring the tables of the SQLite file up to date",
            path,
        )
    })?;
    require_current(connection, path)
}

fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    // Answers the mode: a file system that cannot do WAL keeps the default, which is as durable.
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS atlas_migrations (
            -- What has been done to these tables.
            version       INTEGER NOT NULL PRIMARY KEY, -- number of the migration
            name          TEXT    NOT NULL, -- its name
            applied_at    TEXT    NOT NULL, -- when it was run
            atlas_version TEXT    NOT NULL  -- program that ran it
        ) STRICT",
    )?;
    let done = version(&transaction)?;
    for (number, (name, sql)) in (1..).zip(MIGRATIONS).skip(done) {
        transaction.execute_batch(sql)?;
        transaction.execute(
            "INSERT INTO atlas_migrations (version, name, applied_at, atlas_version)
             VALUES (?1, ?2, strftime('%Y-%m-%dT%H:%M:%f000Z', 'now'), ?3)",
            params![number, name, env!("CARGO_PKG_VERSION")],
        )?;
    }
    transaction.commit()
}

/// Refuses a file whose tables are not exactly those of this program.
pub(crate) fn require_current(connection: &Connection, path: &Path) -> Result<()> {
    refuse_newer(connection, path)?;
    let found = read_version(connection, path)?;
    if found < LATEST {
        return Err(missing(path));
    }
    Ok(())
}

/// What is said about a file that is not there, or not ready.
pub(crate) fn missing(path: &Path) -> Error {
    Error::new(
        ErrorKind::Usage,
        format!(
            "find a copy in {}: it has not been prepared by this version of Atlas",
            path.display()
        ),
    )
    .fix("Run `atlas export` first: it creates the file and its tables, or brings them up to date.")
}

fn refuse_newer(connection: &Connection, path: &Path) -> Result<()> {
    let found = read_version(connection, path)?;
    if found > LATEST {
        return Err(Error::new(
            ErrorKind::StoreNewer,
            format!(
                "use {}: its tables have version {found}, this program knows {LATEST}",
                path.display()
            ),
        )
        .fix(
            "Use the Atlas that wrote it or a newer one; or export into a new file by sqlite.path.",
        ));
    }
    Ok(())
}

fn read_version(connection: &Connection, path: &Path) -> Result<usize> {
    version(connection).map_err(|error| explain(error, "read the version of the tables", path))
}

/// Number of the last migration; 0 in a file without tables of Atlas.
fn version(connection: &Connection) -> rusqlite::Result<usize> {
    if !connection.table_exists(None, "atlas_migrations")? {
        return Ok(0);
    }
    connection.query_row(
        "SELECT ifnull(max(version), 0) FROM atlas_migrations",
        [],
        |row| row.get(0),
    )
}
