//! Control records from and to their columns.

use std::fmt;

use atlas_engine::model::{
    Counts, Cursor, Member, Meta, Mode, Origin, Outcome, Quarantined, Reason, Record, Request, Run,
    SelectionKey, Slice, SliceKind, SliceState, TemplateCounts, Window,
};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use atlas_openehr::time::Instant;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, Type, ValueRef};
use rusqlite::{
    Connection, OptionalExtension, Result, Row, ToSql, Transaction, TransactionBehavior, params,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The columns that [`slice()`] reads.
macro_rules! slice_columns {
    () => {
        "id, run_id, selection, template_id, members, kind, window_from, window_to, planned, expected, state, step, page, fence, owner, \
         lease_until, part, sent_part, enqueued, moved, next_page, cursor_committed, cursor_object, cursor_position, count_read, count_written, \
         count_inserted, count_unchanged, count_filtered, count_quarantined, count_deleted, failure"
    };
}
/// The columns that [`quarantined`] reads.
macro_rules! quarantine_columns {
    () => {
        "composition_uid, ehr_id, template_id, time_committed, change_type, reason, detail, run_id, since, tried, tries, \
         tried_by"
    };
}
/// The columns that [`run`] reads.
macro_rules! run_columns {
    () => {
        "id, step, selection, mode, started, ended, cut, source_clock, planned, outcome, origin, request, failure, count_read, \
         count_written, count_inserted, count_unchanged, count_filtered, count_quarantined, count_deleted"
    };
}
pub(crate) use {quarantine_columns, run_columns, slice_columns};

/// A transaction that writes: it waits here for others that do, and nowhere else.
pub(crate) fn begin(connection: &mut Connection) -> Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}

/// A trigger can leave a row out without an error.
pub(crate) fn one_row(changed: usize) -> Result<()> {
    if changed == 1 {
        Ok(())
    } else {
        Err(rusqlite::Error::StatementChangedRows(changed))
    }
}

/// An instant as the text that sorts.
pub(crate) struct Time(pub(crate) Instant);

impl ToSql for Time {
    fn to_sql(&self) -> Result<ToSqlOutput<'_>> {
        Ok(self.0.to_string().into())
    }
}

impl FromSql for Time {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Instant::parse(value.as_str()?)
            .map(Self)
            .map_err(FromSqlError::other)
    }
}

/// A text that no Atlas writes there. Does not repeat it.
#[derive(Debug)]
struct Unknown(&'static str);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the column {} holds a text that this program does not know",
            self.0
        )
    }
}

impl std::error::Error for Unknown {}

/// A text with a meaning: `read` answers nothing if it does not know it.
pub(crate) fn known<T>(
    row: &Row<'_>,
    column: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    read(text).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(Unknown(column)))
    })
}

pub(crate) fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

pub(crate) fn from_json<T: DeserializeOwned>(row: &Row<'_>, column: &'static str) -> Result<T> {
    known(row, column, |text| serde_json::from_str(text).ok())
}

fn text<T>(row: &Row<'_>, column: &'static str, new: impl Fn(&str) -> T) -> Result<T> {
    Ok(new(row.get_ref(column)?.as_str()?))
}

pub(crate) fn time(row: &Row<'_>, column: &'static str) -> Result<Instant> {
    row.get::<_, Time>(column).map(|time| time.0)
}

pub(crate) fn time_or_null(row: &Row<'_>, column: &'static str) -> Result<Option<Instant>> {
    Ok(row.get::<_, Option<Time>>(column)?.map(|time| time.0))
}

pub(crate) fn template_id(row: &Row<'_>) -> Result<TemplateId> {
    text(row, "template_id", TemplateId::new)
}

pub(crate) fn ehr_id(row: &Row<'_>) -> Result<EhrId> {
    text(row, "ehr_id", EhrId::new)
}

pub(crate) fn counts(row: &Row<'_>) -> Result<Counts> {
    Ok(Counts {
        read: row.get("count_read")?,
        written: row.get("count_written")?,
        inserted: row.get("count_inserted")?,
        unchanged: row.get("count_unchanged")?,
        filtered: row.get("count_filtered")?,
        quarantined: row.get("count_quarantined")?,
        deleted: row.get("count_deleted")?,
    })
}

/// The cursor of a row that has one.
pub(crate) fn cursor(row: &Row<'_>) -> Result<Option<Cursor>> {
    let Some(committed) = time_or_null(row, "cursor_committed")? else {
        return Ok(None);
    };
    Ok(Some(Cursor {
        committed,
        object: text(row, "cursor_object", ObjectId::new)?,
        position: row.get("cursor_position")?,
    }))
}

/// The members of a slice; null = it has one template.
fn members(row: &Row<'_>) -> Result<Vec<Member>> {
    match row.get_ref("members")? {
        ValueRef::Null => Ok(Vec::new()),
        _ => from_json(row, "members"),
    }
}

fn members_json(slice: &Slice) -> Result<Option<String>> {
    slice.is_shared().then(|| json(&slice.members)).transpose()
}

/// The counts of the slices that meet a condition, in a line for each of their templates.
fn slice_lines(condition: &str) -> String {
    format!(
        "SELECT template_id, count_read, count_written, count_inserted, count_unchanged, count_filtered, count_quarantined,
             count_deleted
         FROM atlas_slices WHERE members IS NULL AND {condition}
         UNION ALL
         SELECT m.value ->> 'template', m.value ->> 'read', m.value ->> 'written', m.value ->> 'inserted',
             m.value ->> 'unchanged', m.value ->> 'filtered', m.value ->> 'quarantined', m.value ->> 'deleted'
         FROM (SELECT members FROM atlas_slices WHERE members IS NOT NULL AND {condition}) AS s, json_each(s.members) AS m"
    )
}

pub(crate) fn slice(row: &Row<'_>) -> Result<Slice> {
    Ok(Slice {
        id: row.get("id")?,
        run: row.get("run_id")?,
        selection: SelectionKey(row.get("selection")?),
        template: template_id(row)?,
        members: members(row)?,
        kind: known(row, "kind", SliceKind::from_name)?,
        window: Window {
            from: time(row, "window_from")?,
            to: time(row, "window_to")?,
        },
        planned: time(row, "planned")?,
        expected: row.get("expected")?,
        state: known(row, "state", SliceState::from_name)?,
        step: row.get("step")?,
        page: row.get("page")?,
        fence: row.get("fence")?,
        owner: row.get("owner")?,
        lease_until: time_or_null(row, "lease_until")?,
        part: row.get("part")?,
        sent_part: row.get("sent_part")?,
        enqueued: time_or_null(row, "enqueued")?,
        moved: time_or_null(row, "moved")?,
        next_page: row.get("next_page")?,
        cursor: cursor(row)?,
        counts: counts(row)?,
        failure: row.get("failure")?,
    })
}

pub(crate) fn read_slice(connection: &Connection, id: &str) -> Result<Option<Slice>> {
    connection
        .prepare_cached(concat!(
            "SELECT ",
            slice_columns!(),
            " FROM atlas_slices WHERE id = ?1"
        ))?
        .query_row([id], slice)
        .optional()
}

/// Inserts a slice, unless its id is there.
pub(crate) fn insert_slice(connection: &Connection, slice: &Slice) -> Result<()> {
    write_slice(
        connection,
        concat!(
            "INSERT INTO atlas_slices (",
            slice_columns!(),
            ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29, ?30, ?31, ?32)
             ON CONFLICT (id) DO NOTHING"
        ),
        slice,)
    .map(|_| ())
}

/// Replaces all columns of the slice with this id.
pub(crate) fn update_slice(connection: &Connection, slice: &Slice) -> Result<()> {
    write_slice(
        connection,
        concat!(
            "UPDATE atlas_slices SET (",
            slice_columns!(),
            ") = (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29, ?30, ?31, ?32)
             WHERE id = ?1"
        ),
        slice,)
    .and_then(one_row)
}

/// Answers how many slices were written.
fn write_slice(connection: &Connection, sql: &'static str, slice: &Slice) -> Result<usize> {
    let cursor = slice.cursor.as_ref();
    connection.prepare_cached(sql)?.execute(params![
        slice.id,
        slice.run,
        slice.selection.0,
        slice.template.as_str(),
        members_json(slice)?,
        slice.kind.name(),
        Time(slice.window.from),
        Time(slice.window.to),
        Time(slice.planned),
        slice.expected,
        slice.state.name(),
        slice.step,
        slice.page,
        slice.fence,
        slice.owner,
        slice.lease_until.map(Time),
        slice.part,
        slice.sent_part,
        slice.enqueued.map(Time),
        slice.moved.map(Time),
        slice.next_page,
        cursor.map(|cursor| Time(cursor.committed)),
        cursor.map(|cursor| cursor.object.as_str()),
        cursor.and_then(|cursor| cursor.position.as_deref()),
        slice.counts.read,
        slice.counts.written,
        slice.counts.inserted,
        slice.counts.unchanged,
        slice.counts.filtered,
        slice.counts.quarantined,
        slice.counts.deleted,
        slice.failure,
    ])
}

/// Removes the slices that meet a condition on `?1`. Their counts stay, in those of their templates.
pub(crate) fn remove_slices(
    transaction: &Transaction<'_>,
    condition: &'static str,
    value: &str,
) -> Result<()> {
    let lines = slice_lines(condition);
    transaction
        .prepare_cached(&format!(
            "INSERT INTO atlas_counts AS c
                 (template_id, count_read, count_written, count_inserted, count_unchanged, count_filtered, count_quarantined,
                  count_deleted)
             SELECT template_id, sum(count_read), sum(count_written), sum(count_inserted), sum(count_unchanged),
                    sum(count_filtered), sum(count_quarantined), sum(count_deleted)
             FROM ({lines}) WHERE true GROUP BY template_id
             ON CONFLICT (template_id) DO UPDATE SET
                 count_read = c.count_read + excluded.count_read,
                 count_written = c.count_written + excluded.count_written,
                 count_inserted = c.count_inserted + excluded.count_inserted,
                 count_unchanged = c.count_unchanged + excluded.count_unchanged,
                 count_filtered = c.count_filtered + excluded.count_filtered,
                 count_quarantined = c.count_quarantined + excluded.count_quarantined,
                 count_deleted = c.count_deleted + excluded.count_deleted"
        ))?
        .execute([value])?;
    transaction
        .prepare_cached(&format!("DELETE FROM atlas_slices WHERE {condition}"))?
        .execute([value])?;
    Ok(())
}

/// Sums over the slices of each template, those that were removed included.
pub(crate) fn template_counts(connection: &mut Connection) -> Result<Vec<TemplateCounts>> {
    let lines = slice_lines("true");
    connection
        .prepare_cached(&format!(
            "SELECT template_id, sum(count_read) AS count_read, sum(count_written) AS count_written,
                 sum(count_inserted) AS count_inserted, sum(count_unchanged) AS count_unchanged,
                 sum(count_filtered) AS count_filtered, sum(count_quarantined) AS count_quarantined,
                 sum(count_deleted) AS count_deleted
             FROM ({lines}
                   UNION ALL
                   SELECT template_id, count_read, count_written, count_inserted, count_unchanged, count_filtered,
                       count_quarantined, count_deleted FROM atlas_counts)
             GROUP BY template_id ORDER BY template_id"
        ))?
        .query_map([], |row| {
            Ok(TemplateCounts {
                template: template_id(row)?,
                counts: counts(row)?,
            })
        })?
        .collect()
}

/// Replaces what is kept of the removed slices of a template.
pub(crate) fn write_counts(
    connection: &Connection,
    template: &TemplateId,
    counts: &Counts,
) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO atlas_counts
                 (template_id, count_read, count_written, count_inserted, count_unchanged, count_filtered, count_quarantined,
                  count_deleted)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            template.as_str(),
            counts.read,
            counts.written,
            counts.inserted,
            counts.unchanged,
            counts.filtered,
            counts.quarantined,
            counts.deleted,
        ])?;
    Ok(())
}

pub(crate) fn quarantined(row: &Row<'_>) -> Result<Quarantined> {
    Ok(Quarantined {
        meta: Meta {
            uid: known(row, "composition_uid", |text| VersionUid::parse(text).ok())?,
            ehr: ehr_id(row)?,
            template: template_id(row)?,
            committed: time(row, "time_committed")?,
            position: None,
            change_type: row.get("change_type")?,
        },
        reason: known(row, "reason", Reason::from_name)?,
        detail: row.get("detail")?,
        run: row.get("run_id")?,
        since: time(row, "since")?,
        tried: time(row, "tried")?,
        tries: row.get("tries")?,
        tried_by: row.get("tried_by")?,
    })
}

/// Inserts the record of a run, unless its id is there. Answers whether it did.
pub(crate) fn add_run(connection: &Connection, run: &Run) -> Result<bool> {
    write_run(connection, "INSERT OR IGNORE", run)
}

/// Replaces the record of a run.
pub(crate) fn replace_run(connection: &Connection, run: &Run) -> Result<()> {
    write_run(connection, "REPLACE", run).map(|_| ())
}

pub(crate) fn read_run(connection: &Connection, id: &str) -> Result<Option<Run>> {
    let columns = run_columns!();
    connection
        .prepare_cached(&format!("SELECT {columns} FROM atlas_runs WHERE id = ?1"))?
        .query_row([id], run)
        .optional()
}

fn write_run(connection: &Connection, insert: &str, run: &Run) -> Result<bool> {
    let columns = run_columns!();
    let changed = connection
        .prepare_cached(&format!(
            "{insert} INTO atlas_runs ({columns})
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)"
        ))?
        .execute(params![
            run.id,
            run.step,
            run.selection.0,
            run.mode.name(),
            Time(run.started),
            run.ended.map(Time),
            run.cut.map(Time),
            run.source_clock.map(Time),
            run.planned,
            run.outcome.map(Outcome::name),
            run.origin.name(),
            run.request.as_ref().map(Request::to_json),
            run.failure,
            run.counts.read,
            run.counts.written,
            run.counts.inserted,
            run.counts.unchanged,
            run.counts.filtered,
            run.counts.quarantined,
            run.counts.deleted,
        ])?;
    Ok(changed > 0)
}

pub(crate) fn run(row: &Row<'_>) -> Result<Run> {
    let outcome = match row.get_ref("outcome")? {
        ValueRef::Null => None,
        _ => Some(known(row, "outcome", Outcome::from_name)?),
    };
    let request = match row.get_ref("request")? {
        ValueRef::Null => None,
        _ => Some(known(row, "request", Request::from_json)?),
    };
    Ok(Run {
        id: row.get("id")?,
        step: row.get("step")?,
        origin: known(row, "origin", Origin::from_name)?,
        request,
        selection: SelectionKey(row.get("selection")?),
        mode: known(row, "mode", Mode::from_name)?,
        started: time(row, "started")?,
        ended: time_or_null(row, "ended")?,
        cut: time_or_null(row, "cut")?,
        source_clock: time_or_null(row, "source_clock")?,
        planned: row.get("planned")?,
        outcome,
        counts: counts(row)?,
        failure: row.get("failure")?,
    })
}

pub(crate) fn record(row: &Row<'_>) -> Result<Record> {
    Ok(Record {
        name: row.get("name")?,
        step: row.get("step")?,
        owner: row.get("owner")?,
        until: time_or_null(row, "held_until")?,
        value: row.get("value")?,
    })
}

pub(crate) fn read_record(connection: &Connection, name: &str) -> Result<Option<Record>> {
    connection
        .prepare_cached(
            "SELECT name, step, owner, held_until, value FROM atlas_records WHERE name = ?1",
        )?
        .query_row([name], record)
        .optional()
}

/// Inserts or replaces a control record.
pub(crate) fn write_record(connection: &Connection, record: &Record) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO atlas_records (name, step, owner, held_until, value) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            record.name,
            record.step,
            record.owner,
            record.until.map(Time),
            record.value,
        ])?;
    Ok(())
}
