//! A page and its checkpoint in one transaction, whose statements never let an older version win.

use std::ops::Range;

use atlas_engine::model::{Commit, Committed, NewRow, Reason, Rejected};
use deadpool_postgres::Pool;
use tokio_postgres::types::Type;

use crate::error::{Failure, State};
use crate::records::{self, Json, Time};
use crate::session::{Names, Parameter, Session};

type Result<T> = std::result::Result<T, Failure>;

/// Content in one statement, in bytes: it lies in memory as a whole, here and on the server.
const MOST_BYTES: usize = 4 << 20;

/// Rows come in order of id, so that two pages with the same objects wait for each other and never in a circle.
const LAND: &str = "
    WITH landed AS (
        INSERT INTO {schema}.compositions AS c
            (id, composition_uid, version, ehr_id, template_id, time_committed, change_type, content, checksum,
             export_mode, exported_at, run_id, atlas_version)
        SELECT p.*, $10, $11, $12, $13
        FROM ROWS FROM (
            pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4),
            pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7), pg_catalog.unnest($8),
            pg_catalog.unnest($9)) AS p
        ON CONFLICT (id) DO UPDATE SET
            composition_uid = excluded.composition_uid, version = excluded.version, ehr_id = excluded.ehr_id,
            template_id = excluded.template_id, time_committed = excluded.time_committed,
            change_type = excluded.change_type, content = excluded.content, checksum = excluded.checksum,
            export_mode = excluded.export_mode, exported_at = excluded.exported_at, run_id = excluded.run_id,
            atlas_version = excluded.atlas_version, deleted_at = NULL
        WHERE excluded.version {>} c.version
           OR (excluded.version {=} c.version AND c.deleted_at IS NULL
               AND (excluded.export_mode {<>} c.export_mode OR excluded.checksum {<>} c.checksum))
        RETURNING 1
    ), ended AS (
        DELETE FROM {schema}.atlas_quarantine AS q
        USING ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($3)) AS p (id, version)
        WHERE q.id {=} p.id AND q.version {<=} p.version
    )
    SELECT pg_catalog.count(*) FROM landed";

const REJECT: &str = "
    INSERT INTO {schema}.atlas_quarantine AS q
        (id, composition_uid, version, ehr_id, template_id, time_committed, change_type,
         reason, detail, run_id, since, tried, tries)
    SELECT p.*, $10, $11, $11, 1
    FROM ROWS FROM (
        pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4),
        pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7), pg_catalog.unnest($8),
        pg_catalog.unnest($9)
    ) AS p (id, composition_uid, version, ehr_id, template_id, time_committed, change_type, reason, detail)
    WHERE NOT EXISTS (SELECT FROM {schema}.compositions AS c WHERE c.id {=} p.id AND c.version {>} p.version)
    ORDER BY p.id COLLATE pg_catalog.\"C\"
    ON CONFLICT (id) DO UPDATE SET
        composition_uid = excluded.composition_uid, version = excluded.version, ehr_id = excluded.ehr_id,
        template_id = excluded.template_id, time_committed = excluded.time_committed,
        change_type = excluded.change_type, reason = excluded.reason, detail = excluded.detail,
        tried = excluded.tried,
        run_id = CASE WHEN q.version {=} excluded.version THEN q.run_id ELSE excluded.run_id END,
        since = CASE WHEN q.version {=} excluded.version THEN q.since ELSE excluded.since END,
        tries = CASE WHEN q.version {=} excluded.version THEN q.tries {+} 1 ELSE 1 END
    WHERE excluded.version {>=} q.version";

/// See [`Store::commit`](atlas_engine::ports::Store::commit).
pub(crate) async fn commit(pool: &Pool, names: &Names, commit: &Commit<'_>) -> Result<Committed> {
    let mut session = Session::new(pool, names).await?;
    let Some(stands) = records::lock_slice(&mut session, &commit.slice.id).await? else {
        session.commit().await?;
        return Ok(Committed::Lost);
    };
    if !commit.applies_to(&stands) {
        session.commit().await?;
        return Ok(if commit.was_applied_to(&stands) {
            Committed::Done(stands)
        } else {
            Committed::Lost
        });
    }

    let Landed { written, refused } = land(&mut session, commit).await?;
    let mut slice = commit.apply(stands, written);
    let refused_rows = refused.len() as u64;
    slice.counts.unchanged = slice.counts.unchanged.saturating_sub(refused_rows);
    slice.counts.quarantined += refused_rows;
    let unstorable = refused.into_iter().map(|refused| Rejected {
        meta: refused.row.meta.clone(),
        reason: Reason::Unstorable,
        detail: format!("PostgreSQL refused this row: {}", refused.state),
    });
    let rejected: Vec<Rejected> = commit.rejected.iter().cloned().chain(unstorable).collect();
    quarantine(&mut session, commit, &rejected).await?;
    records::update_slice(session, &slice).await?;
    Ok(Committed::Done(slice))
}

/// What became of the rows of a page.
struct Landed<'a> {
    /// Rows that were new, or replaced one.
    written: u64,
    /// Rows that PostgreSQL does not take.
    refused: Vec<Refused<'a>>,
}

struct Refused<'a> {
    row: &'a NewRow,
    state: State,
}

/// Writes the rows that the store lacks, and ends the quarantine of all of them.
///
/// What one row does stays with that row: a statement that fails is divided until the culprit stands alone. That one is
/// refused if some other row can be written; an error that every row meets is the store's.
async fn land<'a>(session: &mut Session<'_>, commit: &'a Commit<'_>) -> Result<Landed<'a>> {
    let mut rows: Vec<&NewRow> = commit.batch.rows.iter().collect();
    rows.sort_by_key(|row| row.meta.uid.object_id());
    let mut landed = Landed {
        written: 0,
        refused: Vec::new(),
    };
    let mut can_write = false;
    let mut open = statements(&rows);
    open.reverse();
    while let Some(range) = open.pop() {
        let some = rows.get(range.clone()).unwrap_or_default();
        let failure = match try_land(session, commit, some).await {
            Ok(written) => {
                landed.written += written;
                can_write = true;
                continue;
            }
            Err(failure) => failure,
        };
        let Some(state) = failure.state().filter(State::may_be_of_a_row) else {
            return Err(failure);
        };
        session.undo().await?;
        if let [row] = *some {
            if !can_write && !takes_another(session, commit, row).await? {
                return Err(failure);
            }
            can_write = true;
            landed.refused.push(Refused { row, state });
        } else {
            let middle = range.start + range.len() / 2;
            open.push(middle..range.end);
            open.push(range.start..middle);
        }
    }
    Ok(landed)
}

/// The rows of each statement.
fn statements(rows: &[&NewRow]) -> Vec<Range<usize>> {
    let mut all: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (i, row) in rows.iter().enumerate() {
        bytes += row.content.len();
        match all.last_mut() {
            Some(last) if bytes <= MOST_BYTES => last.end = i + 1,
            _ => {
                bytes = row.content.len();
                all.push(i..i + 1);
            }
        }
    }
    all
}

/// How many rows were new, or replaced one.
async fn try_land(session: &mut Session<'_>, commit: &Commit<'_>, rows: &[&NewRow]) -> Result<u64> {
    let checksums: Vec<String> = rows.iter().map(|row| row.checksum.to_string()).collect();
    let columns = Columns {
        ids: rows
            .iter()
            .map(|row| row.meta.uid.object_id().as_str())
            .collect(),
        uids: rows.iter().map(|row| row.meta.uid.as_str()).collect(),
        versions: rows
            .iter()
            .map(|row| i64::from(row.meta.uid.version()))
            .collect(),
        ehrs: rows.iter().map(|row| row.meta.ehr.as_str()).collect(),
        templates: rows.iter().map(|row| row.meta.template.as_str()).collect(),
        times: rows.iter().map(|row| Time(row.meta.committed)).collect(),
        change_types: rows
            .iter()
            .map(|row| row.meta.change_type.as_str())
            .collect(),
        contents: rows
            .iter()
            .map(|row| Json(commit.batch.content(row)))
            .collect(),
        checksums: checksums.iter().map(String::as_str).collect(),
        ..Columns::new(commit)
    };
    let answer = session.attempt(LAND, &columns.parameters()).await?;
    let landed: i64 = answer
        .first()
        .ok_or(Failure::Unknown("count"))?
        .try_get(0)?;
    Ok(u64::try_from(landed)?)
}

/// Whether the store takes a row beside one that it refused: a small one of the same template, by an EHR of its own or by the
/// same one. Nothing of it stays.
async fn takes_another(
    session: &mut Session<'_>,
    commit: &Commit<'_>,
    refused: &NewRow,
) -> Result<bool> {
    const NOBODY: &str = "00000000-0000-0000-0000-000000000000";
    for ehr in [NOBODY, refused.meta.ehr.as_str()] {
        let trial = Columns {
            ids: vec![NOBODY],
            uids: vec!["00000000-0000-0000-0000-000000000000::atlas::1"],
            versions: vec![1],
            ehrs: vec![ehr],
            templates: vec![refused.meta.template.as_str()],
            times: vec![Time(refused.meta.committed)],
            change_types: vec!["creation"],
            contents: vec![Json("{}")],
            checksums: vec!["44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"],
            ..Columns::new(commit)
        };
        match session.would_work(LAND, &trial.parameters()).await? {
            Ok(()) => return Ok(true),
            Err(failure) if failure.state().is_some_and(|state| state.may_be_of_a_row()) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(false)
}

/// Rows, column by column, and what they have in common.
struct Columns<'a> {
    ids: Vec<&'a str>,
    uids: Vec<&'a str>,
    versions: Vec<i64>,
    ehrs: Vec<&'a str>,
    templates: Vec<&'a str>,
    times: Vec<Time>,
    change_types: Vec<&'a str>,
    contents: Vec<Json<'a>>,
    checksums: Vec<&'a str>,
    format: &'static str,
    now: Time,
    run: &'a str,
}

impl<'a> Columns<'a> {
    /// No row yet.
    fn new(commit: &Commit<'a>) -> Self {
        Self {
            ids: Vec::new(),
            uids: Vec::new(),
            versions: Vec::new(),
            ehrs: Vec::new(),
            templates: Vec::new(),
            times: Vec::new(),
            change_types: Vec::new(),
            contents: Vec::new(),
            checksums: Vec::new(),
            format: commit.format.name(),
            now: Time(commit.now),
            run: commit.run,
        }
    }

    /// The parameters of [`LAND`].
    fn parameters(&self) -> [Parameter<'_>; 13] {
        [
            (&self.ids, Type::TEXT_ARRAY),
            (&self.uids, Type::TEXT_ARRAY),
            (&self.versions, Type::INT8_ARRAY),
            (&self.ehrs, Type::TEXT_ARRAY),
            (&self.templates, Type::TEXT_ARRAY),
            (&self.times, Type::TIMESTAMPTZ_ARRAY),
            (&self.change_types, Type::TEXT_ARRAY),
            (&self.contents, Type::JSONB_ARRAY),
            (&self.checksums, Type::TEXT_ARRAY),
            (&self.format, Type::TEXT),
            (&self.now, Type::TIMESTAMPTZ),
            (&self.run, Type::TEXT),
            (&env!("CARGO_PKG_VERSION"), Type::TEXT),
        ]
    }
}

/// Puts compositions into quarantine, unless the store or the quarantine is about a newer version of one.
async fn quarantine(
    session: &mut Session<'_>,
    commit: &Commit<'_>,
    rejected: &[Rejected],
) -> Result<()> {
    if rejected.is_empty() {
        return Ok(());
    }
    let texts = |text: fn(&Rejected) -> &str| -> Vec<String> {
        // An entry must find its place whatever its row is like, and no text of PostgreSQL holds a zero.
        let storable = rejected
            .iter()
            .map(|rejected| text(rejected).replace('\0', "\u{fffd}"));
        storable.collect()
    };
    let versions: Vec<i64> = (rejected
        .iter()
        .map(|rejected| i64::from(rejected.meta.uid.version())))
    .collect();
    let times: Vec<Time> = (rejected
        .iter()
        .map(|rejected| Time(rejected.meta.committed)))
    .collect();
    session
        .execute(
            REJECT,
            &[
                (
                    &texts(|rejected| rejected.meta.uid.object_id().as_str()),
                    Type::TEXT_ARRAY,
                ),
                (
                    &texts(|rejected| rejected.meta.uid.as_str()),
                    Type::TEXT_ARRAY,
                ),
                (&versions, Type::INT8_ARRAY),
                (
                    &texts(|rejected| rejected.meta.ehr.as_str()),
                    Type::TEXT_ARRAY,
                ),
                (
                    &texts(|rejected| rejected.meta.template.as_str()),
                    Type::TEXT_ARRAY,
                ),
                (&times, Type::TIMESTAMPTZ_ARRAY),
                (
                    &texts(|rejected| &rejected.meta.change_type),
                    Type::TEXT_ARRAY,
                ),
                (&texts(|rejected| rejected.reason.name()), Type::TEXT_ARRAY),
                (&texts(|rejected| &rejected.detail), Type::TEXT_ARRAY),
                (&commit.run, Type::TEXT),
                (&Time(commit.now), Type::TIMESTAMPTZ),
            ],
        )
        .await?;
    Ok(())
}
