//! What is asked of slices, found by an index or counted where they lie.

use atlas_engine::model::{SliceFilter, SliceTotals, SlicesOf};
use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::error::Failure;
use crate::records::{self, SUMS, Time};
use crate::session::Statement;

type Result<T> = std::result::Result<T, Failure>;

/// The slices of a filter, at most `limit`.
pub(crate) fn find<'a>(filter: &SliceFilter<'a>, limit: usize) -> Result<Statement<'a>> {
    let select = |condition: &str| {
        Statement::new(format!(
            "SELECT * FROM {{schema}}.atlas_slices WHERE {condition}"
        ))
    };
    let (found, order) = match *filter {
        SliceFilter::Waiting { run, now } => (
            select("state {=} 'open' AND sent_part {<} part")
                .and(" AND run_id {=} $", run, Type::TEXT)
                .and(
                    " AND (owner IS NULL OR lease_until IS NULL OR lease_until {<=} $)",
                    Time(now),
                    Type::TIMESTAMPTZ,
                ),
            "template_id, window_from, window_to, id",
        ),
        SliceFilter::UnderWay { now } => (
            select("state {=} 'open' AND (sent_part {>=} part OR owner IS NOT NULL)").and(
                " AND (sent_part {>=} part OR lease_until {>} $)",
                Time(now),
                Type::TIMESTAMPTZ,
            ),
            "id",
        ),
        SliceFilter::Failed { selection } => (
            select("state {=} 'failed'").and(" AND selection {=} $", &selection.0, Type::TEXT),
            "id",
        ),
        SliceFilter::Read {
            selection,
            template,
            beyond,
        } => (
            select("kind {=} 'read' AND state {=} 'done' AND members IS NULL")
                .and(" AND selection {=} $", &selection.0, Type::TEXT)
                .and(" AND template_id {=} $", template.as_str(), Type::TEXT)
                .and(" AND window_to {>} $", Time(beyond), Type::TIMESTAMPTZ),
            "window_from, window_to, id",
        ),
        SliceFilter::ReadTogether { selection, beyond } => (
            select("state {=} 'done' AND members IS NOT NULL")
                .and(" AND selection {=} $", &selection.0, Type::TEXT)
                .and(" AND window_to {>} $", Time(beyond), Type::TIMESTAMPTZ),
            "window_from, window_to, id",
        ),
    };
    let limited = format!(" ORDER BY {order} LIMIT $");
    Ok(found.and(&limited, i64::try_from(limit)?, Type::INT8))
}

/// How the slices of a run or a selection stand that have one template each, by template.
pub(crate) fn count(of: SlicesOf<'_>, now: Instant) -> Statement<'_> {
    const COUNT: &str = "
        SELECT template_id,
            pg_catalog.count(*) FILTER (WHERE state {=} 'open' AND owner IS NOT NULL AND lease_until {>} $1) AS in_work,
            pg_catalog.count(*) FILTER (WHERE state {=} 'open') AS open,
            pg_catalog.count(*) FILTER (WHERE state {=} 'done') AS done,
            pg_catalog.count(*) FILTER (WHERE state {=} 'failed') AS failed,
            pg_catalog.min(planned) AS first_planned,
            pg_catalog.sum(expected)::pg_catalog.int8 AS expected,
            pg_catalog.sum(CASE WHEN kind {=} 'retry' THEN 0 ELSE count_quarantined END)::pg_catalog.int8
                AS fresh_quarantine,
            pg_catalog.max(failure) AS failure,
            pg_catalog.min(COALESCE(moved, enqueued))
                FILTER (WHERE state {=} 'failed' OR state {=} 'open' AND (sent_part {>=} part OR owner IS NOT NULL))
                AS still_since,
            {sums}
        FROM {schema}.atlas_slices WHERE members IS NULL AND ";
    let counted = Statement::new(COUNT.replace("{sums}", SUMS)).with(Time(now), Type::TIMESTAMPTZ);
    let (condition, value) = condition(of);
    counted.and(
        &format!("{condition} GROUP BY template_id"),
        value,
        Type::TEXT,
    )
}

/// The slices of a run or a selection that several templates share.
pub(crate) fn shared(of: SlicesOf<'_>) -> Statement<'_> {
    let shared = "SELECT * FROM {schema}.atlas_slices WHERE members IS NOT NULL AND ";
    let (condition, value) = condition(of);
    Statement::new(shared).and(condition, value, Type::TEXT)
}

fn condition(of: SlicesOf<'_>) -> (&'static str, &str) {
    match of {
        SlicesOf::Selection(selection) => ("selection {=} $", selection.0.as_str()),
        SlicesOf::Run(run) => ("run_id {=} $", run),
    }
}

pub(crate) fn totals(row: &Row) -> Result<(TemplateId, SliceTotals)> {
    let (open, in_work): (u64, u64) = (
        records::number(row, "open")?,
        records::number(row, "in_work")?,
    );
    let totals = SliceTotals {
        waiting: open.saturating_sub(in_work),
        in_work,
        done: records::number(row, "done")?,
        failed: records::number(row, "failed")?,
        first_planned: records::time_or_null(row, "first_planned")?,
        expected: records::number(row, "expected")?,
        counts: records::counts(row)?,
        fresh_quarantine: records::number(row, "fresh_quarantine")?,
        failure: row.try_get("failure")?,
        still_since: records::time_or_null(row, "still_since")?,
    };
    Ok((records::template_id(row)?, totals))
}
