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

/// Tables, views and indexes of the migrations, which nothing else may be called.
const NAMES: &[&str] = &[
    "atlas_counts",
    "atlas_landed",
    "atlas_quarantine",
    "atlas_quarantine_by_reason",
    "atlas_quarantine_by_template_tried",
    "atlas_quarantine_by_tried",
    "atlas_records",
    "atlas_runs",
    "atlas_runs_by_start",
    "atlas_runs_unfinished",
    "atlas_slices",
    "atlas_slices_by_run",
    "atlas_slices_by_selection",
    "atlas_slices_failed",
    "atlas_slices_read",
    "atlas_slices_read_together",
    "atlas_slices_under_way",
    "atlas_slices_waiting",
    "atlas_templates",
    "atlas_watermarks",
    "atlas_watermarks_by_template",
    "compositions",
    "compositions_by_template_time",
    "watermarks",
];

/// How long the switch to WAL is tried again while other processes have the file open.
const SWITCH_WITHIN: Duration = Duration::from_secs(10);
const SWITCH_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Runs the migrations that are missing, in one transaction.
pub(crate) fn prepare(connection: &mut Connection, path: &Path) -> Result<()> {
    is_prepared(connection, path)?;
    migrate(connection).map_err(|error| {
        explain(
            error,
            "bring the tables of the SQLite file up to date",
            path,
        )
    })?;
    require_current(connection, path)
}

/// Whether all tables of this program are there. Refuses a file that cannot become a copy.
pub(crate) fn is_prepared(connection: &Connection, path: &Path) -> Result<bool> {
    let found = refuse_others(connection, path)?;
    if found == 0 {
        require_free_names(connection, path)?;
    }
    Ok(found == LATEST)
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
    let done = version(&transaction)?.unwrap_or_default();
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
    .fix("Run `atlas export` or `atlas prepare` first: they make the file and its tables, or bring them up to date.")
}

/// Refuses tables that are newer than this program, or older than the first release. Answers their version.
fn refuse_others(connection: &Connection, path: &Path) -> Result<u32> {
    let found = version(connection)
        .map_err(|error| explain(error, "read the version of the tables", path))?
        .ok_or_else(|| is_not_ours("atlas_migrations", path))?;
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

/// Refuses a file where something else has one of the names, before anything in it is changed.
fn require_free_names(connection: &Connection, path: &Path) -> Result<()> {
    let failed = |error| explain(error, "look at the names in the SQLite file", path);
    for name in NAMES {
        let is_taken = connection
            .prepare_cached("SELECT 1 FROM sqlite_schema WHERE name = ?1 AND type <> 'trigger'")
            .and_then(|mut statement| statement.exists([name]))
            .map_err(failed)?;
        // Another process was faster, perhaps between two looks.
        if is_taken && version(connection).map_err(failed)? == Some(0) {
            return Err(is_not_ours(name, path));
        }
    }
    Ok(())
}

fn is_not_ours(name: &str, path: &Path) -> Error {
    let action = format!(
        "use {}: it has a `{name}` already that is not Atlas's",
        path.display()
    );
    Error::new(ErrorKind::Usage, action)
        .fix("Set sqlite.path to a file of its own; it is made if it is missing.")
}

/// Number of the last migration; 0 in a file without tables of Atlas, `None` if their table is somebody else's.
fn version(connection: &Connection) -> rusqlite::Result<Option<u32>> {
    let (tables, columns): (u32, u32) = connection.query_row(
        "SELECT (SELECT count(*) FROM sqlite_schema WHERE name = 'atlas_migrations' AND type IN ('table', 'view')),
                (SELECT count(*) FROM pragma_table_info('atlas_migrations')
                 WHERE (name, type) IN (VALUES ('version', 'INTEGER'), ('name', 'TEXT'), ('atlas_version', 'TEXT')))",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    match (tables, columns) {
        (0, _) => Ok(Some(0)),
        (_, 3) => connection
            .query_row(
                "SELECT ifnull(max(version), 0) FROM atlas_migrations",
                [],
                |row| row.get(0),
            )
            .map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_migrations_is_known() {
        let mut made: Vec<&str> = Vec::new();
        for (.., sql) in MIGRATIONS {
            for line in sql.lines().filter_map(|line| line.strip_prefix("CREATE ")) {
                let mut words = line.split([' ', '(']);
                let is_kind = |word: &&str| !matches!(*word, "UNIQUE" | "TABLE" | "VIEW" | "INDEX");
                made.extend(words.find(is_kind));
            }
        }
        made.sort_unstable();
        assert_eq!(made, NAMES);
    }
}
