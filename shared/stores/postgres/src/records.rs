//! Control records from and to their columns.

use std::error::Error;

use atlas_engine::model::{
    Counts, Cursor, Holding, Meta, Mode, Origin, Outcome, Quarantined, Reason, Record, Request,
    Run, SelectionKey, Slice, SliceKind, SliceState, StoredTemplate, Window,
};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use atlas_openehr::time::Instant;
use bytes::{BufMut, BytesMut};
use deadpool_postgres::GenericClient;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use crate::error::Failure;

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

/// What is done with the columns of a slice.
#[derive(Clone, Copy)]
pub(crate) enum Write {
    /// Inserts it, unless its id is there.
    Insert,
    /// Replaces everything but its id.
    Update,
}

/// Whether a slice was written.
pub(crate) async fn write_slice(
    client: &impl GenericClient,
    write: Write,
    slice: &Slice,
) -> Result<bool> {
    let sql = match write {
        Write::Insert => {
            "INSERT INTO atlas_slices
                 (id, run_id, selection, template_id, kind, window_from, window_to, planned, expected, state, step,
                  fence, owner, lease_until, cursor_committed, cursor_object, count_read, count_written,
                  count_unchanged, count_filtered, count_quarantined, failure, part, sent_part, enqueued)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
                  $23, $24, $25)
             ON CONFLICT (id) DO NOTHING"
        }
        Write::Update => {
            "UPDATE atlas_slices SET
                 (run_id, selection, template_id, kind, window_from, window_to, planned, expected, state, step,
                  fence, owner, lease_until, cursor_committed, cursor_object, count_read, count_written,
                  count_unchanged, count_filtered, count_quarantined, failure, part, sent_part, enqueued)
               = ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
                  $23, $24, $25)
             WHERE id = $1"
        }
    };
    let statement = client.prepare_cached(sql).await?;
    let [read, written, unchanged, filtered, quarantined] = count_columns(&slice.counts)?;
    let cursor = slice.cursor.as_ref();
    let changed = client
        .execute(
            &statement,
            &[
                &slice.id,
                &slice.run,
                &slice.selection.0,
                &slice.template.as_str(),
                &slice.kind.name(),
                &Time(slice.window.from),
                &Time(slice.window.to),
                &Time(slice.planned),
                &i64::try_from(slice.expected)?,
                &slice.state.name(),
                &i64::try_from(slice.step)?,
                &i64::try_from(slice.fence)?,
                &slice.owner,
                &slice.lease_until.map(Time),
                &cursor.map(|cursor| Time(cursor.committed)),
                &cursor.map(|cursor| cursor.object.as_str()),
                &read,
                &written,
                &unchanged,
                &filtered,
                &quarantined,
                &slice.failure,
                &i64::try_from(slice.part)?,
                &i64::try_from(slice.sent_part)?,
                &slice.enqueued.map(Time),
            ],
        )
        .await?;
    Ok(changed > 0)
}

/// Reads a slice and keeps others from changing it until the transaction ends.
pub(crate) async fn lock_slice(client: &impl GenericClient, id: &str) -> Result<Option<Slice>> {
    let statement = client
        .prepare_cached("SELECT * FROM atlas_slices WHERE id = $1 FOR UPDATE")
        .await?;
    let row = client.query_opt(&statement, &[&id]).await?;
    row.as_ref().map(slice).transpose()
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

/// Inserts the record of a run, and replaces one of that id only if it is to update. Answers whether it wrote.
pub(crate) async fn write_run(
    client: &impl GenericClient,
    write: Write,
    run: &Run,
) -> Result<bool> {
    let [read, written, unchanged, filtered, quarantined] = count_columns(&run.counts)?;
    let sql = match write {
        Write::Insert => {
            "INSERT INTO atlas_runs
                 (id, selection, mode, started, ended, cut, outcome, count_read, count_written, count_unchanged,
                  count_filtered, count_quarantined, origin, request, failure)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
             ON CONFLICT (id) DO NOTHING"
        }
        Write::Update => {
            "INSERT INTO atlas_runs
                 (id, selection, mode, started, ended, cut, outcome, count_read, count_written, count_unchanged,
                  count_filtered, count_quarantined, origin, request, failure)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
             ON CONFLICT (id) DO UPDATE SET
                 (selection, mode, started, ended, cut, outcome, count_read, count_written, count_unchanged,
                  count_filtered, count_quarantined, origin, request, failure)
               = ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
        }
    };
    let statement = client.prepare_cached(sql).await?;
    let changed = client
        .execute(
            &statement,
            &[
                &run.id,
                &run.selection.0,
                &run.mode.name(),
                &Time(run.started),
                &run.ended.map(Time),
                &run.cut.map(Time),
                &run.outcome.map(Outcome::name),
                &read,
                &written,
                &unchanged,
                &filtered,
                &quarantined,
                &run.origin.name(),
                &run.request.as_ref().map(Request::to_json),
                &run.failure,
            ],
        )
        .await?;
    Ok(changed > 0)
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
    client: &impl GenericClient,
    before: u64,
    after: &Record,
) -> Result<bool> {
    let statement = client
        .prepare_cached(if before == 0 {
            "INSERT INTO atlas_records (name, step, owner, held_until, value) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (name) DO NOTHING"
        } else {
            "UPDATE atlas_records SET (step, owner, held_until, value) = ($2::bigint, $3, $4, $5)
             WHERE name = $1 AND step = $2::bigint - 1"
        })
        .await?;
    let changed = client
        .execute(
            &statement,
            &[
                &after.name,
                &i64::try_from(after.step)?,
                &after.owner,
                &after.until.map(Time),
                &after.value,
            ],
        )
        .await?;
    Ok(changed > 0)
}
