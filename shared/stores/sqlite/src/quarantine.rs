//! The entries of the quarantine.

use atlas_engine::model::{QuarantineCount, QuarantineFilter, Quarantined, Reason, Rejected};
use atlas_openehr::id::{ObjectVersion, TemplateId};
use atlas_openehr::time::Instant;
use rusqlite::{Connection, Result, ToSql, params};

use crate::records::{self, Time};

/// Puts a composition into quarantine, unless there is an entry of a newer version of it.
pub(crate) fn reject(
    connection: &Connection,
    rejected: &Rejected,
    run: &str,
    now: Instant,
) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO atlas_quarantine AS q
                 (id, composition_uid, version, ehr_id, template_id, time_committed, change_type,
                  reason, detail, run_id, since, tried, tries, tried_by)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11, 1, ?10)
             ON CONFLICT (id) DO UPDATE SET
                 composition_uid = excluded.composition_uid, version = excluded.version, ehr_id = excluded.ehr_id,
                 template_id = excluded.template_id, time_committed = excluded.time_committed,
                 change_type = excluded.change_type, reason = excluded.reason, detail = excluded.detail,
                 tried = excluded.tried, tried_by = excluded.tried_by,
                 run_id = iif(q.version = excluded.version, q.run_id, excluded.run_id),
                 since = iif(q.version = excluded.version, q.since, excluded.since),
                 tries = iif(q.version = excluded.version, q.tries + (q.tried_by <> excluded.tried_by), 1)
             WHERE excluded.version >= q.version",
        )?
        .execute(params![
            rejected.meta.uid.object_id().as_str(),
            rejected.meta.uid.as_str(),
            rejected.meta.uid.version(),
            rejected.meta.ehr.as_str(),
            rejected.meta.template.as_str(),
            Time(rejected.meta.committed),
            rejected.meta.change_type,
            rejected.reason.name(),
            rejected.detail,
            run,
            Time(now),
        ])?;
    Ok(())
}

/// Ends the entry of a version, or of an older one of the same object.
pub(crate) fn end(connection: &Connection, version: &ObjectVersion) -> Result<()> {
    connection
        .prepare_cached("DELETE FROM atlas_quarantine WHERE id = ?1 AND version <= ?2")?
        .execute(params![version.object_id.as_str(), version.version])?;
    Ok(())
}

/// At most `limit` entries, in the order of their places. Only the conditions that are asked for are in the statement, so that
/// an index serves each combination of them.
pub(crate) fn entries(
    connection: &Connection,
    filter: &QuarantineFilter,
    limit: usize,
) -> Result<Vec<Quarantined>> {
    let template = filter.template.as_ref().map(TemplateId::as_str);
    let object = filter.object.as_ref().map(|object| object.as_str());
    let before = filter.tried_before.map(Time);
    let after = filter
        .after
        .as_ref()
        .map(|place| (Time(place.tried), place.object.as_str()));
    let mut conditions = vec!["true"];
    let mut values: Vec<(&str, &dyn ToSql)> = vec![(":limit", &limit)];
    if let Some(template) = &template {
        conditions.push("template_id = :template");
        values.push((":template", template));
    }
    if let Some(object) = &object {
        conditions.push("id = :object");
        values.push((":object", object));
    }
    if let Some(before) = &before {
        conditions.push("tried < :before");
        values.push((":before", before));
    }
    if let Some((tried, object)) = &after {
        conditions.push("(tried, id) > (:after, :after_object)");
        values.push((":after", tried));
        values.push((":after_object", object));
    }
    let sql = format!(
        "SELECT {} FROM atlas_quarantine WHERE {} ORDER BY tried, id LIMIT :limit",
        records::quarantine_columns!(),
        conditions.join(" AND ")
    );
    connection
        .prepare_cached(&sql)?
        .query_map(values.as_slice(), records::quarantined)?
        .collect()
}

/// How many entries each template has for each reason, from an index alone.
pub(crate) fn counts(
    connection: &Connection,
    tried_before: Option<Instant>,
) -> Result<Vec<QuarantineCount>> {
    connection
        .prepare_cached(
            "SELECT template_id, reason, count(*) AS entries, min(since) AS oldest FROM atlas_quarantine
             WHERE ?1 IS NULL OR tried < ?1 GROUP BY template_id, reason ORDER BY template_id, reason",
        )?
        .query_map([tried_before.map(Time)], |row| {
            Ok(QuarantineCount {
                template: records::template_id(row)?,
                reason: records::known(row, "reason", Reason::from_name)?,
                entries: row.get("entries")?,
                oldest: records::time(row, "oldest")?,
            })
        })?
        .collect()
}
