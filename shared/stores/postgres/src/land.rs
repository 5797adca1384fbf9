//! Rows into their table, by the rules of [`judge`]; and which rows of a page PostgreSQL refuses whatever their neighbours are.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use atlas_engine::model::{Body, Format, Held, Known, Landed, Landing, NewRow, RefusedRow, judge};
use atlas_openehr::id::{EhrId, ObjectId};
use atlas_openehr::json::Checksum;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::error::Failure;
use crate::records::{self, Json, Time, storable};
use crate::session::{Session, Statement};

type Result<T> = std::result::Result<T, Failure>;

/// Content in one statement, in bytes: it lies in memory as a whole, here and on the server.
const MOST_BYTES: usize = 4 << 20;

/// Locked in order of id, so that two pages with the same objects wait for each other and never in a circle.
const HELD: &str = "
    SELECT id, version, checksum, ehr_id, template_id, asked, deleted_at, time_committed, export_mode
    FROM {schema}.compositions WHERE id {=} ANY ($1) ORDER BY id FOR UPDATE";

/// Rows come in order of id, for the same reason. Only what was judged is replaced, and it is locked since: a row that another
/// transaction put there meanwhile stays as it is, and is not among the answers.
const CONTENT: &str = "
    INSERT INTO {schema}.compositions AS c
        (id, composition_uid, version, ehr_id, template_id, time_committed, change_type, content, checksum, asked,
         export_mode, exported_at, run_id, atlas_version)
    SELECT p.*, $11, $12, $13, $14
    FROM ROWS FROM (
        pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4),
        pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7), pg_catalog.unnest($8),
        pg_catalog.unnest($9), pg_catalog.unnest($10)) AS p
    ON CONFLICT (id) DO UPDATE SET
        composition_uid = excluded.composition_uid, version = excluded.version, ehr_id = excluded.ehr_id,
        template_id = excluded.template_id, time_committed = excluded.time_committed,
        change_type = excluded.change_type, content = excluded.content, checksum = excluded.checksum,
        asked = excluded.asked, export_mode = excluded.export_mode, exported_at = excluded.exported_at,
        run_id = excluded.run_id, atlas_version = excluded.atlas_version, deleted_at = NULL, deleted_reason = NULL
    WHERE c.id {=} ANY ($15)
    RETURNING id";

const TOMBSTONES: &str = "
    UPDATE {schema}.compositions AS c SET
        deleted_at = p.deleted_at, deleted_reason = p.deleted_reason, asked = p.asked, exported_at = $5, run_id = $6,
        atlas_version = $7
    FROM ROWS FROM (
        pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4)
    ) AS p (id, deleted_at, deleted_reason, asked)
    WHERE c.id {=} p.id
    RETURNING c.id";

const ASKED: &str = "
    UPDATE {schema}.compositions AS c SET asked = p.asked
    FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS p (id, asked)
    WHERE c.id {=} p.id
    RETURNING c.id";

/// What the copy holds of objects, locked until the transaction ends.
pub(crate) fn find_held<'a>(objects: impl Iterator<Item = &'a ObjectId>) -> Statement<'a> {
    let ids: Vec<Cow<'a, str>> = objects.map(|object| storable(object.as_str())).collect();
    Statement::new(HELD).with(ids, Type::TEXT_ARRAY)
}

/// The answer to [`find_held`].
pub(crate) fn held(rows: &[Row]) -> Result<HashMap<ObjectId, Held>> {
    let rows = rows.iter();
    rows.map(|row| {
        let held = Held {
            known: known(row)?,
            committed: records::time(row, "time_committed")?,
            format: records::known(row, "export_mode", Format::from_name)?,
        };
        Ok((ObjectId::new(row.try_get("id")?), held))
    })
    .collect()
}

/// What the copy holds of an object.
pub(crate) fn known(row: &Row) -> Result<Known> {
    Ok(Known {
        version: records::number(row, "version")?,
        checksum: Some(checksum(row)?),
        ehr: EhrId::new(row.try_get("ehr_id")?),
        template: records::template_id(row)?,
        asked: records::time(row, "asked")?,
        deleted: records::time_or_null(row, "deleted_at")?.is_some(),
    })
}

pub(crate) fn checksum(row: &Row) -> Result<Checksum> {
    records::known(row, "checksum", Checksum::from_hex)
}

/// What landing all rows of a page led to.
pub(crate) enum Outcome {
    /// For each row of the batch, in its order.
    Landed(Vec<Landed>),
    /// These rows cannot be held. What the transaction has done is to be undone.
    Refused(Vec<RefusedRow>),
}

/// Lands all rows of a page. `held` is what was found of their objects, which are locked since.
///
/// What one row does stays with that row: statements that fail are divided until the culprit stands alone. That one is
/// refused if some other row can be written; an error that every row meets is the store's.
pub(crate) async fn land_rows(
    session: &mut Session<'_>,
    landing: &Landing<'_>,
    mut held: HashMap<ObjectId, Held>,
) -> Result<Outcome> {
    let rows = &landing.batch.rows;
    let mut landed = vec![Landed::Unchanged; rows.len()];
    let mut pass = Pass::default();
    let mut open: Vec<usize> = (0..rows.len()).collect();
    open.sort_unstable_by(|a, b| rows[*a].key.object.cmp(&rows[*b].key.object));
    loop {
        let mut changes = Vec::new();
        for index in open {
            let row = &rows[index];
            let there = held.get(&row.key.object);
            landed[index] = judge(there, row, landing.format);
            changes.extend(change(index, row, there, &landed[index]));
        }
        let late = pass.write(session, landing, &changes).await?;
        if !pass.refused.is_empty() {
            pass.refused.sort_unstable_by_key(|refused| refused.index);
            return Ok(Outcome::Refused(pass.refused));
        }
        if late.is_empty() {
            return Ok(Outcome::Landed(landed));
        }
        // Another transaction has put these there meanwhile: they are judged again, by what it put.
        let objects = late.iter().map(|change| &change.row.key.object);
        let found = session.query_all(&[find_held(objects)]).await?;
        held = self::held(found.first().map(Vec::as_slice).unwrap_or_default())?;
        for change in &late {
            if !held.contains_key(&change.row.key.object) {
                pass.refuse(session, landing, change, Failure::LeftOut)
                    .await?;
            }
        }
        open = late.iter().map(|change| change.index).collect();
    }
}

/// A row that changes the table.
#[derive(Clone, Copy)]
struct Change<'a> {
    /// Its place in the batch.
    index: usize,
    row: &'a NewRow,
    kind: ChangeKind,
    /// Whether its object was found, and is locked.
    was_held: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ChangeKind {
    Content,
    Tombstone,
    Asked,
}

fn change<'a>(
    index: usize,
    row: &'a NewRow,
    held: Option<&Held>,
    landed: &Landed,
) -> Option<Change<'a>> {
    let kind = match (landed, &row.body) {
        (Landed::New | Landed::Replaced(_), Body::Content { .. }) => ChangeKind::Content,
        (Landed::Replaced(_), Body::Deleted(_)) => ChangeKind::Tombstone,
        (Landed::Unchanged, _) if held.is_some_and(|held| held.known.asked < row.asked) => {
            ChangeKind::Asked
        }
        _ => return None,
    };
    Some(Change {
        index,
        row,
        kind,
        was_held: held.is_some(),
    })
}

/// What is known so far of a page.
#[derive(Default)]
struct Pass {
    /// Rows that PostgreSQL does not take.
    refused: Vec<RefusedRow>,
    /// Whether PostgreSQL was seen to take any row.
    can_write: bool,
}

impl Pass {
    /// Answers the rows that another transaction put there first.
    async fn write<'a>(
        &mut self,
        session: &mut Session<'_>,
        landing: &Landing<'_>,
        changes: &[Change<'a>],
    ) -> Result<Vec<Change<'a>>> {
        let mut late = Vec::new();
        let mut open = ranges(landing, changes);
        open.reverse();
        while let Some(range) = open.pop() {
            let some = changes.get(range.clone()).unwrap_or_default();
            let failure = match try_write(session, landing, some).await {
                Ok(written) => {
                    self.can_write |= !written.is_empty();
                    for change in some {
                        if written.contains(change.row.key.object.as_str()) {
                            continue;
                        }
                        if change.was_held {
                            self.refuse(session, landing, change, Failure::LeftOut)
                                .await?;
                        } else {
                            late.push(*change);
                        }
                    }
                    continue;
                }
                Err(failure) => failure,
            };
            // Where the session is gone, nothing can be said about rows.
            if failure.of_a_row().is_none() || session.undo().await.is_err() {
                return Err(failure);
            }
            // A server in trouble is not asked row by row.
            if let ([first, _, ..], true) = (some, failure.may_be_of_the_server())
                && !self.can_write
            {
                self.can_write = takes_another(session, landing, first.row, 0).await?;
                if !self.can_write {
                    return Err(failure);
                }
            }
            if let [change] = some {
                self.refuse(session, landing, change, failure).await?;
            } else {
                let middle = range.start + range.len() / 2;
                open.push(middle..range.end);
                open.push(range.start..middle);
            }
        }
        Ok(late)
    }

    /// Notes a row that met a failure alone. Where the server may lack time or room, another row has to be as large to show that
    /// it does not.
    ///
    /// # Errors
    /// The failure, if no other row can be written either.
    async fn refuse(
        &mut self,
        session: &mut Session<'_>,
        landing: &Landing<'_>,
        change: &Change<'_>,
        failure: Failure,
    ) -> Result<()> {
        let lands = if failure.may_be_of_the_server() {
            let size = size(landing, change);
            takes_another(session, landing, change.row, size).await?
        } else {
            self.can_write || takes_another(session, landing, change.row, 0).await?
        };
        self.can_write |= lands;
        match failure.of_a_row() {
            Some(detail) if lands => {
                self.refused.push(RefusedRow {
                    index: change.index,
                    detail,
                });
                Ok(())
            }
            _ => Err(failure),
        }
    }
}

/// The changes that go to the server together.
fn ranges(landing: &Landing<'_>, changes: &[Change<'_>]) -> Vec<Range<usize>> {
    let mut all: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (i, change) in changes.iter().enumerate() {
        let size = size(landing, change);
        bytes += size;
        match all.last_mut() {
            Some(last) if bytes <= MOST_BYTES => last.end = i + 1,
            _ => {
                bytes = size;
                all.push(i..i + 1);
            }
        }
    }
    all
}

/// Bytes of content.
fn size(landing: &Landing<'_>, change: &Change<'_>) -> usize {
    match change.kind {
        ChangeKind::Content => landing.batch.content(change.row).len(),
        ChangeKind::Tombstone | ChangeKind::Asked => 0,
    }
}

/// The ids of the rows that were written.
async fn try_write(
    session: &mut Session<'_>,
    landing: &Landing<'_>,
    changes: &[Change<'_>],
) -> Result<HashSet<String>> {
    let of = |kind| -> Vec<Change<'_>> {
        let changes = changes.iter().filter(|change| change.kind == kind);
        changes.copied().collect()
    };
    let mut statements = Vec::new();
    let contents = of(ChangeKind::Content);
    if !contents.is_empty() {
        statements.push(write_contents(landing, &contents));
    }
    let tombstones = of(ChangeKind::Tombstone);
    if !tombstones.is_empty() {
        statements.push(write_tombstones(landing, &tombstones));
    }
    let asked = of(ChangeKind::Asked);
    if !asked.is_empty() {
        let (ids, times) = (column(&asked, id), column(&asked, |row| Time(row.asked)));
        statements.push(
            Statement::new(ASKED)
                .with(ids, Type::TEXT_ARRAY)
                .with(times, Type::TIMESTAMPTZ_ARRAY),
        );
    }
    let answers = session.attempt(&statements).await?;
    let written = answers.iter().flatten();
    Ok(written
        .map(|row| row.try_get(0))
        .collect::<std::result::Result<_, _>>()?)
}

/// A column of the rows to change.
fn column<'a, T>(changes: &[Change<'a>], value: impl Fn(&'a NewRow) -> T) -> Vec<T> {
    changes.iter().map(|change| value(change.row)).collect()
}

fn id(row: &NewRow) -> &str {
    row.key.object.as_str()
}

fn write_contents<'a>(landing: &Landing<'a>, changes: &[Change<'a>]) -> Statement<'a> {
    let batch = landing.batch;
    let checksum = |row: &NewRow| match &row.body {
        Body::Content { checksum, .. } => checksum.to_string(),
        Body::Deleted(_) => String::new(),
    };
    let locked = changes.iter().filter(|change| change.was_held);
    let locked: Vec<&str> = locked.map(|change| id(change.row)).collect();
    Contents {
        ids: column(changes, id),
        uids: column(changes, |row| row.uid.as_str()),
        versions: column(changes, |row| i64::from(row.uid.version())),
        ehrs: column(changes, |row| row.key.ehr.as_str()),
        templates: column(changes, |row| row.key.template.as_str()),
        times: column(changes, |row| Time(row.meta.committed)),
        change_types: column(changes, |row| row.meta.change_type.as_str()),
        contents: column(changes, |row| Json(batch.content(row))),
        checksums: column(changes, checksum),
        asked: column(changes, |row| Time(row.asked)),
        locked,
    }
    .statement(landing)
}

fn write_tombstones<'a>(landing: &Landing<'a>, changes: &[Change<'a>]) -> Statement<'a> {
    let gone = changes.iter().filter_map(|change| match &change.row.body {
        Body::Deleted(deleted) => Some(*deleted),
        Body::Content { .. } => None,
    });
    let (times, reasons): (Vec<Time>, Vec<&str>) = gone
        .map(|deleted| (Time(deleted.at), deleted.why.name()))
        .unzip();
    Statement::new(TOMBSTONES)
        .with(column(changes, id), Type::TEXT_ARRAY)
        .with(times, Type::TIMESTAMPTZ_ARRAY)
        .with(reasons, Type::TEXT_ARRAY)
        .with(
            column(changes, |row| Time(row.asked)),
            Type::TIMESTAMPTZ_ARRAY,
        )
        .with(Time(landing.now), Type::TIMESTAMPTZ)
        .with(landing.run, Type::TEXT)
        .with(env!("CARGO_PKG_VERSION"), Type::TEXT)
}

/// Whether the store takes a row beside one that it refused: one of so many bytes and of the same template, by an EHR of its own
/// or by the same one, or one that has nothing in common with it. Nothing of it stays.
async fn takes_another(
    session: &mut Session<'_>,
    landing: &Landing<'_>,
    refused: &NewRow,
    size: usize,
) -> Result<bool> {
    const NOBODY: &str = "00000000-0000-0000-0000-000000000000";
    let template = refused.key.template.as_str();
    let content = incompressible(size);
    for (ehr, template) in [
        (NOBODY, template),
        (refused.key.ehr.as_str(), template),
        (NOBODY, NOBODY),
    ] {
        let trial = Contents {
            ids: vec![NOBODY],
            uids: vec!["00000000-0000-0000-0000-000000000000::atlas::1"],
            versions: vec![1],
            ehrs: vec![ehr],
            templates: vec![template],
            times: vec![Time(refused.meta.committed)],
            change_types: vec!["creation"],
            contents: vec![Json(&content)],
            checksums: vec![
                "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a".to_owned(),
            ],
            asked: vec![Time(refused.asked)],
            locked: Vec::new(),
        };
        match session.trial(&trial.statement(landing)).await? {
            Ok(written) if written.is_empty() => {}
            Ok(_) => return Ok(true),
            Err(failure) if failure.of_a_row().is_some() => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(false)
}

/// A content of about so many bytes that takes as much room as any.
fn incompressible(size: usize) -> String {
    let mut random = fastrand::Rng::with_seed(0);
    let filler: String = (0..size).map(|_| random.alphanumeric()).collect();
    format!(r#"{{"filler":"{filler}"}}"#)
}

/// Rows with content, column by column.
struct Contents<'a> {
    ids: Vec<&'a str>,
    uids: Vec<&'a str>,
    versions: Vec<i64>,
    ehrs: Vec<&'a str>,
    templates: Vec<&'a str>,
    times: Vec<Time>,
    change_types: Vec<&'a str>,
    contents: Vec<Json<'a>>,
    checksums: Vec<String>,
    asked: Vec<Time>,
    /// The ids of those that replace what was found.
    locked: Vec<&'a str>,
}

impl<'a> Contents<'a> {
    fn statement(self, landing: &Landing<'a>) -> Statement<'a> {
        Statement::new(CONTENT)
            .with(self.ids, Type::TEXT_ARRAY)
            .with(self.uids, Type::TEXT_ARRAY)
            .with(self.versions, Type::INT8_ARRAY)
            .with(self.ehrs, Type::TEXT_ARRAY)
            .with(self.templates, Type::TEXT_ARRAY)
            .with(self.times, Type::TIMESTAMPTZ_ARRAY)
            .with(self.change_types, Type::TEXT_ARRAY)
            .with(self.contents, Type::JSONB_ARRAY)
            .with(self.checksums, Type::TEXT_ARRAY)
            .with(self.asked, Type::TIMESTAMPTZ_ARRAY)
            .with(landing.format.name(), Type::TEXT)
            .with(Time(landing.now), Type::TIMESTAMPTZ)
            .with(landing.run, Type::TEXT)
            .with(env!("CARGO_PKG_VERSION"), Type::TEXT)
            .with(self.locked, Type::TEXT_ARRAY)
    }
}
