//! Rows into their table, by the rules of [`judge`]; and which rows of a page SQLite refuses whatever their neighbours are.

use atlas_engine::model::{
    Body, Deleted, Format, Held, Known, Landed, Landing, NewRow, RefusedRow, judge,
};
use atlas_openehr::id::ObjectId;
use atlas_openehr::json::Checksum;
use rusqlite::{Connection, OptionalExtension, Result, Row, params};

use crate::error::{class, may_be_of_a_row};
use crate::records::{self, Time, one_row};

/// The columns that [`known`] reads.
macro_rules! known_columns {
    () => {
        "version, checksum, ehr_id, template_id, asked, deleted_at"
    };
}
pub(crate) use known_columns;

/// Lands all rows of a page, in a transaction of the caller's.
pub(crate) fn land_rows(connection: &Connection, landing: &Landing<'_>) -> Result<Vec<Landed>> {
    let rows = &landing.batch.rows;
    // Neighbours in the index come one after the other: each of its pages is looked for once.
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_unstable_by(|a, b| rows[*a].key.object.cmp(&rows[*b].key.object));
    let mut landed = vec![Landed::Unchanged; rows.len()];
    for index in order {
        landed[index] = land_row(connection, landing, &rows[index])?;
    }
    Ok(landed)
}

fn land_row(connection: &Connection, landing: &Landing<'_>, row: &NewRow) -> Result<Landed> {
    let held = held(connection, &row.key.object)?;
    let landed = judge(held.as_ref(), row, landing.format);
    match (&landed, &row.body) {
        (Landed::New | Landed::Replaced(_), Body::Content { checksum, .. }) => {
            write_content(connection, landing, row, *checksum)?;
        }
        (Landed::Replaced(_), Body::Deleted(deleted)) => {
            write_tombstone(connection, landing, row, *deleted)?;
        }
        (Landed::Unchanged, _) if held.is_some_and(|held| held.known.asked < row.asked) => {
            connection
                .prepare_cached("UPDATE compositions SET asked = ?2 WHERE id = ?1")?
                .execute(params![row.key.object.as_str(), Time(row.asked)])
                .and_then(one_row)?;
        }
        _ => {}
    }
    Ok(landed)
}

fn held(connection: &Connection, object: &ObjectId) -> Result<Option<Held>> {
    connection
        .prepare_cached(concat!(
            "SELECT ",
            known_columns!(),
            ", time_committed, export_mode FROM compositions WHERE id = ?1"
        ))?
        .query_row([object.as_str()], |row| {
            Ok(Held {
                known: known(row)?,
                committed: records::time(row, "time_committed")?,
                format: records::known(row, "export_mode", Format::from_name)?,
            })
        })
        .optional()
}

/// What the copy holds of an object.
pub(crate) fn known(row: &Row<'_>) -> Result<Known> {
    Ok(Known {
        version: row.get("version")?,
        checksum: Some(checksum(row)?),
        ehr: records::ehr_id(row)?,
        template: records::template_id(row)?,
        asked: records::time(row, "asked")?,
        deleted: records::time_or_null(row, "deleted_at")?.is_some(),
    })
}

pub(crate) fn checksum(row: &Row<'_>) -> Result<Checksum> {
    records::known(row, "checksum", Checksum::from_hex)
}

fn write_content(
    connection: &Connection,
    landing: &Landing<'_>,
    row: &NewRow,
    checksum: Checksum,
) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO compositions
                 (id, composition_uid, version, ehr_id, template_id, time_committed, change_type, export_mode, checksum,
                  exported_at, run_id, atlas_version, asked, deleted_at, deleted_reason, content)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, NULL, NULL, ?14)
             ON CONFLICT (id) DO UPDATE SET
                 composition_uid = excluded.composition_uid, version = excluded.version, ehr_id = excluded.ehr_id,
                 template_id = excluded.template_id, time_committed = excluded.time_committed,
                 change_type = excluded.change_type, export_mode = excluded.export_mode, checksum = excluded.checksum,
                 exported_at = excluded.exported_at, run_id = excluded.run_id, atlas_version = excluded.atlas_version,
                 asked = excluded.asked, deleted_at = NULL, deleted_reason = NULL, content = excluded.content",
        )?
        .execute(params![
            row.key.object.as_str(),
            row.uid.as_str(),
            row.uid.version(),
            row.key.ehr.as_str(),
            row.key.template.as_str(),
            Time(row.meta.committed),
            row.meta.change_type,
            landing.format.name(),
            checksum.to_string(),
            Time(landing.now),
            landing.run,
            env!("CARGO_PKG_VERSION"),
            Time(row.asked),
            landing.batch.content(row),
        ])
        .and_then(one_row)
}

fn write_tombstone(
    connection: &Connection,
    landing: &Landing<'_>,
    row: &NewRow,
    deleted: Deleted,
) -> Result<()> {
    connection
        .prepare_cached(
            "UPDATE compositions SET deleted_at = ?2, deleted_reason = ?3, asked = ?4, exported_at = ?5, run_id = ?6,
                 atlas_version = ?7
             WHERE id = ?1",
        )?
        .execute(params![
            row.key.object.as_str(),
            Time(deleted.at),
            deleted.why.name(),
            Time(row.asked),
            Time(landing.now),
            landing.run,
            env!("CARGO_PKG_VERSION"),
        ])
        .and_then(one_row)
}

/// Which rows SQLite refuses by themselves, after their page met `error`. Each is tried in a transaction of its own that is undone,
/// because a trigger may undo more than its statement.
///
/// # Errors
/// `error`, if it is not about single rows: none is refused alone, or nothing else can be written either.
pub(crate) fn refused(
    connection: &mut Connection,
    landing: &Landing<'_>,
    error: rusqlite::Error,
) -> Result<Vec<RefusedRow>> {
    if !may_be_of_a_row(&error) {
        return Err(error);
    }
    let mut refused = Vec::new();
    let mut another_was_written = false;
    for (index, row) in landing.batch.rows.iter().enumerate() {
        match attempt(connection, |connection| land_row(connection, landing, row)) {
            Ok(landed) => {
                another_was_written |= matches!(landed, Landed::New | Landed::Replaced(_));
            }
            Err(error) if may_be_of_a_row(&error) => refused.push(RefusedRow {
                index,
                detail: class(&error),
            }),
            Err(error) => return Err(error),
        }
    }
    if refused.is_empty() {
        // Each one by itself will do: they are in each other's way.
        return match attempt(connection, |connection| in_the_way(connection, landing)) {
            Ok(refused) if !refused.is_empty() => Ok(refused),
            _ => Err(error),
        };
    }
    if !(another_was_written || attempt(connection, write_probe).is_ok()) {
        return Err(error);
    }
    Ok(refused)
}

/// The rows that SQLite refuses behind those of the same page that it takes, such as by somebody's unique index. None if a trigger
/// undoes what came before.
fn in_the_way(connection: &Connection, landing: &Landing<'_>) -> Result<Vec<RefusedRow>> {
    let mut refused = Vec::new();
    for (index, row) in landing.batch.rows.iter().enumerate() {
        connection.execute_batch("SAVEPOINT one_row")?;
        match land_row(connection, landing, row) {
            Err(error) if may_be_of_a_row(&error) => {
                connection.execute_batch("ROLLBACK TO one_row")?;
                refused.push(RefusedRow {
                    index,
                    detail: class(&error),
                });
            }
            landed => {
                landed?;
            }
        }
        connection.execute_batch("RELEASE one_row")?;
    }
    Ok(refused)
}

/// Does something in a transaction that is undone.
fn attempt<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Connection) -> Result<T>,
) -> Result<T> {
    work(&*records::begin(connection)?)
}

/// A row that has nothing in common with any other.
fn write_probe(connection: &Connection) -> Result<()> {
    connection
        .execute(
            "INSERT INTO compositions
                 (id, composition_uid, version, ehr_id, template_id, time_committed, change_type, export_mode, checksum,
                  exported_at, run_id, atlas_version, asked, content)
             SELECT probe, probe || '::atlas::1', 1, probe, probe, moment, 'creation', 'canonical', '', moment, probe, probe,
                    moment, '{}'
             FROM (SELECT 'atlas-probe' AS probe, '1970-01-01T00:00:00.000000Z' AS moment)",
            [],
        )
        .and_then(one_row)
}
