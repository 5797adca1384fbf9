//! Control records from and to their columns.

use std::error::Error;

use atlas_engine::model::{
    Counts, Cursor, Holding, Meta, Mode, Origin, Outcome, Quarantined, Reason, Record, Request,
    Run, SelectionKey, Slice, SliceKind, SliceState, StoredTemplate, Window,
};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use atlas_openehr::time::Instant;
use bytes::{BufMut, BytesMut};
use deadpool_postgres::Pool;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use crate::error::Failure;
use crate::session::{Names, Parameter, Session};

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

/// A text with a meaning: `read` answers nothing if it does not know it.
fn known<T>(row: &Row, column: &'static str, read: impl Fn(&str) -> Option<T>) -> Result<T> {
    read(row.try_get(column)?).ok_or(Failure::Unknown(column))
}

fn time(row: &Row, column: &'static str) -> Result<Instant> {
    Ok(row.try_get::<_, Time>(column)?.0)
}

fn time_or_null(row: &Row, column: &'static str) -> Result<Option<Instant>> {
    Ok(row.try_get::<_, Option<Time>>(column)?.map(|time| time.0))
}

fn number<T: TryFrom<i64>>(row: &Row, column: &'static str) -> Result<T> {
    T::try_from(row.try_get::<_, i64>(column)?).map_err(|_| Failure::Unknown(column))
}

pub(crate) fn template_id(row: &Row) -> Result<TemplateId> {
    Ok(TemplateId::new(row.try_get("template_id")?))
}

fn counts(row: &Row) -> Result<Counts> {
    Ok(Counts {
        read: number(row, "count_read")?,
        written: number(row, "count_written")?,
        unchanged: number(row, "count_unchanged")?,
        filtered: number(row, "count_filtered")?,
        quarantined: number(row, "count_quarantined")?,
    })
}

/// The numbers of [`Counts`], in the order of the columns.
fn count_columns(counts: &Counts) -> Result<[i64; 5]> {
    Ok([
        i64::try_from(counts.read)?,
        i64::try_from(counts.written)?,
        i64::try_from(counts.unchanged)?,
        i64::try_from(counts.filtered)?,
        i64::try_from(counts.quarantined)?,
    ])
}

pub(crate) fn watermark(row: &Row) -> Result<atlas_engine::model::Watermark> {
    Ok(atlas_engine::model::Watermark {
        template: template_id(row)?,
        until: time(row, "until")?,
        late_checked_until: time(row, "late_checked_until")?,
    })
}

pub(crate) fn slice(row: &Row) -> Result<Slice> {
    let cursor = match time_or_null(row, "cursor_committed")? {
        None => None,
        Some(committed) => Some(Cursor {
            committed,
            object: ObjectId::new(row.try_get("cursor_object")?),
            position: None,
        }),
    };
    Ok(Slice {
        id: row.try_get("id")?,
        run: row.try_get("run_id")?,
        selection: SelectionKey(row.try_get("selection")?),
        template: template_id(row)?,
        kind: known(row, "kind", SliceKind::from_name)?,
        window: Window {
            from: time(row, "window_from")?,
            to: time(row, "window_to")?,
        },
        planned: time(row, "planned")?,
        expected: number(row, "expected")?,
        state: known(row, "state", SliceState::from_name)?,
        step: number(row, "step")?,
        fence: number(row, "fence")?,
        owner: row.try_get("owner")?,
        lease_until: time_or_null(row, "lease_until")?,
        part: number(row, "part")?,
        sent_part: number(row, "sent_part")?,
        enqueued: time_or_null(row, "enqueued")?,
        cursor,
        counts: counts(row)?,
        failure: row.try_get("failure")?,
    })
}

/// Values of one row with their types, in the order of a statement's parameters.
type Values<'a> = Vec<(Box<dyn ToSql + Sync + Send + 'a>, Type)>;

fn value<'a>(
    value: impl ToSql + Sync + Send + 'a,
    column: Type,
) -> (Box<dyn ToSql + Sync + Send + 'a>, Type) {
    (Box::new(value), column)
}

fn parameters<'a>(values: &'a Values<'_>) -> Vec<Parameter<'a>> {
    let values = values.iter();
    values
        .map(|(value, column)| (&**value as &(dyn ToSql + Sync), column.clone()))
        .collect()
}

const INSERT_SLICE: &str = "
    INSERT INTO {schema}.atlas_slices
        (id, run_id, selection, template_id, kind, window_from, window_to, planned, expected, state, step,
         fence, owner, lease_until, cursor_committed, cursor_object, count_read, count_written,
         count_unchanged, count_filtered, count_quarantined, failure, part, sent_part, enqueued)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
         $23, $24, $25)
    ON CONFLICT (id) DO NOTHING";

const UPDATE_SLICE: &str = "
    UPDATE {schema}.atlas_slices SET
        (run_id, selection, template_id, kind, window_from, window_to, planned, expected, state, step,
         fence, owner, lease_until, cursor_committed, cursor_object, count_read, count_written,
         count_unchanged, count_filtered, count_quarantined, failure, part, sent_part, enqueued)
      = ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
         $23, $24, $25)
    WHERE id {=} $1";

fn slice_values(slice: &Slice) -> Result<Values<'_>> {
    let cursor = slice.cursor.as_ref();
    let mut values = vec![
        value(&slice.id, Type::TEXT),
        value(&slice.run, Type::TEXT),
        value(&slice.selection.0, Type::TEXT),
        value(slice.template.as_str(), Type::TEXT),
        value(slice.kind.name(), Type::TEXT),
        value(Time(slice.window.from), Type::TIMESTAMPTZ),
        value(Time(slice.window.to), Type::TIMESTAMPTZ),
        value(Time(slice.planned), Type::TIMESTAMPTZ),
        value(i64::try_from(slice.expected)?, Type::INT8),
        value(slice.state.name(), Type::TEXT),
        value(i64::try_from(slice.step)?, Type::INT8),
        value(i64::try_from(slice.fence)?, Type::INT8),
        value(&slice.owner, Type::TEXT),
        value(slice.lease_until.map(Time), Type::TIMESTAMPTZ),
        value(
            cursor.map(|cursor| Time(cursor.committed)),
            Type::TIMESTAMPTZ,
        ),
        value(cursor.map(|cursor| cursor.object.as_str()), Type::TEXT),
    ];
    values.extend(count_columns(&slice.counts)?.map(|count| value(count, Type::INT8)));
    values.extend([
        value(&slice.failure, Type::TEXT),
        value(i64::try_from(slice.part)?, Type::INT8),
        value(i64::try_from(slice.sent_part)?, Type::INT8),
        value(slice.enqueued.map(Time), Type::TIMESTAMPTZ),
    ]);
    Ok(values)
}

/// Inserts slices; one whose id is there stays.
pub(crate) async fn insert_slices(session: &mut Session<'_>, slices: &[Slice]) -> Result<()> {
    let all: Vec<Values<'_>> = slices.iter().map(slice_values).collect::<Result<_>>()?;
    session
        .execute_all(INSERT_SLICE, all.iter().map(parameters).collect())
        .await
}

/// Replaces everything of a slice but its id, and commits.
pub(crate) async fn update_slice(session: Session<'_>, slice: &Slice) -> Result<()> {
    let values = slice_values(slice)?;
    session
        .commit_with(UPDATE_SLICE, &parameters(&values))
        .await?;
    Ok(())
}

/// Reads a slice and keeps others from changing it until the transaction ends.
pub(crate) async fn lock_slice(session: &mut Session<'_>, id: &str) -> Result<Option<Slice>> {
    let sql = "SELECT * FROM {schema}.atlas_slices WHERE id {=} $1 FOR UPDATE";
    let rows = session.query(sql, &[(&id, Type::TEXT)]).await?;
    rows.first().map(slice).transpose()
}

pub(crate) fn quarantined(row: &Row) -> Result<Quarantined> {
    Ok(Quarantined {
        meta: Meta {
            uid: known(row, "composition_uid", |text| VersionUid::parse(text).ok())?,
            ehr: EhrId::new(row.try_get("ehr_id")?),
            template: template_id(row)?,
            committed: time(row, "time_committed")?,
            position: None,
            change_type: row.try_get("change_type")?,
        },
        reason: known(row, "reason", Reason::from_name)?,
        detail: row.try_get("detail")?,
        run: row.try_get("run_id")?,
        since: time(row, "since")?,
        tried: time(row, "tried")?,
        tries: number(row, "tries")?,
    })
}

pub(crate) fn holding(row: &Row) -> Result<Holding> {
    Ok(Holding {
        template: template_id(row)?,
        compositions: number(row, "compositions")?,
        newest: time_or_null(row, "newest")?,
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

/// Inserts the record of a run; answers a row if it did.
pub(crate) const ADD_RUN: &str = "
    INSERT INTO {schema}.atlas_runs
        (id, selection, mode, started, ended, cut, outcome, count_read, count_written, count_unchanged,
         count_filtered, count_quarantined, origin, request, failure)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
    ON CONFLICT (id) DO NOTHING
    RETURNING id";

/// Inserts or replaces the record of a run.
pub(crate) const SAVE_RUN: &str = "
    INSERT INTO {schema}.atlas_runs
        (id, selection, mode, started, ended, cut, outcome, count_read, count_written, count_unchanged,
         count_filtered, count_quarantined, origin, request, failure)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
    ON CONFLICT (id) DO UPDATE SET
        (selection, mode, started, ended, cut, outcome, count_read, count_written, count_unchanged,
         count_filtered, count_quarantined, origin, request, failure)
      = ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
    RETURNING id";

/// Writes the record of a run by one of these statements. Answers whether it did.
pub(crate) async fn write_run(
    pool: &Pool,
    names: &Names,
    statement: &str,
    run: &Run,
) -> Result<bool> {
    let mut values = vec![
        value(&run.id, Type::TEXT),
        value(&run.selection.0, Type::TEXT),
        value(run.mode.name(), Type::TEXT),
        value(Time(run.started), Type::TIMESTAMPTZ),
        value(run.ended.map(Time), Type::TIMESTAMPTZ),
        value(run.cut.map(Time), Type::TIMESTAMPTZ),
        value(run.outcome.map(Outcome::name), Type::TEXT),
    ];
    values.extend(count_columns(&run.counts)?.map(|count| value(count, Type::INT8)));
    values.extend([
        value(run.origin.name(), Type::TEXT),
        value(run.request.as_ref().map(Request::to_json), Type::TEXT),
        value(&run.failure, Type::TEXT),
    ]);
    let rows = Session::only(pool, names, statement, &parameters(&values)).await?;
    Ok(!rows.is_empty())
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
        origin: known(row, "origin", Origin::from_name)?,
        request,
        selection: SelectionKey(row.try_get("selection")?),
        mode: known(row, "mode", Mode::from_name)?,
        started: time(row, "started")?,
        ended: time_or_null(row, "ended")?,
        cut: time_or_null(row, "cut")?,
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
