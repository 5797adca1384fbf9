//! One commit over rows and a ledger that share no transaction: Cosmos DB, a lake, or rows and ledger in two databases.
//!
//! ```text
//!  quarantine entries ─► rows (by slice, page, fence) ─► ends of quarantines ─► slice (compare-and-swap)
//! ```
//! Each step may be repeated. A crash between two of them leaves rows that the slice does not know of: whoever takes the slice
//! asks [`Rows::landed`], commits that page to the slice, and reads on from there ([`adopt_landed`]). An entry of the quarantine
//! that the rows have overtaken is ended where it is read ([`quarantine`](crate::quarantine)).

use std::sync::Arc;

use async_trait::async_trait;

use crate::error::Result;
use crate::model::{Commit, Committed, LandAnswer, Rejected, RowKey, Slice, counts_of};
use crate::ports::{Index, Ledger, Rows, Store, Templates};
use crate::seeded::{Bug, planted};

/// A store of parts that share no transaction.
#[derive(Clone)]
pub struct TwoPhase<R, L> {
    rows: Arc<R>,
    ledger: Arc<L>,
}

impl<R, L> TwoPhase<R, L> {
    /// The rows with their index, and the ledger, which keeps the templates as well.
    #[must_use]
    pub fn new(rows: Arc<R>, ledger: Arc<L>) -> Self {
        Self { rows, ledger }
    }
}

#[async_trait]
impl<R: Rows, L: Ledger + Templates> Store for TwoPhase<R, L> {
    fn rows(&self) -> &dyn Rows {
        self.rows.as_ref()
    }

    fn index(&self) -> &dyn Index {
        self.rows.as_ref()
    }

    fn ledger(&self) -> &dyn Ledger {
        self.ledger.as_ref()
    }

    fn templates(&self) -> &dyn Templates {
        self.ledger.as_ref()
    }

    async fn prepare(&self) -> Result<()> {
        Rows::prepare(self.rows.as_ref()).await?;
        Ledger::prepare(self.ledger.as_ref()).await
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed> {
        two_phase_commit(self, commit).await
    }
}

/// [`Store::commit`] for a store without transactions over its rows and its ledger.
///
/// # Errors
/// What rows or ledger could not do: called again with the same arguments, it goes on.
pub async fn two_phase_commit(store: &dyn Store, commit: &Commit<'_>) -> Result<Committed> {
    let ledger = store.ledger();
    let Some(stands) = ledger.slice(&commit.slice.id).await? else {
        return Ok(Committed::Lost);
    };
    if !commit.applies_to(&stands) {
        return Ok(if commit.was_applied_to(&stands) {
            Committed::Done(stands)
        } else {
            Committed::Lost
        });
    }

    if planted(Bug::CheckpointBeforeRows) {
        let early = commit.apply(stands.clone(), &commit.landing([]).beside);
        let done = ledger.swap_slice(&stands, &early).await?;
        if !commit.batch.rows.is_empty() {
            store.rows().land(&commit.landing([])).await?;
        }
        return Ok(done.map_or(Committed::Lost, Committed::Done));
    }
    let entries = not_overtaken(store.index(), commit.rejected).await?;
    if !entries.is_empty() && !planted(Bug::QuarantineForgotten) {
        ledger.quarantine(&entries, commit.run, commit.now).await?;
    }
    let landing = commit.landing(&entries);
    let counts = if commit.batch.rows.is_empty() {
        landing.beside.clone()
    } else {
        match store.rows().land(&landing).await? {
            LandAnswer::Landed(landed) => counts_of(&landing, &landed),
            LandAnswer::Superseded => return Ok(Committed::Lost),
            LandAnswer::Refused(refused) => {
                // Nothing was landed: the same page once more, with these rows among the rejected.
                let (batch, rejected) = commit.set_aside(&refused);
                let rest = Commit {
                    batch: &batch,
                    rejected: &rejected,
                    ..commit.clone()
                };
                return Box::pin(two_phase_commit(store, &rest)).await;
            }
        }
    };
    let versions: Vec<_> = commit
        .batch
        .rows
        .iter()
        .map(|row| row.meta.uid.identity().clone())
        .collect();
    if !versions.is_empty() {
        ledger.end_quarantine(&versions).await?;
    }
    let after = commit.apply(stands.clone(), &counts);
    Ok(match ledger.swap_slice(&stands, &after).await? {
        Some(slice) => Committed::Done(slice),
        None => Committed::Lost,
    })
}

/// Of what is rejected, what the copy does not hold in a newer version.
async fn not_overtaken(index: &dyn Index, rejected: &[Rejected]) -> Result<Vec<Rejected>> {
    if rejected.is_empty() {
        return Ok(Vec::new());
    }
    let keys: Vec<RowKey> = rejected
        .iter()
        .map(|rejected| rejected.key.clone())
        .collect();
    let known = index.known(&keys).await?;
    Ok(rejected
        .iter()
        .filter(|rejected| {
            known
                .get(&rejected.key.object)
                .is_none_or(|known| known.version <= rejected.meta.uid.version())
        })
        .cloned()
        .collect())
}

/// Commits to a slice that was just taken what its last worker landed and could not note any more. `None` if somebody else has
/// taken it meanwhile.
///
/// # Errors
/// What rows or ledger could not do.
pub async fn adopt_landed(store: &dyn Store, taken: Slice) -> Result<Option<Slice>> {
    let Some(landed) = store.rows().landed(&taken).await? else {
        return Ok(Some(taken));
    };
    let adopted = landed.adopt(taken.clone());
    if adopted == taken {
        return Ok(Some(taken));
    }
    store.ledger().swap_slice(&taken, &adopted).await
}
