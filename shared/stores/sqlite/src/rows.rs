//! The copy.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use atlas_engine::Result;
use atlas_engine::model::{
    DeleteReason, Deleted, Format, Known, LandAnswer, LandedPage, Landing, Meta, Reason, RowKey,
    Scan, Slice, StoredRow,
};
use atlas_engine::ports::{Index, Rows};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use atlas_openehr::time::Instant;
use rusqlite::{Connection, OptionalExtension, Row, ToSql};

use crate::land::known_columns;
use crate::records::{self, Time};
use crate::{SqliteStore, land, landed, refuse_side_rows};

/// Up to so many rows in a window, they are found by it and sorted; otherwise rows are read in their order and looked at.
const FEW: usize = 5000;

/// The rows of a template in a window, tombstones included, from an index alone.
macro_rules! in_window {
    () => {
        "(SELECT row_id FROM compositions
          WHERE template_id = :template AND deleted_at IS NULL AND time_committed >= :begin AND time_committed < :end
          UNION ALL
          SELECT row_id FROM compositions
          WHERE template_id = :template AND deleted_at IS NOT NULL AND time_committed >= :begin AND time_committed < :end)"
    };
}

#[async_trait]
impl Index for SqliteStore {
    async fn known(&self, keys: &[RowKey]) -> Result<HashMap<ObjectId, Known>> {
        let objects: Vec<ObjectId> = keys.iter().map(|key| key.object.clone()).collect();
        self.worker
            .call("look up versions", move |connection| {
                let mut statement = connection.prepare_cached(concat!(
                    "SELECT ",
                    known_columns!(),
                    " FROM compositions WHERE id = ?1"
                ))?;
                let mut known = HashMap::with_capacity(objects.len());
                for object in objects {
                    let held = statement
                        .query_row([object.as_str()], land::known)
                        .optional()?;
                    if let Some(held) = held {
                        known.insert(object, held);
                    }
                }
                Ok(known)
            })
            .await
    }
}

#[async_trait]
impl Rows for SqliteStore {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    async fn prepare(&self) -> Result<()> {
        self.worker.prepare().await
    }

    /// Content is kept as the text it is: nothing is refused.
    fn refuses(&self, _content: &str) -> Option<(Reason, String)> {
        None
    }

    async fn land(&self, landing: &Landing<'_>) -> Result<LandAnswer> {
        refuse_side_rows(landing.batch)?;
        // The thread outlives the caller, who may give up waiting: nothing may be borrowed.
        let slice = landing.slice.clone();
        let cursor = landing.cursor.cloned();
        let batch = Arc::clone(landing.batch);
        let run = landing.run.to_owned();
        let (page, beside) = (landing.page, landing.beside.clone());
        let (format, now) = (landing.format, landing.now);
        self.worker
            .call("write a page", move |connection| {
                landed::land(
                    connection,
                    &Landing {
                        slice: &slice,
                        page,
                        cursor: cursor.as_ref(),
                        batch: &batch,
                        beside,
                        run: &run,
                        format,
                        now,
                    },
                )
            })
            .await
    }

    async fn landed(&self, slice: &Slice) -> Result<Option<LandedPage>> {
        let slice = slice.clone();
        self.worker
            .call("read the last page of a slice", move |connection| {
                landed::landed(connection, &slice)
            })
            .await
    }

    async fn scan(&self, scan: &Scan) -> Result<Vec<StoredRow>> {
        let asked = scan.clone();
        self.worker
            .call("read rows back", move |connection| {
                self::scan(connection, &asked)
            })
            .await
    }

    async fn newest(&self, templates: &[TemplateId]) -> Result<HashMap<TemplateId, Instant>> {
        let templates = templates.to_vec();
        self.worker
            .call("look up the newest compositions", move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT max(time_committed) FROM compositions WHERE template_id = ?1 AND deleted_at IS NULL",
                )?;
                let mut newest = HashMap::new();
                for template in templates {
                    let time: Option<Time> =
                        statement.query_row([template.as_str()], |row| row.get(0))?;
                    if let Some(time) = time {
                        newest.insert(template, time.0);
                    }
                }
                Ok(newest)
            })
            .await
    }

    /// Reads the whole table: see the migration for why there is no index by EHR.
    async fn erase(&self, ehr: &EhrId) -> Result<u64> {
        let ehr = ehr.clone();
        self.worker
            .call("erase an EHR", move |connection| {
                connection
                    .prepare_cached("DELETE FROM compositions WHERE ehr_id = ?1")?
                    .execute([ehr.as_str()])
                    .map(|rows| rows as u64)
            })
            .await
    }
}

fn scan(connection: &Connection, scan: &Scan) -> rusqlite::Result<Vec<StoredRow>> {
    let template = scan.template.as_ref().map(TemplateId::as_str);
    let after = scan.after.as_ref().map(ObjectId::as_str);
    let window = scan
        .window
        .map(|window| (Time(window.from), Time(window.to)));
    let mut from = "compositions";
    let mut conditions = vec!["true"];
    let mut values: Vec<(&str, &dyn ToSql)> = vec![(":limit", &scan.limit)];
    if let Some(template) = &template {
        // By its sign the column serves no index: one over templates would have to be sorted by id for each page.
        conditions.push("+template_id = :template");
        values.push((":template", template));
    }
    if let Some((begin, end)) = &window {
        conditions.push("time_committed >= :begin AND time_committed < :end");
        values.push((":begin", begin));
        values.push((":end", end));
    }
    if let Some(after) = &after {
        conditions.push("id > :after");
        values.push((":after", after));
    }
    if let (Some(template), Some((begin, end))) = (template, &window)
        && has_few(connection, template, begin, end)?
    {
        from = concat!(in_window!(), " CROSS JOIN compositions USING (row_id)");
    }
    let sql = format!(
        "SELECT composition_uid, ehr_id, template_id, time_committed, change_type, export_mode, checksum, asked, deleted_at,
             deleted_reason, run_id, content
         FROM {from} WHERE {} ORDER BY id LIMIT :limit",
        conditions.join(" AND ")
    );
    connection
        .prepare_cached(&sql)?
        .query_map(values.as_slice(), stored_row)?
        .collect()
}

fn has_few(
    connection: &Connection,
    template: &str,
    begin: &Time,
    end: &Time,
) -> rusqlite::Result<bool> {
    let counted: usize = connection
        .prepare_cached(concat!(
            "SELECT count(*) FROM (SELECT 1 FROM ",
            in_window!(),
            " LIMIT :few)"
        ))?
        .query_row(
            rusqlite::named_params! {":template": template, ":begin": begin, ":end": end, ":few": FEW},
            |row| row.get(0),
        )?;
    Ok(counted < FEW)
}

fn stored_row(row: &Row<'_>) -> rusqlite::Result<StoredRow> {
    let deleted = match records::time_or_null(row, "deleted_at")? {
        Some(at) => Some(Deleted {
            at,
            why: records::known(row, "deleted_reason", DeleteReason::from_name)?,
        }),
        None => None,
    };
    Ok(StoredRow {
        meta: Meta {
            uid: records::known(row, "composition_uid", |text| VersionUid::parse(text).ok())?,
            ehr: records::ehr_id(row)?,
            template: records::template_id(row)?,
            committed: records::time(row, "time_committed")?,
            position: None,
            change_type: row.get("change_type")?,
        },
        content: row.get("content")?,
        checksum: land::checksum(row)?,
        format: records::known(row, "export_mode", Format::from_name)?,
        asked: records::time(row, "asked")?,
        deleted,
        run: row.get("run_id")?,
    })
}
