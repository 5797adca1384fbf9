//! What the copy lacks, and what is really in quarantine: questions that rows and ledger answer together.
//!
//! Where rows and ledger share no transaction, a crash can leave an entry whose composition has landed. Such an entry is ended
//! where it is read, so it needs no sweep.

use atlas_openehr::id::{ObjectId, ObjectVersion};

use crate::error::Result;
use crate::model::{Meta, QuarantineFilter, Quarantined, RowKey};
use crate::ports::Store;
use crate::seeded::{Bug, planted};
use crate::transform::Transform;

/// Of what the source lists, what the copy has not seen like this: in this version or a newer one, alive, of this EHR and template,
/// or in quarantine.
///
/// # Errors
/// What the store could not do.
pub async fn missing(
    store: &dyn Store,
    transform: &Transform,
    metas: Vec<Meta>,
) -> Result<Vec<Meta>> {
    if metas.is_empty() {
        return Ok(metas);
    }
    let keys: Vec<RowKey> = metas.iter().map(|meta| transform.keys.key(meta)).collect();
    let known = store.index().known(&keys).await?;
    let lacking: Vec<Meta> = metas
        .into_iter()
        .zip(keys)
        .filter(|(meta, key)| {
            let version = meta.uid.version();
            known.get(&key.object).is_none_or(|held| {
                if planted(Bug::ComparedByObjectOnly) {
                    return false;
                }
                let same =
                    !held.deleted && (&held.ehr, &held.template) == (&key.ehr, &key.template);
                held.version < version || (held.version == version && !same)
            })
        })
        .map(|(meta, _)| meta)
        .collect();
    if lacking.is_empty() {
        return Ok(lacking);
    }
    let objects: Vec<ObjectId> = lacking
        .iter()
        .map(|meta| meta.uid.object_id().clone())
        .collect();
    let waiting = store.ledger().in_quarantine(&objects).await?;
    Ok(lacking
        .into_iter()
        .filter(|meta| {
            waiting
                .get(meta.uid.object_id())
                .is_none_or(|version| *version < meta.uid.version())
        })
        .collect())
}

/// At most `limit` entries of the quarantine, in the order of their places. Fewer than `limit` are the last ones.
///
/// # Errors
/// What the store could not do.
pub async fn quarantined(
    store: &dyn Store,
    transform: &Transform,
    filter: &QuarantineFilter,
    limit: usize,
) -> Result<Vec<Quarantined>> {
    let mut filter = filter.clone();
    let mut real = Vec::new();
    while real.len() < limit {
        let wanted = limit - real.len();
        let entries = store.ledger().quarantined(&filter, wanted).await?;
        let Some(last) = entries.last() else { break };
        filter.after = Some(last.place());
        let more = entries.len() == wanted;
        real.extend(end_overtaken(store, transform, entries).await?);
        if !more {
            break;
        }
    }
    Ok(real)
}

/// Ends the entries whose version, or a newer one, has landed since they were tried last; answers the others.
async fn end_overtaken(
    store: &dyn Store,
    transform: &Transform,
    entries: Vec<Quarantined>,
) -> Result<Vec<Quarantined>> {
    let keys: Vec<RowKey> = entries
        .iter()
        .map(|entry| transform.keys.key(&entry.meta))
        .collect();
    let known = store.index().known(&keys).await?;
    let (overtaken, real): (Vec<_>, Vec<_>) =
        entries.into_iter().zip(keys).partition(|(entry, key)| {
            let version = entry.meta.uid.version();
            known.get(&key.object).is_some_and(|held| {
                held.version > version
                    || (held.version == version && !held.deleted && held.asked >= entry.tried)
            })
        });
    let ended: Vec<ObjectVersion> = overtaken
        .iter()
        .map(|(entry, _)| entry.meta.uid.identity().clone())
        .collect();
    if !ended.is_empty() {
        store.ledger().end_quarantine(&ended).await?;
    }
    Ok(real.into_iter().map(|(entry, _)| entry).collect())
}
