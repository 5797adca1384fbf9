//! Numbered migrations, and which versions of the tables this program may use.

use std::path::Path;
use std::time::{Duration, Instant};

use atlas_engine::{Error, ErrorKind, Result};
use rusqlite::{Connection, ErrorCode, TransactionBehavior, params};

use crate::error::explain;

/// In order, each with its number. A migration that was published is never changed.
const MIGRATIONS: &[(u32, &str, &str)] =
    &[(FIRST, "tables", include_str!("migrations/0100_tables.sql"))];

/// The tables with a lower number were never published.
const FIRST: u32 = 100;
const LATEST: u32 = FIRST;

/// How long the switch to WAL is tried again while other processes have the file open.
const SWITCH_WITHIN: Duration = Duration::from_secs(10);
const SWITCH_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Runs the migrations that are missing, in one transaction.
pub(crate) fn prepare(connection: &mut Connection, path: &Path) -> Result<()> {
    refuse_others(connection, path)?;
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
    switch_to_wal(connection)?;
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
    for (number, name, sql) in MIGRATIONS.iter().filter(|(number, ..)| *number > done) {
        transaction.execute_batch(sql)?;
        transaction.execute(
            "INSERT INTO atlas_migrations (version, name, applied_at, atlas_version)
             VALUES (?1, ?2, strftime('%Y-%m-%dT%H:%M:%f000Z', 'now'), ?3)",
            params![number, name, env!("CARGO_PKG_VERSION")],
        )?;
    }
    transaction.commit()
}

/// Answers the mode in any case: a file system that cannot do WAL keeps the default, which is as durable. SQLite does not wait
/// when two processes switch a new file at once, so this does.
fn switch_to_wal(connection: &Connection) -> rusqlite::Result<()> {
    let begun = Instant::now();
    loop {
        let switched = connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()));
        match switched {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && begun.elapsed() < SWITCH_WITHIN =>
            {
                std::thread::sleep(SWITCH_AGAIN_AFTER);
            }
            switched => return switched,
        }
    }
}

/// Refuses a file whose tables are not exactly those of this program.
pub(crate) fn require_current(connection: &Connection, path: &Path) -> Result<()> {
    let found = refuse_others(connection, path)?;
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

/// Refuses tables that are newer than this program, or older than the first release. Answers their version.
fn refuse_others(connection: &Connection, path: &Path) -> Result<u32> {
    let found = version(connection)
        .map_err(|error| explain(error, "read the version of the tables", path))?;
    let use_it = |why: &str| format!("use {}: its tables {why}", path.display());
    if found > LATEST {
        let why = format!("have version {found}, this program knows {LATEST}");
        return Err(Error::new(ErrorKind::StoreNewer, use_it(&why)).fix(
            "Use the Atlas that wrote it or a newer one; or export into a new file by sqlite.path.",
        ));
    }
    if found > 0 && found < FIRST {
        let why = "were made before the first release: export into a new schema or file";
        return Err(Error::new(ErrorKind::StoreDenied, use_it(why))
            .fix("Set sqlite.path to a new file and run `atlas export`."));
    }
    Ok(found)
}

/// Number of the last migration; 0 in a file without tables of Atlas.
fn version(connection: &Connection) -> rusqlite::Result<u32> {
    if !connection.table_exists(None, "atlas_migrations")? {
        return Ok(0);
    }
    connection.query_row(
        "SELECT ifnull(max(version), 0) FROM atlas_migrations",
        [],
        |row| row.get(0),
    )
}
