//! Keeps compositions and control records in one SQLite file.
//!
//! | module | what |
//! |---|---|
//! | [`SqliteStore`] | the [`Store`] port over the rest of the crate |
//! | `worker` | the one thread that owns the connection, so that no call blocks the runtime |
//! | `schema` | numbered migrations (`migrations/*.sql`) and who may use which version |
//! | `commit` | a page and its checkpoint in one transaction |
//! | `records` | control records from and to their columns |
//! | `lock` | named locks between processes, as locked files beside the database |
//! | `error` | SQLite's result codes to the engine's error kinds |
//!
//! The file is in WAL mode with `synchronous = FULL`: what was committed survives a power failure, and
//! readers (DuckDB, a BI tool, `sqlite3`) see whole pages while an export writes. WAL needs a local disk.

mod commit;
mod error;
mod lock;
mod records;
mod schema;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use atlas_engine::Result;
use atlas_engine::model::{
    Commit, Committed, Format, Holding, Known, Origin, QuarantineFilter, Quarantined, Reason,
    Record, Run, SelectionKey, Slice, StoredTemplate, Watermark,
};
use atlas_engine::ports::{Hold, Store};
use atlas_openehr::id::{ObjectId, ObjectVersion, TemplateId};
use atlas_openehr::json::Node;
use atlas_openehr::time::Instant;
use rusqlite::{OptionalExtension, TransactionBehavior, params};

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
    /// `Internal` if the system gives no thread.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        Ok(Self {
            worker: Worker::start(&path)?,
            path,
        })
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    /// Content is kept as the text it is: nothing is refused.
    fn refuses(&self, _content: Node<'_>) -> Option<(Reason, String)> {
        None
    }

    async fn prepare(&self) -> Result<()> {
        self.worker.prepare().await
    }

    async fn hold(&self, name: &str) -> Result<Option<Hold>> {
        lock::try_hold(&self.path, name)
    }

    async fn watermarks(&self, selection: &SelectionKey) -> Result<Vec<Watermark>> {
        let selection = selection.clone();
        self.worker
            .call("read the watermarks", move |connection| {
                connection
                    .prepare_cached(
                        "SELECT template_id, until, late_checked_until FROM atlas_watermarks
                         WHERE selection = ?1 ORDER BY template_id",
                    )?
                    .query_map([&selection.0], |row| {
                        Ok(Watermark {
                            template: template_id(row)?,
                            until: row.get::<_, Time>(1)?.0,
                            late_checked_until: row.get::<_, Time>(2)?.0,
                        })
                    })?
                    .collect()
            })
            .await
    }

    async fn raise_watermarks(
        &self,
        selection: &SelectionKey,
        watermarks: &[Watermark],
    ) -> Result<()> {
        let (selection, watermarks) = (selection.clone(), watermarks.to_vec());
        self.worker
            .call("raise watermarks", move |connection| {
                let transaction =
                    connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                for watermark in &watermarks {
                    transaction
                        .prepare_cached(
                            "INSERT INTO atlas_watermarks AS f (selection, template_id, until, late_checked_until)
                             VALUES (?1, ?2, ?3, ?4)
                             ON CONFLICT (selection, template_id) DO UPDATE SET
                                 until = max(f.until, excluded.until),
                                 late_checked_until = max(f.late_checked_until, excluded.late_checked_until)",
                        )?
                        .execute(params![
                            selection.0,
                            watermark.template.as_str(),
                            Time(watermark.until),
                            Time(watermark.late_checked_until),
                        ])?;
                }
                transaction.commit()
            })
            .await
    }

    async fn forget_watermarks(
        &self,
        selection: &SelectionKey,
        templates: &[TemplateId],
    ) -> Result<()> {
        let (selection, templates) = (selection.clone(), templates.to_vec());
        self.worker
            .call("forget watermarks", move |connection| {
                let transaction =
                    connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                for template in &templates {
                    transaction
                        .prepare_cached(
                            "DELETE FROM atlas_watermarks WHERE selection = ?1 AND template_id = ?2",
                        )?
                        .execute([selection.0.as_str(), template.as_str()])?;
                }
                transaction.commit()
            })
            .await
    }

    async fn keep_format(&self, format: Format) -> Result<()> {
        let prefix = SelectionKey::prefix(format);
        self.worker
            .call(
                "forget the watermarks of other formats",
                move |connection| {
                    let transaction =
                        connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                    for table in ["atlas_watermarks", "atlas_slices"] {
                        let delete = format!("DELETE FROM {table} WHERE instr(selection, ?1) <> 1");
                        transaction.execute(&delete, [&prefix])?;
                    }
                    transaction.commit()
                },
            )
            .await
    }

    async fn add_slices(&self, slices: &[Slice]) -> Result<()> {
        let slices = slices.to_vec();
        self.worker
            .call("add slices", move |connection| {
                let transaction =
                    connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                for slice in &slices {
                    records::insert_slice(&transaction, slice)?;
                }
                transaction.commit()
            })
            .await
    }

    async fn slices(&self, selection: &SelectionKey) -> Result<Vec<Slice>> {
        let selection = selection.clone();
        self.worker
            .call("read the slices", move |connection| {
                connection
                    .prepare_cached(concat!(
                        "SELECT ",
                        records::slice_columns!(),
                        " FROM atlas_slices WHERE selection = ?1
                         ORDER BY template_id, window_from, window_to, id"
                    ))?
                    .query_map([&selection.0], records::slice)?
                    .collect()
            })
            .await
    }

    async fn slice(&self, id: &str) -> Result<Option<Slice>> {
        let id = id.to_owned();
        self.worker
            .call("read a slice", move |connection| {
                records::read_slice(connection, &id)
            })
            .await
    }

    async fn swap_slice(&self, before: &Slice, after: &Slice) -> Result<Option<Slice>> {
        let before = before.clone();
        let after = Slice {
            id: before.id.clone(),
            step: before.step + 1,
            ..after.clone()
        };
        self.worker
            .call("change a slice", move |connection| {
                let transaction =
                    connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let stands = records::read_slice(&transaction, &before.id)?;
                let answer = match stands {
                    Some(slice) if (slice.step, slice.fence) == (before.step, before.fence) => {
                        records::update_slice(&transaction, &after)?;
                        Some(after)
                    }
                    // The first call got through, its answer did not.
                    Some(slice) if slice == after => Some(slice),
                    _ => None,
                };
                transaction.commit()?;
                Ok(answer)
            })
            .await
    }

    async fn remove_slices(&self, ids: &[String]) -> Result<()> {
        let ids = ids.to_vec();
        self.worker
            .call("remove finished slices", move |connection| {
                let transaction =
                    connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                for id in &ids {
                    transaction
                        .prepare_cached(
                            "DELETE FROM atlas_slices WHERE id = ?1 AND state = 'done'",
                        )?
                        .execute([id])?;
                }
                transaction.commit()
            })
            .await
    }

    async fn drop_slices(&self, ids: &[String]) -> Result<()> {
        let ids = ids.to_vec();
        self.worker
            .call("remove the slices of a cancelled run", move |connection| {
                let transaction =
                    connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                for id in &ids {
                    transaction
                        .prepare_cached("DELETE FROM atlas_slices WHERE id = ?1")?
                        .execute([id])?;
                }
                transaction.commit()
            })
            .await
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed> {
        // The thread outlives the caller, who may give up waiting: nothing may be borrowed.
        let slice = commit.slice.clone();
        let batch = Arc::clone(commit.batch);
        let rejected = commit.rejected.to_vec();
        let run = commit.run.to_owned();
        let (filtered, cursor, state) = (commit.filtered, commit.cursor.clone(), commit.state);
        let (lease_until, format, now) = (commit.lease_until, commit.format, commit.now);
        self.worker
            .call("write a page", move |connection| {
                commit::commit(
                    connection,
                    &Commit {
                        slice: &slice,
                        batch: &batch,
                        rejected: &rejected,
                        filtered,
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

    async fn known(&self, objects: &[ObjectId]) -> Result<HashMap<ObjectId, Known>> {
        let objects = objects.to_vec();
        self.worker
            .call("look up versions", move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT max(version) FROM (
                        SELECT version FROM compositions WHERE id = ?1
                        UNION ALL SELECT version FROM atlas_quarantine WHERE id = ?1)",
                )?;
                let mut known = HashMap::with_capacity(objects.len());
                for object_id in objects {
                    let version: Option<u32> =
                        statement.query_row([object_id.as_str()], |row| row.get(0))?;
                    if let Some(version) = version {
                        let version = ObjectVersion {
                            object_id: object_id.clone(),
                            version,
                        };
                        known.insert(object_id, Known { version });
                    }
                }
                Ok(known)
            })
            .await
    }

    async fn quarantined(&self, filter: &QuarantineFilter) -> Result<Vec<Quarantined>> {
        let filter = filter.clone();
        self.worker
            .call("read the quarantine", move |connection| {
                connection
                    .prepare_cached(concat!(
                        "SELECT ",
                        records::quarantine_columns!(),
                        " FROM atlas_quarantine
                         WHERE (?1 IS NULL OR template_id = ?1)
                           AND (?2 IS NULL OR tried < ?2)
                           AND (?3 IS NULL OR id = ?3)
                         ORDER BY tried, id LIMIT ifnull(?4, -1)"
                    ))?
                    .query_map(
                        params![
                            filter.template.as_ref().map(TemplateId::as_str),
                            filter.tried_before.map(Time),
                            filter.object.as_ref().map(ObjectId::as_str),
                            filter.limit,
                        ],
                        records::quarantined,
                    )?
                    .collect()
            })
            .await
    }

    async fn holdings(&self) -> Result<Vec<Holding>> {
        self.worker
            .call("count the compositions", |connection| {
                connection
                    .prepare_cached(
                        "SELECT template_id, count(*), max(time_committed) FROM compositions
                         WHERE deleted_at IS NULL GROUP BY template_id ORDER BY template_id",
                    )?
                    .query_map([], |row| {
                        Ok(Holding {
                            template: template_id(row)?,
                            compositions: row.get(1)?,
                            newest: row.get::<_, Option<Time>>(2)?.map(|time| time.0),
                        })
                    })?
                    .collect()
            })
            .await
    }

    async fn add_run(&self, run: &Run) -> Result<bool> {
        let run = run.clone();
        self.worker
            .call("add the record of a run", move |connection| {
                records::add_run(connection, &run)
            })
            .await
    }

    async fn save_run(&self, run: &Run) -> Result<()> {
        let run = run.clone();
        self.worker
            .call("save the record of a run", move |connection| {
                records::save_run(connection, &run)
            })
            .await
    }

    async fn runs(&self, limit: usize) -> Result<Vec<Run>> {
        self.worker
            .call("read the last runs", move |connection| {
                connection
                    .prepare_cached(concat!(
                        "SELECT ",
                        records::run_columns!(),
                        " FROM atlas_runs ORDER BY started DESC, id DESC LIMIT ?1"
                    ))?
                    .query_map([limit], records::run)?
                    .collect()
            })
            .await
    }

    async fn run(&self, id: &str) -> Result<Option<Run>> {
        let id = id.to_owned();
        self.worker
            .call("read a run", move |connection| {
                connection
                    .prepare_cached(concat!(
                        "SELECT ",
                        records::run_columns!(),
                        " FROM atlas_runs WHERE id = ?1"
                    ))?
                    .query_row([id], records::run)
                    .optional()
            })
            .await
    }

    async fn unfinished_runs(&self, origin: Origin) -> Result<Vec<Run>> {
        self.worker
            .call("read the runs without an end", move |connection| {
                connection
                    .prepare_cached(concat!(
                        "SELECT ",
                        records::run_columns!(),
                        " FROM atlas_runs WHERE ended IS NULL AND origin = ?1 ORDER BY started, id"
                    ))?
                    .query_map([origin.name()], records::run)?
                    .collect()
            })
            .await
    }

    /// All processes of a file are on its machine.
    async fn now(&self) -> Result<Option<Instant>> {
        Ok(None)
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        let prefix = prefix.to_owned();
        self.worker
            .call("read control records", move |connection| {
                connection
                    .prepare_cached(
                        "SELECT name, step, owner, held_until, value FROM atlas_records
                         WHERE instr(name, ?1) = 1 ORDER BY name",
                    )?
                    .query_map([&prefix], records::record)?
                    .collect()
            })
            .await
    }

    async fn swap_record(&self, before: &Record, after: &Record) -> Result<Option<Record>> {
        let before = before.clone();
        let after = Record {
            name: before.name.clone(),
            step: before.step + 1,
            ..after.clone()
        };
        self.worker
            .call("change a control record", move |connection| {
                let transaction =
                    connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let stands = records::read_record(&transaction, &before.name)?;
                let step = stands.as_ref().map_or(0, |record| record.step);
                if step == before.step {
                    records::write_record(&transaction, &after)?;
                    transaction.commit()?;
                    return Ok(Some(after));
                }
                // Perhaps the first call got through, and its answer did not.
                Ok(stands.filter(|record| record == &after))
            })
            .await
    }

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
