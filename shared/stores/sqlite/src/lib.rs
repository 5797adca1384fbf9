//! Keeps compositions and control records in one SQLite file; or one of both, where the other lies elsewhere.
//!
//! | module | what |
//! |---|---|
//! | [`SqliteStore`] | the [`Store`] with its templates, over the rest of the crate |
//! | `rows` | the copy: [`Rows`] and its [`Index`] |
//! | `ledger` | the control records: [`Ledger`] |
//! | `commit` | a page and its checkpoint in one transaction |
//! | `landed` | a page whose checkpoint lies elsewhere |
//! | `land` | rows into their table, and which of them SQLite refuses |
//! | `quarantine` | the entries of the quarantine |
//! | `records` | control records from and to their columns |
//! | `worker` | the one thread that owns the connection, so that no call blocks the runtime |
//! | `schema` | numbered migrations (`migrations/*.sql`) and who may use which version |
//! | [`Look`] | whether the file is there and may be written |
//! | [`check_path`] | what SQLite would take for something else than a file |
//! | `lock` | named locks between processes, as locked files beside the database |
//! | `error` | SQLite's result codes to the engine's error kinds |
//!
//! The file is in WAL mode with `synchronous = FULL`: what was committed survives a power failure, and
//! readers (DuckDB, a BI tool, `sqlite3`) see whole pages while an export writes. WAL needs a local disk.

mod commit;
mod error;
mod land;
mod landed;
mod ledger;
mod lock;
mod path;
mod quarantine;
mod records;
mod rows;
mod schema;
mod slices;
#[cfg(test)]
mod tests;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use atlas_engine::model::{Batch, Commit, Committed, StoredTemplate};
use atlas_engine::ports::{Index, Ledger, Rows, Store, Templates};
use atlas_engine::{Error, ErrorKind, Result};
use atlas_openehr::id::TemplateId;
use rusqlite::{OptionalExtension, params};

pub use crate::path::{UnusablePath, check_path};
use crate::records::{Time, template_id};
use crate::worker::Worker;

/// A store in one SQLite file, with its `-wal` and `-shm` beside it while it is open.
pub struct SqliteStore {
    worker: Worker,
    path: PathBuf,
}

impl SqliteStore {
    /// A store in the file at `path`. Touches nothing yet: [`Store::prepare`] creates the file, every other method
    /// refuses to.
    ///
    /// # Errors
    /// `Usage` if SQLite takes the path for something else than a file, `Internal` if the system gives no thread.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        check_path(&path).map_err(|rule| {
            Error::new(ErrorKind::Usage, "use sqlite.path as it is")
                .because(rule)
                .fix("Set sqlite.path to the path of a file.")
        })?;
        Ok(Self {
            worker: Worker::start(&path)?,
            path,
        })
    }
}

/// What a look at the file shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Whether the file and the tables of this program are there.
    pub is_prepared: bool,
    /// Whether this user may write the file, or make it, and the log beside it.
    pub may_write: bool,
}

impl SqliteStore {
    /// Looks at the file and its folder. Nothing is changed.
    ///
    /// # Errors
    /// A file that cannot be opened, or that is not a copy and cannot become one.
    pub async fn look(&self) -> Result<Look> {
        self.worker.look().await
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn rows(&self) -> &dyn Rows {
        self
    }

    fn index(&self) -> &dyn Index {
        self
    }

    fn ledger(&self) -> &dyn Ledger {
        self
    }

    fn templates(&self) -> &dyn Templates {
        self
    }

    async fn prepare(&self) -> Result<()> {
        self.worker.prepare().await
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed> {
        refuse_side_rows(commit.batch)?;
        // The thread outlives the caller, who may give up waiting: nothing may be borrowed.
        let slice = commit.slice.clone();
        let batch = Arc::clone(commit.batch);
        let rejected = commit.rejected.to_vec();
        let run = commit.run.to_owned();
        let filtered = commit.filtered.clone();
        let (cursor, state) = (commit.cursor.clone(), commit.state);
        let (lease_until, format, now) = (commit.lease_until, commit.format, commit.now);
        self.worker
            .call("write a page", move |connection| {
                commit::commit(
                    connection,
                    &Commit {
                        slice: &slice,
                        batch: &batch,
                        rejected: &rejected,
                        filtered: &filtered,
                        cursor,
                        state,
                        lease_until,
                        run: &run,
                        format,
                        now,
                    },
                )
            })
            .await
    }
}

/// A page with side rows cannot be kept whole, so it is not kept at all.
fn refuse_side_rows(batch: &Batch) -> Result<()> {
    if batch.side_rows.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Usage,
        "write a page: typed tables are not kept by this store yet",
    )
    .fix("Set enabled = false in the section [tables], or export into another store."))
}

#[async_trait]
impl Templates for SqliteStore {
    async fn template(&self, template: &TemplateId) -> Result<Option<StoredTemplate>> {
        let template = template.clone();
        self.worker
            .call("read a web template", move |connection| {
                connection
                    .prepare_cached(
                        "SELECT template_id, digest, web_template, names, fetched
                         FROM atlas_templates WHERE template_id = ?1",
                    )?
                    .query_row([template.as_str()], |row| {
                        Ok(StoredTemplate {
                            template: template_id(row)?,
                            digest: row.get(1)?,
                            web_template: row.get(2)?,
                            names: row.get(3)?,
                            fetched: row.get::<_, Time>(4)?.0,
                        })
                    })
                    .optional()
            })
            .await
    }

    async fn save_template(&self, template: &StoredTemplate) -> Result<()> {
        let template = template.clone();
        self.worker
            .call("save a web template", move |connection| {
                connection
                    .prepare_cached(
                        "INSERT OR REPLACE INTO atlas_templates
                             (template_id, digest, web_template, names, fetched)
                         VALUES (?1, ?2, ?3, ?4, ?5)",
                    )?
                    .execute(params![
                        template.template.as_str(),
                        template.digest,
                        template.web_template,
                        template.names,
                        Time(template.fetched),
                    ])?;
                Ok(())
            })
            .await
    }
}
