//! Control records from and to their columns.

use std::borrow::Cow;
use std::error::Error;

use atlas_engine::model::{
    Counts, Cursor, DeleteReason, Deleted, Format, Member, Meta, Mode, Origin, Outcome,
    Quarantined, Reason, Record, Request, Run, SelectionKey, Slice, SliceKind, SliceState,
    StoredRow, StoredTemplate, TemplateCounts, Watermark, Window,
};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use atlas_openehr::time::Instant;
use bytes::{BufMut, BytesMut};
use deadpool_postgres::Pool;
use serde::de::DeserializeOwned;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use crate::error::Failure;
use crate::land;
use crate::session::{Names, Parameter, Session, Statement};

type Result<T> = std::result::Result<T, Failure>;
type Wrong = Box<dyn Error + Sync + Send>;

/// From 1970-01-01, where our time begins, to 2000-01-01, where PostgreSQL's does, in microseconds.
const EPOCHS_APART: i64 = 946_684_800_000_000;

/// An instant as `timestamptz`.
#[derive(Debug)]
pub(crate) struct Time(pub(crate) Instant);

impl ToSql for Time {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> std::result::Result<IsNull, Wrong> {
        out.put_i64(self.0.as_micros() - EPOCHS_APART);
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Time {
    fn from_sql(_: &Type, raw: &'a [u8]) -> std::result::Result<Self, Wrong> {
        // `infinity` is the largest number there is.
        i64::from_be_bytes(raw.try_into()?)
            .checked_add(EPOCHS_APART)
            .and_then(Instant::from_micros)
            .map(Self)
            .ok_or_else(|| "the time is outside the years 0000 to 9999".into())
    }

    accepts!(TIMESTAMPTZ);
}

/// JSON text as `jsonb`, parsed by the server.
#[derive(Debug)]
pub(crate) struct Json<'a>(pub(crate) &'a str);

impl ToSql for Json<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> std::result::Result<IsNull, Wrong> {
        const VERSION: u8 = 1;
        out.put_u8(VERSION);
        out.put_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    accepts!(JSONB);
    to_sql_checked!();
}

/// No text of PostgreSQL holds a zero.
pub(crate) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        text.replace('\0', "\u{fffd}").into()
    } else {
        text.into()
    }
}

/// A text with a meaning: `read` answers nothing if it does not know it.
pub(crate) fn known<T>(
    row: &Row,
    column: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T> {
    read(row.try_get(column)?).ok_or(Failure::Unknown(column))
}

pub(crate) fn from_json<T: DeserializeOwned>(row: &Row, column: &'static str) -> Result<T> {
    known(row, column, |text| serde_json::from_str(text).ok())
}

pub(crate) fn time(row: &Row, column: &'static str) -> Result<Instant> {
    Ok(row.try_get::<_, Time>(column)?.0)
}

pub(crate) fn time_or_null(row: &Row, column: &'static str) -> Result<Option<Instant>> {
    Ok(row.try_get::<_, Option<Time>>(column)?.map(|time| time.0))
}

pub(crate) fn number<T: TryFrom<i64>>(row: &Row, column: &'static str) -> Result<T> {
    T::try_from(row.try_get::<_, i64>(column)?).map_err(|_| Failure::Unknown(column))
}

pub(crate) fn number_or_null(row: &Row, column: &'static str) -> Result<Option<u64>> {
    let number = row.try_get::<_, Option<i64>>(column)?;
    let read = |number| u64::try_from(number).map_err(|_| Failure::Unknown(column));
    number.map(read).transpose()
}

pub(crate) fn template_id(row: &Row) -> Result<TemplateId> {
    Ok(TemplateId::new(row.try_get("template_id")?))
}

pub(crate) fn counts(row: &Row) -> Result<Counts> {
    Ok(Counts {
        read: number(row, "count_read")?,
        written: number(row, "count_written")?,
        inserted: number(row, "count_inserted")?,
        unchanged: number(row, "count_unchanged")?,
        filtered: number(row, "count_filtered")?,
        quarantined: number(row, "count_quarantined")?,
        deleted: number(row, "count_deleted")?,
    })
}

/// The cursor of a row that has one.
pub(crate) fn cursor(row: &Row) -> Result<Option<Cursor>> {
    let Some(committed) = time_or_null(row, "cursor_committed")? else {
        return Ok(None);
    };
    Ok(Some(Cursor {
        committed,
        object: ObjectId::new(row.try_get("cursor_object")?),
        position: row.try_get("cursor_position")?,
    }))
}

pub(crate) fn watermark(row: &Row) -> Result<Watermark> {
    Ok(Watermark {
        template: template_id(row)?,
        until: time(row, "until")?,
        late_checked_until: time(row, "late_checked_until")?,
        position: row.try_get("position")?,
    })
}

/// The members of a slice; null = it has one template.
fn members(row: &Row) -> Result<Vec<Member>> {
    match row.try_get::<_, Option<&str>>("members")? {
        None => Ok(Vec::new()),
        Some(_) => from_json(row, "members"),
    }
}

fn members_json(slice: &Slice) -> Result<Option<String>> {
    let members = slice
        .is_shared()
        .then(|| serde_json::to_string(&slice.members));
    Ok(members.transpose()?)
}

pub(crate) fn slice(row: &Row) -> Result<Slice> {
    Ok(Slice {
        id: row.try_get("id")?,
        run: row.try_get("run_id")?,
        selection: SelectionKey(row.try_get("selection")?),
        template: template_id(row)?,
        members: members(row)?,
        kind: known(row, "kind", SliceKind::from_name)?,
        window: Window {
            from: time(row, "window_from")?,
            to: time(row, "window_to")?,
        },
        planned: time(row, "planned")?,
        expected: number(row, "expected")?,
        state: known(row, "state", SliceState::from_name)?,
        step: number(row, "step")?,
        page: number(row, "page")?,
        fence: number(row, "fence")?,
        owner: row.try_get("owner")?,
        lease_until: time_or_null(row, "lease_until")?,
        part: number(row, "part")?,
        sent_part: number(row, "sent_part")?,
        enqueued: time_or_null(row, "enqueued")?,
        moved: time_or_null(row, "moved")?,
        next_page: number_or_null(row, "next_page")?,
        cursor: cursor(row)?,
        counts: counts(row)?,
        failure: row.try_get("failure")?,
    })
}

impl<'a> Statement<'a> {
    /// With the numbers of counts, in the order of their columns.
    fn with_counts(self, counts: &Counts) -> Result<Self> {
        let numbers = [
            counts.read,
            counts.written,
            counts.inserted,
            counts.unchanged,
            counts.filtered,
            counts.quarantined,
            counts.deleted,
        ];
        numbers.into_iter().try_fold(self, |statement, number| {
            Ok(statement.with(i64::try_from(number)?, Type::INT8))
        })
    }

    fn with_slice(self, slice: &'a Slice) -> Result<Self> {
        let cursor = slice.cursor.as_ref();
        self.with(&slice.id, Type::TEXT)
            .with(&slice.run, Type::TEXT)
            .with(&slice.selection.0, Type::TEXT)
            .with(slice.template.as_str(), Type::TEXT)
            .with(members_json(slice)?, Type::TEXT)
            .with(slice.kind.name(), Type::TEXT)
            .with(Time(slice.window.from), Type::TIMESTAMPTZ)
            .with(Time(slice.window.to), Type::TIMESTAMPTZ)
            .with(Time(slice.planned), Type::TIMESTAMPTZ)
            .with(i64::try_from(slice.expected)?, Type::INT8)
            .with(slice.state.name(), Type::TEXT)
            .with(i64::try_from(slice.step)?, Type::INT8)
            .with(i64::try_from(slice.page)?, Type::INT8)
            .with(i64::try_from(slice.fence)?, Type::INT8)
            .with(&slice.owner, Type::TEXT)
            .with(slice.lease_until.map(Time), Type::TIMESTAMPTZ)
            .with(i64::try_from(slice.part)?, Type::INT8)
            .with(i64::try_from(slice.sent_part)?, Type::INT8)
            .with(slice.enqueued.map(Time), Type::TIMESTAMPTZ)
            .with(slice.moved.map(Time), Type::TIMESTAMPTZ)
            .with(slice.next_page.map(i64::try_from).transpose()?, Type::INT8)
            .with(
                cursor.map(|cursor| Time(cursor.committed)),
                Type::TIMESTAMPTZ,
            )
            .with(cursor.map(|cursor| cursor.object.as_str()), Type::TEXT)
            .with(
                cursor.and_then(|cursor| cursor.position.as_deref()),
                Type::TEXT,
            )
            .with(&slice.failure, Type::TEXT)
            .with_counts(&slice.counts)
    }
}

const INSERT_SLICE: &str = "
    INSERT INTO {schema}.atlas_slices
        (id, run_id, selection, template_id, members, kind, window_from, window_to, planned, expected, state, step, page, fence,
         owner, lease_until, part, sent_part, enqueued, moved, next_page, cursor_committed, cursor_object, cursor_position, failure,
         count_read, count_written, count_inserted, count_unchanged, count_filtered, count_quarantined, count_deleted)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
         $25, $26, $27, $28, $29, $30, $31, $32)
    ON CONFLICT (id) DO NOTHING";

const UPDATE_SLICE: &str = "
    UPDATE {schema}.atlas_slices SET
        (run_id, selection, template_id, members, kind, window_from, window_to, planned, expected, state, step, page, fence,
         owner, lease_until, part, sent_part, enqueued, moved, next_page, cursor_committed, cursor_object, cursor_position, failure,
         count_read, count_written, count_inserted, count_unchanged, count_filtered, count_quarantined, count_deleted)
      = ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
         $25, $26, $27, $28, $29, $30, $31, $32)
    WHERE id {=} $1
    RETURNING id";

/// Inserts a slice; one whose id is there stays.
pub(crate) fn insert_slice(slice: &Slice) -> Result<Statement<'_>> {
    Statement::new(INSERT_SLICE).with_slice(slice)
}

/// Replaces everything of a slice but its id.
pub(crate) fn update_slice(slice: &Slice) -> Result<Statement<'_>> {
    Statement::new(UPDATE_SLICE).with_slice(slice)
}

/// Whether the last of some statements changed a row: a trigger can leave one out without an error.
///
/// # Errors
/// `LeftOut` if it did not.
pub(crate) fn require_changed(answers: &[Vec<Row>]) -> Result<()> {
    let changed = answers.last().is_some_and(|rows| !rows.is_empty());
    changed.then_some(()).ok_or(Failure::LeftOut)
}

/// Reads a slice and keeps others from changing it until the transaction ends.
pub(crate) fn lock_slice(id: &str) -> Statement<'_> {
    Statement::new("SELECT * FROM {schema}.atlas_slices WHERE id {=} $1 FOR UPDATE")
        .with(id, Type::TEXT)
}

/// Removes the slices that meet a condition. Their counts stay, in those of their templates.
pub(crate) fn remove_slices(condition: &str) -> String {
    const REMOVE: &str = "
        WITH removed AS (
            DELETE FROM {schema}.atlas_slices WHERE {condition} RETURNING *
        )
        INSERT INTO {schema}.atlas_counts AS c
            (template_id, count_read, count_written, count_inserted, count_unchanged, count_filtered, count_quarantined,
             count_deleted)
        SELECT template_id, {sums} FROM ({lines}) AS l GROUP BY template_id ORDER BY template_id
        ON CONFLICT (template_id) DO UPDATE SET
            count_read = c.count_read {+} excluded.count_read,
            count_written = c.count_written {+} excluded.count_written,
            count_inserted = c.count_inserted {+} excluded.count_inserted,
            count_unchanged = c.count_unchanged {+} excluded.count_unchanged,
            count_filtered = c.count_filtered {+} excluded.count_filtered,
            count_quarantined = c.count_quarantined {+} excluded.count_quarantined,
            count_deleted = c.count_deleted {+} excluded.count_deleted";
    REMOVE
        .replace("{condition}", condition)
        .replace("{lines}", &slice_lines("removed"))
        .replace("{sums}", SUMS)
}

/// The counts of slices, in a line for each of their templates.
fn slice_lines(slices: &str) -> String {
    const LINES: &str = "
        SELECT template_id, count_read, count_written, count_inserted, count_unchanged, count_filtered, count_quarantined,
            count_deleted
        FROM {slices} WHERE members IS NULL
        UNION ALL
        SELECT m.template COLLATE pg_catalog.\"C\", m.read, m.written, m.inserted, m.unchanged, m.filtered, m.quarantined, m.deleted
        FROM {slices} AS s, pg_catalog.jsonb_to_recordset(s.members::pg_catalog.jsonb)
            AS m(template pg_catalog.text, read pg_catalog.int8, written pg_catalog.int8, inserted pg_catalog.int8,
                unchanged pg_catalog.int8, filtered pg_catalog.int8, quarantined pg_catalog.int8, deleted pg_catalog.int8)
        WHERE s.members IS NOT NULL";
    LINES.replace("{slices}", slices)
}

/// The columns of [`counts`], summed.
pub(crate) const SUMS: &str = "
    pg_catalog.sum(count_read)::pg_catalog.int8 AS count_read,
    pg_catalog.sum(count_written)::pg_catalog.int8 AS count_written,
    pg_catalog.sum(count_inserted)::pg_catalog.int8 AS count_inserted,
    pg_catalog.sum(count_unchanged)::pg_catalog.int8 AS count_unchanged,
    pg_catalog.sum(count_filtered)::pg_catalog.int8 AS count_filtered,
    pg_catalog.sum(count_quarantined)::pg_catalog.int8 AS count_quarantined,
    pg_catalog.sum(count_deleted)::pg_catalog.int8 AS count_deleted";

/// Sums over the slices of each template, those that were removed included.
pub(crate) fn template_counts() -> String {
    const COUNTS: &str = "
        SELECT template_id, {sums}
        FROM ({lines}
              UNION ALL
              SELECT template_id, count_read, count_written, count_inserted, count_unchanged, count_filtered,
                  count_quarantined, count_deleted FROM {schema}.atlas_counts) AS s
        GROUP BY template_id ORDER BY template_id";
    COUNTS
        .replace("{lines}", &slice_lines("{schema}.atlas_slices"))
        .replace("{sums}", SUMS)
}

pub(crate) fn template_count(row: &Row) -> Result<TemplateCounts> {
    Ok(TemplateCounts {
        template: template_id(row)?,
        counts: counts(row)?,
    })
}

/// Replaces what is kept of the removed slices of a template.
pub(crate) fn write_counts<'a>(template: &'a TemplateId, counts: &Counts) -> Result<Statement<'a>> {
    Statement::new(
        "INSERT INTO {schema}.atlas_counts
             (template_id, count_read, count_written, count_inserted, count_unchanged, count_filtered, count_quarantined,
              count_deleted)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (template_id) DO UPDATE SET
             (count_read, count_written, count_inserted, count_unchanged, count_filtered, count_quarantined, count_deleted)
           = ($2, $3, $4, $5, $6, $7, $8)",
    )
    .with(template.as_str(), Type::TEXT)
    .with_counts(counts)
}

fn meta(row: &Row) -> Result<Meta> {
    Ok(Meta {
        uid: known(row, "composition_uid", |text| VersionUid::parse(text).ok())?,
        ehr: EhrId::new(row.try_get("ehr_id")?),
        template: template_id(row)?,
        committed: time(row, "time_committed")?,
        position: None,
        change_type: row.try_get("change_type")?,
    })
}

pub(crate) fn stored_row(row: &Row) -> Result<StoredRow> {
    let deleted = match time_or_null(row, "deleted_at")? {
        Some(at) => Some(Deleted {
            at,
            why: known(row, "deleted_reason", DeleteReason::from_name)?,
        }),
        None => None,
    };
    Ok(StoredRow {
        meta: meta(row)?,
        content: row.try_get("content")?,
        checksum: land::checksum(row)?,
        format: known(row, "export_mode", Format::from_name)?,
        asked: time(row, "asked")?,
        deleted,
        run: row.try_get("run_id")?,
    })
}

pub(crate) fn quarantined(row: &Row) -> Result<Quarantined> {
    Ok(Quarantined {
        meta: meta(row)?,
        reason: known(row, "reason", Reason::from_name)?,
        detail: row.try_get("detail")?,
        run: row.try_get("run_id")?,
        since: time(row, "since")?,
        tried: time(row, "tried")?,
        tries: number(row, "tries")?,
        tried_by: row.try_get("tried_by")?,
    })
}

pub(crate) fn stored_template(row: &Row) -> Result<StoredTemplate> {
    Ok(StoredTemplate {
        template: template_id(row)?,
        digest: row.try_get("digest")?,
        web_template: row.try_get("web_template")?,
        names: row.try_get("names")?,
        fetched: time(row, "fetched")?,
    })
}

/// Inserts the record of a run, unless its id is there; answers a row if it did.
pub(crate) fn add_run(run: &Run) -> Result<Statement<'_>> {
    let statement = "
        INSERT INTO {schema}.atlas_runs
            (id, step, selection, mode, started, ended, cut, source_clock, planned, outcome, origin, request, failure, count_read, count_written,
             count_inserted, count_unchanged, count_filtered, count_quarantined, count_deleted)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
        ON CONFLICT (id) DO NOTHING
        RETURNING id";
    with_run(statement, run)
}

/// Replaces the record of a run that stands one step before; answers a row if it did.
pub(crate) fn update_run(run: &Run) -> Result<Statement<'_>> {
    let statement = "
        UPDATE {schema}.atlas_runs SET
            (step, selection, mode, started, ended, cut, source_clock, planned, outcome, origin, request, failure, count_read, count_written,
             count_inserted, count_unchanged, count_filtered, count_quarantined, count_deleted)
          = ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
        WHERE id {=} $1 AND step {=} ($2 {-} 1)
        RETURNING id";
    with_run(statement, run)
}

fn with_run<'a>(statement: &'static str, run: &'a Run) -> Result<Statement<'a>> {
    Statement::new(statement)
        .with(&run.id, Type::TEXT)
        .with(i64::try_from(run.step)?, Type::INT8)
        .with(&run.selection.0, Type::TEXT)
        .with(run.mode.name(), Type::TEXT)
        .with(Time(run.started), Type::TIMESTAMPTZ)
        .with(run.ended.map(Time), Type::TIMESTAMPTZ)
        .with(run.cut.map(Time), Type::TIMESTAMPTZ)
        .with(run.source_clock.map(Time), Type::TIMESTAMPTZ)
        .with(run.planned, Type::BOOL)
        .with(run.outcome.map(Outcome::name), Type::TEXT)
        .with(run.origin.name(), Type::TEXT)
        .with(run.request.as_ref().map(Request::to_json), Type::TEXT)
        .with(&run.failure, Type::TEXT)
        .with_counts(&run.counts)
}

pub(crate) fn run(row: &Row) -> Result<Run> {
    let outcome = row
        .try_get::<_, Option<&str>>("outcome")?
        .map(|name| Outcome::from_name(name).ok_or(Failure::Unknown("outcome")))
        .transpose()?;
    let request = row
        .try_get::<_, Option<&str>>("request")?
        .map(|json| Request::from_json(json).ok_or(Failure::Unknown("request")))
        .transpose()?;
    Ok(Run {
        id: row.try_get("id")?,
        step: number(row, "step")?,
        origin: known(row, "origin", Origin::from_name)?,
        request,
        selection: SelectionKey(row.try_get("selection")?),
        mode: known(row, "mode", Mode::from_name)?,
        started: time(row, "started")?,
        ended: time_or_null(row, "ended")?,
        cut: time_or_null(row, "cut")?,
        source_clock: time_or_null(row, "source_clock")?,
        planned: row.try_get("planned")?,
        outcome,
        counts: counts(row)?,
        failure: row.try_get("failure")?,
    })
}

pub(crate) fn record(row: &Row) -> Result<Record> {
    Ok(Record {
        name: row.try_get("name")?,
        step: number(row, "step")?,
        owner: row.try_get("owner")?,
        until: time_or_null(row, "held_until")?,
        value: row.try_get("value")?,
    })
}

/// Replaces a record that stands at `before`, or inserts it where that is 0. Answers whether it did.
pub(crate) async fn swap_record(
    pool: &Pool,
    names: &Names,
    before: u64,
    after: &Record,
) -> Result<bool> {
    let statement = if before == 0 {
        "INSERT INTO {schema}.atlas_records (name, step, owner, held_until, value) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (name) DO NOTHING
         RETURNING name"
    } else {
        "UPDATE {schema}.atlas_records SET (step, owner, held_until, value) = ($2, $3, $4, $5)
         WHERE name {=} $1 AND step {=} ($2 {-} 1)
         RETURNING name"
    };
    let parameters: [Parameter<'_>; 5] = [
        (&after.name, Type::TEXT),
        (&i64::try_from(after.step)?, Type::INT8),
        (&after.owner, Type::TEXT),
        (&after.until.map(Time), Type::TIMESTAMPTZ),
        (&after.value, Type::TEXT),
    ];
    let rows = Session::only(pool, names, statement, &parameters).await?;
    Ok(!rows.is_empty())
}
