//! A page and its checkpoint in one transaction.

use atlas_engine::model::{Batch, Commit, Committed, NewRow, Rejected};
use rusqlite::{Connection, Result, Transaction, TransactionBehavior, params};

use crate::records::{self, Time};

/// See [`Store::commit`](atlas_engine::ports::Store::commit).
pub(crate) fn commit(connection: &mut Connection, commit: &Commit<'_>) -> Result<Committed> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let Some(stands) = records::read_slice(&transaction, &commit.slice.id)? else {
        return Ok(Committed::Lost);
    };
    if !commit.applies_to(&stands) {
        // Dropping the transaction undoes nothing: nothing was done.
        return Ok(if commit.was_applied_to(&stands) {
            Committed::Done(stands)
        } else {
            Committed::Lost
        });
    }

    let mut written = 0;
    for row in &commit.batch.rows {
        written += u64::from(write_row(&transaction, commit, row)?);
        end_quarantine(&transaction, row)?;
    }
    for rejected in commit.rejected {
        quarantine(&transaction, commit, rejected)?;
    }
    let slice = commit.apply(stands, written);
    records::update_slice(&transaction, &slice)?;
    transaction.commit()?;
    Ok(Committed::Done(slice))
}

/// Writes a row, unless the store has this version or a newer one. Answers whether it was written.
fn write_row(transaction: &Transaction<'_>, commit: &Commit<'_>, row: &NewRow) -> Result<bool> {
    let batch: &Batch = commit.batch;
    let written = transaction
        .prepare_cached(
            "INSERT INTO compositions AS c
                 (id, composition_uid, version, ehr_id, template_id, time_committed, change_type, content,
                  export_mode, checksum, exported_at, run_id, atlas_version, deleted_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, NULL)
             ON CONFLICT (id) DO UPDATE SET
                 composition_uid = excluded.composition_uid, version = excluded.version, ehr_id = excluded.ehr_id,
                 template_id = excluded.template_id, time_committed = excluded.time_committed,
                 change_type = excluded.change_type, content = excluded.content,
                 export_mode = excluded.export_mode, checksum = excluded.checksum,
                 exported_at = excluded.exported_at, run_id = excluded.run_id,
                 atlas_version = excluded.atlas_version, deleted_at = NULL
             WHERE excluded.version > c.version
                OR (excluded.version = c.version AND c.deleted_at IS NULL
                    AND (excluded.export_mode <> c.export_mode OR excluded.checksum <> c.checksum))",
        )?
        .execute(params![
            row.meta.uid.object_id().as_str(),
            row.meta.uid.as_str(),
            row.meta.uid.version(),
            row.meta.ehr.as_str(),
            row.meta.template.as_str(),
            Time(row.meta.committed),
            row.meta.change_type,
            batch.content(row),
            commit.format.name(),
            row.checksum.to_string(),
            Time(commit.now),
            commit.run,
            env!("CARGO_PKG_VERSION"),
        ])?;
    Ok(written > 0)
}

fn end_quarantine(transaction: &Transaction<'_>, row: &NewRow) -> Result<()> {
    transaction
        .prepare_cached("DELETE FROM atlas_quarantine WHERE id = ?1 AND version <= ?2")?
        .execute(params![
            row.meta.uid.object_id().as_str(),
            row.meta.uid.version()
        ])?;
    Ok(())
}

/// Puts a composition into quarantine, unless the store or the quarantine is about a newer version of it.
fn quarantine(
    transaction: &Transaction<'_>,
    commit: &Commit<'_>,
    rejected: &Rejected,
) -> Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO atlas_quarantine AS q
                 (id, composition_uid, version, ehr_id, template_id, time_committed, change_type,
                  reason, detail, run_id, since, tried, tries)
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11, 1
             WHERE NOT EXISTS (SELECT 1 FROM compositions WHERE id = ?1 AND version > ?3)
             ON CONFLICT (id) DO UPDATE SET
                 composition_uid = excluded.composition_uid, version = excluded.version, ehr_id = excluded.ehr_id,
                 template_id = excluded.template_id, time_committed = excluded.time_committed,
                 change_type = excluded.change_type, reason = excluded.reason, detail = excluded.detail,
                 tried = excluded.tried,
                 run_id = iif(q.version = excluded.version, q.run_id, excluded.run_id),
                 since = iif(q.version = excluded.version, q.since, excluded.since),
                 tries = iif(q.version = excluded.version, q.tries + 1, 1)
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
            commit.run,
            Time(commit.now),
        ])?;
    Ok(())
}
