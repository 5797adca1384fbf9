//! A page and its checkpoint in one transaction.

use atlas_engine::model::{Commit, Committed, RefusedRow, Rejected, counts_of};
use deadpool_postgres::Pool;

use crate::error::Failure;
use crate::land::{self, Outcome};
use crate::session::{Names, Session};
use crate::{quarantine, records};

type Result<T> = std::result::Result<T, Failure>;

/// See [`Store::commit`](atlas_engine::ports::Store::commit).
pub(crate) async fn commit(pool: &Pool, names: &Names, commit: &Commit<'_>) -> Result<Committed> {
    match try_commit(pool, names, commit).await? {
        Tried::Ended(committed) => Ok(committed),
        Tried::Refused(refused) => {
            let (batch, rejected) = commit.set_aside(&refused);
            let rest = Commit {
                batch: &batch,
                rejected: &rejected,
                ..commit.clone()
            };
            Box::pin(self::commit(pool, names, &rest)).await
        }
    }
}

#[expect(clippy::large_enum_variant, reason = "made once a page")]
enum Tried {
    Ended(Committed),
    /// Nothing was committed: the same page once more, with these rows among the rejected.
    Refused(Vec<RefusedRow>),
}

/// Three round trips: what there is, the rows, everything else.
async fn try_commit(pool: &Pool, names: &Names, commit: &Commit<'_>) -> Result<Tried> {
    let mut session = Session::new(pool, names).await?;
    let rows = commit.batch.rows.iter().map(|row| &row.key.object);
    let rejected = commit.rejected.iter().map(|rejected| &rejected.key.object);
    let found = session
        .query_all(&[
            records::lock_slice(&commit.slice.id),
            land::find_held(rows.chain(rejected)),
        ])
        .await?;
    let [stands, held] = found.as_slice() else {
        return Err(Failure::Ended);
    };
    let stands = stands.first().map(records::slice).transpose()?;
    let Some(stands) =
        stands.filter(|stands| commit.applies_to(stands) || commit.was_applied_to(stands))
    else {
        session.commit().await?;
        return Ok(Tried::Ended(Committed::Lost));
    };
    if !commit.applies_to(&stands) {
        session.commit().await?;
        return Ok(Tried::Ended(Committed::Done(stands)));
    }

    let held = land::held(held)?;
    let not_overtaken = |rejected: &&Rejected| {
        let held = held.get(&rejected.key.object);
        held.is_none_or(|held| held.known.version <= rejected.meta.uid.version())
    };
    let entries: Vec<&Rejected> = commit.rejected.iter().filter(not_overtaken).collect();
    let landing = commit.landing(entries.iter().copied());
    let landed = match land::land_rows(&mut session, &landing, held).await? {
        Outcome::Landed(landed) => landed,
        Outcome::Refused(refused) => {
            session.roll_back().await?;
            return Ok(Tried::Refused(refused));
        }
    };
    let after = commit.apply(stands, &counts_of(&landing, &landed));
    let mut last = Vec::new();
    if !entries.is_empty() {
        last.push(quarantine::reject(
            entries.iter().copied(),
            commit.run,
            commit.now,
        ));
    }
    if !commit.batch.rows.is_empty() {
        let rows = commit.batch.rows.iter();
        last.push(quarantine::end(rows.map(|row| row.meta.uid.identity())));
    }
    last.push(records::update_slice(&after)?);
    records::require_changed(&session.commit_after(&last).await?)?;
    drop(last);
    Ok(Tried::Ended(Committed::Done(after)))
}
