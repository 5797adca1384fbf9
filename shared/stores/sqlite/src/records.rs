//! Control records from and to their columns.

use std::fmt;

use atlas_engine::model::{
    Counts, Cursor, Meta, Mode, Origin, Outcome, Quarantined, Reason, Record, Request, Run,
    SelectionKey, Slice, SliceKind, SliceState, Window,
};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use atlas_openehr::time::Instant;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, Type, ValueRef};
use rusqlite::{Connection, OptionalExtension, Result, Row, ToSql, params};

/// The columns that [`slice`] reads.
macro_rules! slice_columns {
    () => {
        "id, run_id, selection, template_id, kind, window_from, window_to, planned, expected, state, step, fence, owner, \
         lease_until, cursor_committed, cursor_object, count_read, count_written, count_unchanged, count_filtered, \
         count_quarantined, failure, part, sent_part, enqueued"
    };
}
/// The columns that [`quarantined`] reads.
macro_rules! quarantine_columns {
    () => {
        "composition_uid, ehr_id, template_id, time_committed, change_type, reason, detail, run_id, since, tried, tries"
    };
}
/// The columns that [`run`] reads.
macro_rules! run_columns {
    () => {
        "id, selection, mode, started, ended, cut, outcome, count_read, count_written, count_unchanged, \
         count_filtered, count_quarantined, origin, request, failure"
    };
}
pub(crate) use {quarantine_columns, run_columns, slice_columns};

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
fn known<T>(row: &Row<'_>, column: &'static str, read: impl Fn(&str) -> Option<T>) -> Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    read(text).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(Unknown(column)))
    })
}

fn text<T>(row: &Row<'_>, column: &'static str, new: impl Fn(&str) -> T) -> Result<T> {
    Ok(new(row.get_ref(column)?.as_str()?))
}

fn time(row: &Row<'_>, column: &'static str) -> Result<Instant> {
    row.get::<_, Time>(column).map(|time| time.0)
}

fn time_or_null(row: &Row<'_>, column: &'static str) -> Result<Option<Instant>> {
    Ok(row.get::<_, Option<Time>>(column)?.map(|time| time.0))
}

pub(crate) fn template_id(row: &Row<'_>) -> Result<TemplateId> {
    text(row, "template_id", TemplateId::new)
}

fn counts(row: &Row<'_>) -> Result<Counts> {
    Ok(Counts {
        read: row.get("count_read")?,
        written: row.get("count_written")?,
        unchanged: row.get("count_unchanged")?,
        filtered: row.get("count_filtered")?,
        quarantined: row.get("count_quarantined")?,
    })
}

pub(crate) fn slice(row: &Row<'_>) -> Result<Slice> {
    let cursor = time_or_null(row, "cursor_committed")?.map(|committed| {
        Ok::<_, rusqlite::Error>(Cursor {
            committed,
            object: text(row, "cursor_object", ObjectId::new)?,
            position: None,
        })
    });
    Ok(Slice {
        id: row.get("id")?,
        run: row.get("run_id")?,
        selection: SelectionKey(row.get("selection")?),
        template: template_id(row)?,
        kind: known(row, "kind", SliceKind::from_name)?,
        window: Window {
            from: time(row, "window_from")?,
            to: time(row, "window_to")?,
        },
        planned: time(row, "planned")?,
        expected: row.get("expected")?,
        state: known(row, "state", SliceState::from_name)?,
        step: row.get("step")?,
        fence: row.get("fence")?,
        owner: row.get("owner")?,
        lease_until: time_or_null(row, "lease_until")?,
        part: row.get("part")?,
        sent_part: row.get("sent_part")?,
        enqueued: time_or_null(row, "enqueued")?,
        cursor: cursor.transpose()?,
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
            ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25)
             ON CONFLICT (id) DO NOTHING"
        ),
        slice,
    )
}

/// Replaces all columns of the slice with this id.
pub(crate) fn update_slice(connection: &Connection, slice: &Slice) -> Result<()> {
    write_slice(
        connection,
        concat!(
            "UPDATE atlas_slices SET (",
            slice_columns!(),
            ") = (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25)
             WHERE id = ?1"
        ),
        slice,
    )
}

fn write_slice(connection: &Connection, sql: &'static str, slice: &Slice) -> Result<()> {
    let cursor = slice.cursor.as_ref();
    connection.prepare_cached(sql)?.execute(params![
        slice.id,
        slice.run,
        slice.selection.0,
        slice.template.as_str(),
        slice.kind.name(),
        Time(slice.window.from),
        Time(slice.window.to),
        Time(slice.planned),
        slice.expected,
        slice.state.name(),
        slice.step,
        slice.fence,
        slice.owner,
        slice.lease_until.map(Time),
        cursor.map(|cursor| Time(cursor.committed)),
        cursor.map(|cursor| cursor.object.as_str()),
        slice.counts.read,
        slice.counts.written,
        slice.counts.unchanged,
        slice.counts.filtered,
        slice.counts.quarantined,
        slice.failure,
        slice.part,
        slice.sent_part,
        slice.enqueued.map(Time),
    ])?;
    Ok(())
}

pub(crate) fn quarantined(row: &Row<'_>) -> Result<Quarantined> {
    Ok(Quarantined {
        meta: Meta {
            uid: known(row, "composition_uid", |text| VersionUid::parse(text).ok())?,
            ehr: text(row, "ehr_id", EhrId::new)?,
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
    })
}

/// Inserts the record of a run, unless its id is there. Answers whether it did.
pub(crate) fn add_run(connection: &Connection, run: &Run) -> Result<bool> {
    write_run(connection, "INSERT OR IGNORE", run)
}

/// Inserts or replaces the record of a run.
pub(crate) fn save_run(connection: &Connection, run: &Run) -> Result<()> {
    write_run(connection, "INSERT OR REPLACE", run).map(|_| ())
}

fn write_run(connection: &Connection, insert: &str, run: &Run) -> Result<bool> {
    let columns = run_columns!();
    let changed = connection
        .prepare_cached(&format!(
            "{insert} INTO atlas_runs ({columns})
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)"
        ))?
        .execute(params![
            run.id,
            run.selection.0,
            run.mode.name(),
            Time(run.started),
            run.ended.map(Time),
            run.cut.map(Time),
            run.outcome.map(Outcome::name),
            run.counts.read,
            run.counts.written,
            run.counts.unchanged,
            run.counts.filtered,
            run.counts.quarantined,
            run.origin.name(),
            run.request.as_ref().map(Request::to_json),
            run.failure,
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
        origin: known(row, "origin", Origin::from_name)?,
        request,
        selection: SelectionKey(row.get("selection")?),
        mode: known(row, "mode", Mode::from_name)?,
        started: time(row, "started")?,
        ended: time_or_null(row, "ended")?,
        cut: time_or_null(row, "cut")?,
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
