//! What is asked of slices, found by an index or counted where they lie.

use std::collections::BTreeMap;

use atlas_engine::model::{Slice, SliceFilter, SliceTotals, SlicesOf};
use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use rusqlite::types::Value;
use rusqlite::{Connection, Result, Row, params_from_iter};

use crate::records::{self, slice_columns};

/// A question with its values, which an instant leaves for another thread.
pub(crate) struct Question {
    pub(crate) sql: String,
    values: Vec<Value>,
}

/// The slices of a filter, at most `limit`.
pub(crate) fn find(filter: &SliceFilter<'_>, limit: usize) -> Question {
    let (condition, order, mut values) = match *filter {
        SliceFilter::Waiting { run, now } => (
            "run_id = ? AND state = 'open' AND sent_part < part
             AND (owner IS NULL OR lease_until IS NULL OR lease_until <= ?)",
            "template_id, window_from, window_to, id",
            vec![run.to_owned().into(), now.to_string().into()],
        ),
        SliceFilter::UnderWay { now } => (
            "state = 'open' AND (sent_part >= part OR owner IS NOT NULL) AND (sent_part >= part OR lease_until > ?)",
            "id",
            vec![now.to_string().into()],
        ),
        SliceFilter::Failed { selection } => (
            "selection = ? AND state = 'failed'",
            "id",
            vec![selection.0.clone().into()],
        ),
        SliceFilter::Read {
            selection,
            template,
            beyond,
        } => (
            "selection = ? AND template_id = ? AND kind = 'read' AND state = 'done' AND members IS NULL
             AND window_to > ?",
            "window_from, window_to, id",
            vec![
                selection.0.clone().into(),
                template.as_str().to_owned().into(),
                beyond.to_string().into(),
            ],
        ),
        SliceFilter::ReadTogether { selection, beyond } => (
            "selection = ? AND state = 'done' AND members IS NOT NULL AND window_to > ?",
            "window_from, window_to, id",
            vec![selection.0.clone().into(), beyond.to_string().into()],
        ),
    };
    values.push(i64::try_from(limit).unwrap_or(i64::MAX).into());
    let columns = slice_columns!();
    Question {
        sql: format!(
            "SELECT {columns} FROM atlas_slices WHERE {condition} ORDER BY {order} LIMIT ?"
        ),
        values,
    }
}

impl Question {
    pub(crate) fn slices(&self, connection: &Connection) -> Result<Vec<Slice>> {
        connection
            .prepare_cached(&self.sql)?
            .query_map(params_from_iter(&self.values), records::slice)?
            .collect()
    }

    pub(crate) fn totals(
        &self,
        connection: &Connection,
    ) -> Result<BTreeMap<TemplateId, SliceTotals>> {
        connection
            .prepare_cached(&self.sql)?
            .query_map(params_from_iter(&self.values), |row| {
                Ok((records::template_id(row)?, totals(row)?))
            })?
            .collect()
    }
}

/// How the slices of a run or a selection stand that have one template each, by template.
pub(crate) fn count(of: SlicesOf<'_>, now: Instant) -> Question {
    let (column, value) = owner(of);
    Question {
        sql: format!(
            "SELECT template_id,
                 count(*) FILTER (WHERE state = 'open' AND owner IS NOT NULL AND lease_until > ?1) AS in_work,
                 count(*) FILTER (WHERE state = 'open') AS open,
                 count(*) FILTER (WHERE state = 'done') AS done,
                 count(*) FILTER (WHERE state = 'failed') AS failed,
                 min(planned) AS first_planned, sum(expected) AS expected,
                 sum(count_quarantined) FILTER (WHERE kind <> 'retry') AS fresh_quarantine,
                 max(failure) AS failure,
                 min(coalesce(moved, enqueued))
                     FILTER (WHERE state = 'failed' OR state = 'open' AND (sent_part >= part OR owner IS NOT NULL))
                     AS still_since,
                 sum(count_read) AS count_read, sum(count_written) AS count_written,
                 sum(count_inserted) AS count_inserted, sum(count_unchanged) AS count_unchanged,
                 sum(count_filtered) AS count_filtered, sum(count_quarantined) AS count_quarantined,
                 sum(count_deleted) AS count_deleted
             FROM atlas_slices WHERE members IS NULL AND {column} = ?2 GROUP BY template_id ORDER BY template_id"
        ),
        values: vec![now.to_string().into(), value.into()],
    }
}

/// The slices of a run or a selection that several templates share.
pub(crate) fn shared(of: SlicesOf<'_>) -> Question {
    let (column, value) = owner(of);
    let columns = slice_columns!();
    Question {
        sql: format!(
            "SELECT {columns} FROM atlas_slices WHERE members IS NOT NULL AND {column} = ?"
        ),
        values: vec![value.into()],
    }
}

/// The column that says whose a slice is, and its value.
fn owner(of: SlicesOf<'_>) -> (&'static str, String) {
    match of {
        SlicesOf::Selection(selection) => ("selection", selection.0.clone()),
        SlicesOf::Run(run) => ("run_id", run.to_owned()),
    }
}

fn totals(row: &Row<'_>) -> Result<SliceTotals> {
    let (open, in_work): (u64, u64) = (row.get("open")?, row.get("in_work")?);
    Ok(SliceTotals {
        waiting: open.saturating_sub(in_work),
        in_work,
        done: row.get("done")?,
        failed: row.get("failed")?,
        first_planned: records::time_or_null(row, "first_planned")?,
        expected: row.get("expected")?,
        counts: records::counts(row)?,
        fresh_quarantine: row
            .get::<_, Option<u64>>("fresh_quarantine")?
            .unwrap_or_default(),
        failure: row.get("failure")?,
        still_since: records::time_or_null(row, "still_since")?,
    })
}
