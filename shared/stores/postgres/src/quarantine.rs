//! The entries of the quarantine.

use std::borrow::Cow;
use std::collections::BTreeMap;

use atlas_engine::model::{QuarantineCount, QuarantineFilter, Reason, Rejected};
use atlas_openehr::id::{ObjectId, ObjectVersion};
use atlas_openehr::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::error::Failure;
use crate::records::{self, Time, storable};
use crate::session::Statement;

/// In order of id, so that two pages with the same objects wait for each other and never in a circle.
const REJECT: &str = "
    INSERT INTO {schema}.atlas_quarantine AS q
        (id, composition_uid, version, ehr_id, template_id, time_committed, change_type,
         reason, detail, run_id, since, tried, tries, tried_by)
    SELECT p.*, $10, $11, $11, 1, $10
    FROM ROWS FROM (
        pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4),
        pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7), pg_catalog.unnest($8),
        pg_catalog.unnest($9)) AS p
    ON CONFLICT (id) DO UPDATE SET
        composition_uid = excluded.composition_uid, version = excluded.version, ehr_id = excluded.ehr_id,
        template_id = excluded.template_id, time_committed = excluded.time_committed,
        change_type = excluded.change_type, reason = excluded.reason, detail = excluded.detail,
        tried = excluded.tried, tried_by = excluded.tried_by,
        run_id = CASE WHEN q.version {=} excluded.version THEN q.run_id ELSE excluded.run_id END,
        since = CASE WHEN q.version {=} excluded.version THEN q.since ELSE excluded.since END,
        tries = CASE WHEN q.version {<>} excluded.version THEN 1
                     WHEN q.tried_by {=} excluded.tried_by THEN q.tries
                     ELSE q.tries {+} 1 END
    WHERE excluded.version {>=} q.version";

const END: &str = "
    DELETE FROM {schema}.atlas_quarantine AS q
    USING ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS p (id, version)
    WHERE q.id {=} p.id AND q.version {<=} p.version";

/// Puts compositions into quarantine, unless there is an entry of a newer version.
pub(crate) fn reject<'a>(
    rejected: impl IntoIterator<Item = &'a Rejected>,
    run: &'a str,
    now: Instant,
) -> Statement<'a> {
    // One statement cannot change a row twice: of an object that comes twice the newest counts.
    let mut newest: BTreeMap<&ObjectId, &Rejected> = BTreeMap::new();
    for rejected in rejected {
        let version = |rejected: &Rejected| rejected.meta.uid.version();
        let entry = newest
            .entry(rejected.meta.uid.object_id())
            .or_insert(rejected);
        if version(rejected) >= version(entry) {
            *entry = rejected;
        }
    }
    let all: Vec<&Rejected> = newest.into_values().collect();
    // An entry must find its place whatever its row is like.
    let texts = |text: fn(&'a Rejected) -> &'a str| -> Vec<Cow<'a, str>> {
        all.iter()
            .map(|rejected| storable(text(rejected)))
            .collect()
    };
    let versions = all
        .iter()
        .map(|rejected| i64::from(rejected.meta.uid.version()));
    let times = all.iter().map(|rejected| Time(rejected.meta.committed));
    Statement::new(REJECT)
        .with(
            texts(|entry| entry.meta.uid.object_id().as_str()),
            Type::TEXT_ARRAY,
        )
        .with(texts(|entry| entry.meta.uid.as_str()), Type::TEXT_ARRAY)
        .with(versions.collect::<Vec<_>>(), Type::INT8_ARRAY)
        .with(texts(|entry| entry.meta.ehr.as_str()), Type::TEXT_ARRAY)
        .with(
            texts(|entry| entry.meta.template.as_str()),
            Type::TEXT_ARRAY,
        )
        .with(times.collect::<Vec<_>>(), Type::TIMESTAMPTZ_ARRAY)
        .with(texts(|entry| &entry.meta.change_type), Type::TEXT_ARRAY)
        .with(texts(|entry| entry.reason.name()), Type::TEXT_ARRAY)
        .with(texts(|entry| &entry.detail), Type::TEXT_ARRAY)
        .with(run, Type::TEXT)
        .with(Time(now), Type::TIMESTAMPTZ)
}

/// Ends the entries of versions, and of older ones of the same objects.
pub(crate) fn end<'a>(versions: impl Iterator<Item = &'a ObjectVersion>) -> Statement<'a> {
    let (ids, numbers): (Vec<Cow<'a, str>>, Vec<i64>) = versions
        .map(|version| {
            let id = storable(version.object_id.as_str());
            (id, i64::from(version.version))
        })
        .unzip();
    Statement::new(END)
        .with(ids, Type::TEXT_ARRAY)
        .with(numbers, Type::INT8_ARRAY)
}

/// At most `limit` entries, in the order of their places. Only the conditions that are asked for are in the statement, so that
/// an index serves each combination of them.
pub(crate) fn entries(filter: &QuarantineFilter, limit: usize) -> Result<Statement<'_>, Failure> {
    let mut entries = Statement::new("SELECT * FROM {schema}.atlas_quarantine WHERE true");
    if let Some(template) = &filter.template {
        entries = entries.and(
            " AND template_id {=} $",
            storable(template.as_str()),
            Type::TEXT,
        );
    }
    if let Some(object) = &filter.object {
        entries = entries.and(" AND id {=} $", storable(object.as_str()), Type::TEXT);
    }
    if let Some(before) = filter.tried_before {
        entries = entries.and(" AND tried {<} $", Time(before), Type::TIMESTAMPTZ);
    }
    if let Some(after) = &filter.after {
        entries = entries
            .and(
                " AND ROW (tried, id) {>} ROW ($, ",
                Time(after.tried),
                Type::TIMESTAMPTZ,
            )
            .and("$)", storable(after.object.as_str()), Type::TEXT);
    }
    Ok(entries.and(
        " ORDER BY tried, id LIMIT $",
        i64::try_from(limit)?,
        Type::INT8,
    ))
}

/// How many entries each template has for each reason, from an index alone.
pub(crate) fn count(tried_before: Option<Instant>) -> Statement<'static> {
    Statement::new(
        "SELECT template_id, reason, pg_catalog.count(*) AS entries, pg_catalog.min(since) AS oldest
         FROM {schema}.atlas_quarantine WHERE $1 IS NULL OR tried {<} $1
         GROUP BY template_id, reason",
    )
    .with(tried_before.map(Time), Type::TIMESTAMPTZ)
}

/// The answer to [`count`], by template and reason.
pub(crate) fn counts(rows: &[Row]) -> Result<Vec<QuarantineCount>, Failure> {
    let mut counts = rows
        .iter()
        .map(|row| {
            Ok(QuarantineCount {
                template: records::template_id(row)?,
                reason: records::known(row, "reason", Reason::from_name)?,
                entries: records::number(row, "entries")?,
                oldest: records::time(row, "oldest")?,
            })
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    counts.sort_by(|a, b| (&a.template, a.reason).cmp(&(&b.template, b.reason)));
    Ok(counts)
}
