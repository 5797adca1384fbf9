//! A page and its checkpoint in one transaction.

use atlas_engine::model::{Commit, Committed, Rejected, counts_of};
use rusqlite::{Connection, OptionalExtension, Result};

use crate::{land, quarantine, records};

/// See [`Store::commit`](atlas_engine::ports::Store::commit).
pub(crate) fn commit(connection: &mut Connection, commit: &Commit<'_>) -> Result<Committed> {
    match try_commit(connection, commit) {
        Err(error) => {
            // Nothing was committed: the same page once more, with these rows among the rejected.
            let refused = land::refused(connection, &commit.landing([]), error)?;
            let (batch, rejected) = commit.set_aside(&refused);
            let rest = Commit {
                batch: &batch,
                rejected: &rejected,
                ..commit.clone()
            };
            self::commit(connection, &rest)
        }
        committed => committed,
    }
}

fn try_commit(connection: &mut Connection, commit: &Commit<'_>) -> Result<Committed> {
    let transaction = records::begin(connection)?;
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

    let mut entries = Vec::new();
    for rejected in commit.rejected {
        if !is_overtaken(&transaction, rejected)? {
            quarantine::reject(&transaction, rejected, commit.run, commit.now)?;
            entries.push(rejected);
        }
    }
    let landing = commit.landing(entries);
    let landed = land::land_rows(&transaction, &landing)?;
    for row in &commit.batch.rows {
        quarantine::end(&transaction, row.meta.uid.identity())?;
    }
    let after = commit.apply(stands, &counts_of(&landing, &landed));
    records::update_slice(&transaction, &after)?;
    transaction.commit()?;
    Ok(Committed::Done(after))
}

/// Whether the copy holds a newer version of what is rejected.
fn is_overtaken(connection: &Connection, rejected: &Rejected) -> Result<bool> {
    let version: Option<u32> = connection
        .prepare_cached("SELECT version FROM compositions WHERE id = ?1")?
        .query_row([rejected.key.object.as_str()], |row| row.get(0))
        .optional()?;
    Ok(version.is_some_and(|version| version > rejected.meta.uid.version()))
}
