//! A place at the source. All processes that share a store share N source slots: whoever asks the source holds one for
//! each request that is under way, so the source never sees more than N at once, however many workers there are.
//!
//! ```text
//!  store:   slot/000 ── held by worker 7 until …     slots ── {"allowed": 2, …}: how many of the N may be held now
//!  process: SourceSlots (takes, renews, gives back) ──► SlotGatedSource (one permit for each slot held) ──► source
//! ```
//! The source's 429, 503 and slow answers halve what is allowed; quiet raises it again, one by one. A process that was
//! frozen finds its slots' lease run out before it asks again: a request that was under way is the only excess.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use atlas_openehr::id::{ObjectId, TemplateId};
use atlas_openehr::time::Instant;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{Census, Cursor, Meta, Page, Record, Scope, Usage};
use crate::ports::{Clock, Compositions, Definitions, FlatOracle, Source, Store};

/// What the records of slots begin with; three digits follow.
pub(crate) const SLOT: &str = "slot/";
/// The record of what is allowed. Begins like a slot's, so that one query answers both.
const LIMIT: &str = "slots";
const BOTH: &str = "slot";

/// How many slots there are, and how they are held.
#[derive(Debug, Clone, Copy)]
pub struct SlotTerms {
    /// Slots of the source, over all processes: N.
    pub most: usize,
    /// How long a slot is held without being renewed.
    pub lease: Duration,
    /// After a push-back, so long without another one raises what is allowed by one.
    pub quiet: Duration,
    /// Push-backs within this time are one: several workers see the same storm.
    pub storm: Duration,
    /// An answer that takes longer is a push-back.
    pub slow: Duration,
}

impl SlotTerms {
    /// Slots of a source, with the times that suit leases of that length.
    #[must_use]
    pub fn new(most: usize, lease: Duration) -> Self {
        Self {
            most: most.max(1),
            lease,
            quiet: lease * 2 / 3,
            storm: lease / 9,
            slow: Duration::from_secs(30),
        }
    }
}

/// How many slots may be held at this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Limit {
    allowed: usize,
    /// When it was halved last.
    lowered: Instant,
    /// When the source pushed back last, or one more was allowed.
    changed: Instant,
}

/// A source that is asked only while a slot is held for it.
pub struct SlotGatedSource {
    inner: Arc<dyn Source>,
    clock: Arc<dyn Clock>,
    permits: Semaphore,
    state: Mutex<GateState>,
    slow: Duration,
    pushbacks: AtomicU64,
}

#[derive(Default)]
struct GateState {
    /// Until when slots of this process are held.
    until: Option<Instant>,
    /// Permits of slots that were lost while a request was under way.
    owed: usize,
}

impl SlotGatedSource {
    /// Closed, until a [`SourceSlots`] opens it.
    #[must_use]
    pub fn new(inner: Arc<dyn Source>, clock: Arc<dyn Clock>, terms: &SlotTerms) -> Self {
        Self {
            inner,
            clock,
            permits: Semaphore::new(0),
            state: Mutex::default(),
            slow: terms.slow,
            pushbacks: AtomicU64::new(0),
        }
    }

    async fn through<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        // An error would mean a closed semaphore, and this one is never closed.
        let permit = self.permits.acquire().await;
        if !self.is_open() {
            return Err(Error::new(
                ErrorKind::LostLease,
                "ask the source: the lease of its slot ran out",
            )
            .fix("nothing is lost: the slice goes on from its last checkpoint"));
        }
        let (begun, busy) = (tokio::time::Instant::now(), self.inner.usage().busy);
        let answer = call.await;
        if begun.elapsed() > self.slow || self.inner.usage().busy > busy {
            self.pushbacks.fetch_add(1, Ordering::Relaxed);
        }
        let mut state = self.state();
        if state.owed > 0
            && let Ok(permit) = permit
        {
            state.owed -= 1;
            permit.forget();
        }
        answer
    }

    fn is_open(&self) -> bool {
        let until = self.state().until;
        until.is_some_and(|until| self.clock.now() < until)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, slots: usize, until: Instant) {
        let mut state = self.state();
        state.until = state.until.max(Some(until));
        let paid = slots.min(state.owed);
        state.owed -= paid;
        self.permits.add_permits(slots - paid);
    }

    /// Takes one permit back, waiting for a request that uses it; `false` if none ended in time.
    async fn close_one(&self, patience: Duration) -> bool {
        match tokio::time::timeout(patience, self.permits.acquire()).await {
            Ok(Ok(permit)) => {
                permit.forget();
                true
            }
            _ => false,
        }
    }

    /// Takes one permit back, as soon as the request that uses it ends.
    fn owe_one(&self) {
        let mut state = self.state();
        if self.permits.forget_permits(1) == 0 {
            state.owed += 1;
        }
    }
}

#[async_trait]
impl Compositions for SlotGatedSource {
    async fn census(&self, scope: &Scope) -> Result<Census> {
        self.through(self.inner.census(scope)).await
    }

    async fn count(&self, scope: &Scope) -> Result<u64> {
        self.through(self.inner.count(scope)).await
    }

    async fn page(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Page> {
        self.through(self.inner.page(scope, after, limit)).await
    }

    async fn list(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Vec<Meta>> {
        self.through(self.inner.list(scope, after, limit)).await
    }

    async fn fetch(&self, scope: &Scope, objects: &[ObjectId]) -> Result<Page> {
        self.through(self.inner.fetch(scope, objects)).await
    }
}

#[async_trait]
impl Definitions for SlotGatedSource {
    async fn templates(&self) -> Result<Vec<TemplateId>> {
        self.through(self.inner.templates()).await
    }

    async fn web_template(&self, template: &TemplateId) -> Result<String> {
        self.through(self.inner.web_template(template)).await
    }
}

#[async_trait]
impl FlatOracle for SlotGatedSource {
    async fn flat(&self, meta: &Meta) -> Result<String> {
        self.through(self.inner.flat(meta)).await
    }
}

impl Source for SlotGatedSource {
    fn usage(&self) -> Usage {
        self.inner.usage()
    }
}

/// Slots that this process holds. Renewed in the background; [`release`](Self::release) gives them back, and so does, later, the
/// end of their lease.
pub struct SourceSlots {
    hold: Arc<Hold>,
    _beat: AbortOnDropHandle<()>,
}

struct Hold {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    gate: Arc<SlotGatedSource>,
    terms: SlotTerms,
    owner: String,
    /// Slots of dead processes whose owner begins like this are taken over.
    dead: Option<&'static str>,
    wanted: usize,
    held: tokio::sync::Mutex<Vec<Record>>,
    /// Push-backs of the gate that were reported already.
    reported: AtomicU64,
}

/// Who asks for slots, and for how many.
pub struct SlotRequest {
    /// Unique among all that ever take one.
    pub owner: String,
    /// Slots at most.
    pub wanted: usize,
    /// Slots of processes that are known to be dead, by what their owners begin with, are taken over.
    pub dead: Option<&'static str>,
}

impl SourceSlots {
    /// Takes free slots, as many as are wanted and allowed; `None` if there is none.
    ///
    /// # Errors
    /// What the store could not do.
    pub async fn take(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        gate: Arc<SlotGatedSource>,
        terms: SlotTerms,
        guest: SlotRequest,
    ) -> Result<Option<Self>> {
        let reported = AtomicU64::new(gate.pushbacks.load(Ordering::Relaxed));
        let hold = Arc::new(Hold {
            store,
            clock,
            gate,
            terms,
            owner: guest.owner,
            dead: guest.dead,
            wanted: guest.wanted.max(1),
            held: tokio::sync::Mutex::default(),
            reported,
        });
        hold.beat().await?;
        if hold.held.lock().await.is_empty() {
            return Ok(None);
        }
        let beating = Arc::clone(&hold);
        let beat = tokio::spawn(async move {
            loop {
                tokio::time::sleep(beating.terms.lease / 3).await;
                if let Err(error) = beating.beat().await {
                    // The gate closes by itself when the lease ends.
                    tracing::warn!("source slots were not renewed: {}", error.chain());
                }
            }
        });
        Ok(Some(Self {
            hold,
            _beat: AbortOnDropHandle::new(beat),
        }))
    }

    /// Gives the slots back. A failure costs only the rest of their lease.
    pub async fn release(self) {
        drop(self._beat);
        let held = std::mem::take(&mut *self.hold.held.lock().await);
        for slot in held {
            self.hold.gate.owe_one();
            if let Err(error) = self.hold.give_back(&slot).await {
                tracing::warn!(
                    "a source slot was not given back and is held until its lease ends: {}",
                    error.chain()
                );
            }
        }
        if let Err(error) = self.hold.report_pushbacks().await {
            tracing::warn!("a push-back of the source was not noted: {}", error.chain());
        }
    }
}

impl Hold {
    /// Renews what is held, gives back what is not allowed any more, takes what is wanted and free.
    async fn beat(&self) -> Result<()> {
        let limit = self.report_pushbacks().await?;
        let now = self.clock.now();
        let until = now.saturating_add(self.terms.lease);
        let mut held = self.held.lock().await;
        // Whatever fails, what is held stays known.
        let mut failed = None;
        for slot in std::mem::take(&mut *held) {
            let surplus = number(&slot).is_none_or(|number| number >= limit);
            if surplus && self.gate.close_one(self.terms.lease / 3).await {
                failed = self.give_back(&slot).await.err().or(failed);
                continue;
            }
            match self
                .store
                .ledger()
                .swap_record(&slot, &self.mine(&slot, until))
                .await
            {
                Ok(Some(renewed)) => {
                    held.push(renewed);
                    self.gate.open(0, until);
                }
                // Somebody took it while we were away.
                Ok(None) => self.gate.owe_one(),
                Err(error) => {
                    held.push(slot);
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        if held.len() < self.wanted {
            for slot in self.free(limit, now).await? {
                if held.len() == self.wanted {
                    break;
                }
                let mine = self.mine(&slot, until);
                if let Some(mine) = self.store.ledger().swap_record(&slot, &mine).await? {
                    held.push(mine);
                    self.gate.open(1, until);
                }
            }
        }
        Ok(())
    }

    fn mine(&self, slot: &Record, until: Instant) -> Record {
        Record {
            owner: Some(self.owner.clone()),
            until: Some(until),
            ..slot.clone()
        }
    }

    async fn give_back(&self, slot: &Record) -> Result<()> {
        let free = Record {
            owner: None,
            until: None,
            ..slot.clone()
        };
        // Refused means that somebody took it: there is nothing left to give back.
        self.store
            .ledger()
            .swap_record(slot, &free)
            .await
            .map(|_| ())
    }

    /// Slots below the limit that nobody holds, the lowest first.
    async fn free(&self, limit: usize, now: Instant) -> Result<Vec<Record>> {
        let mut there = self.store.ledger().records(SLOT).await?;
        Ok((0..limit)
            .map(|number| {
                let name = format!("{SLOT}{number:03}");
                match there.iter().position(|slot| slot.name == name) {
                    Some(at) => there.swap_remove(at),
                    None => Record::new(name),
                }
            })
            .filter(|slot| {
                let owner = slot.owner.as_deref().unwrap_or_default();
                let dead = self.dead.is_some_and(|like| owner.starts_with(like));
                owner != self.owner && (!slot.is_held(now) || dead)
            })
            .collect())
    }

    /// Halves what is allowed if the source pushed back since, raises it after quiet; answers what is allowed now.
    async fn report_pushbacks(&self) -> Result<usize> {
        let pushbacks = self.gate.pushbacks.load(Ordering::Relaxed);
        let pushed = self.reported.swap(pushbacks, Ordering::Relaxed) != pushbacks;
        loop {
            let now = self.clock.now();
            let record = record(self.store.as_ref(), LIMIT).await?;
            let stands = read_limit(&record);
            let next = adjusted(stands, pushed, now, &self.terms);
            if next == stands {
                return Ok(allowed(next, &self.terms));
            }
            let after = Record {
                value: serde_json::json!(next).to_string(),
                ..record.clone()
            };
            if self
                .store
                .ledger()
                .swap_record(&record, &after)
                .await?
                .is_some()
            {
                let (now, before) = (allowed(next, &self.terms), allowed(stands, &self.terms));
                if now < before {
                    tracing::warn!(
                        slots = now,
                        "the source pushes back: {now} requests at once from now on, {before} before"
                    );
                } else if now > before {
                    tracing::info!(slots = now, "the source is quiet: {now} requests at once");
                }
                return Ok(now);
            }
        }
    }
}

/// What is allowed after this instant.
fn adjusted(stands: Option<Limit>, pushed: bool, now: Instant, terms: &SlotTerms) -> Option<Limit> {
    match (stands, pushed) {
        (None, false) => None,
        (None, true) => Some(Limit {
            allowed: (terms.most / 2).max(1),
            lowered: now,
            changed: now,
        }),
        (Some(limit), true) => {
            let same_storm = limit.lowered.saturating_add(terms.storm) > now;
            let halved = (limit.allowed.min(terms.most) / 2).max(1);
            Some(Limit {
                allowed: if same_storm { limit.allowed } else { halved },
                lowered: if same_storm { limit.lowered } else { now },
                changed: now,
            })
        }
        (Some(limit), false) => {
            let quiet = limit.changed.saturating_add(terms.quiet) <= now;
            Some(if quiet && limit.allowed < terms.most {
                Limit {
                    allowed: limit.allowed + 1,
                    changed: now,
                    ..limit
                }
            } else {
                limit
            })
        }
    }
}

fn allowed(limit: Option<Limit>, terms: &SlotTerms) -> usize {
    limit.map_or(terms.most, |limit| limit.allowed.clamp(1, terms.most))
}

/// A control record, as it is before anybody wrote it if nobody did.
pub(crate) async fn record(store: &dyn Store, name: &str) -> Result<Record> {
    let there = store.ledger().records(name).await?;
    Ok(there
        .into_iter()
        .find(|record| record.name == name)
        .unwrap_or_else(|| Record::new(name)))
}

/// A value that this program does not understand allows everything: the next push-back replaces it.
fn read_limit(record: &Record) -> Option<Limit> {
    serde_json::from_str(&record.value).ok()
}

fn number(slot: &Record) -> Option<usize> {
    slot.name.strip_prefix(SLOT)?.parse().ok()
}

/// Slots as they stand, for a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SlotState {
    /// N.
    pub most: usize,
    /// How many may be held now.
    pub allowed: usize,
    /// How many are held.
    pub held: usize,
}

/// How the slots of a source stand.
///
/// # Errors
/// What the store could not do.
pub async fn slot_state(store: &dyn Store, terms: &SlotTerms, now: Instant) -> Result<SlotState> {
    let records = store.ledger().records(BOTH).await?;
    let limit = records.iter().find(|record| record.name == LIMIT);
    Ok(SlotState {
        most: terms.most,
        allowed: allowed(limit.and_then(read_limit), terms),
        held: records
            .iter()
            .filter(|record| number(record).is_some() && record.is_held(now))
            .count(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::EPOCH.saturating_add(Duration::from_secs(seconds))
    }

    #[test]
    fn a_storm_halves_what_is_allowed_once_and_quiet_raises_it_one_by_one() {
        let terms = SlotTerms::new(8, Duration::from_secs(90));
        let allowed_at = |limit, pushed, seconds| {
            let next = adjusted(limit, pushed, at(seconds), &terms);
            (next, allowed(next, &terms))
        };
        assert_eq!(allowed_at(None, false, 0), (None, 8));
        let (limit, slots) = allowed_at(None, true, 100);
        assert_eq!(slots, 4);
        let (limit, slots) = allowed_at(limit, true, 105);
        assert_eq!(slots, 4, "the same storm");
        let (limit, slots) = allowed_at(limit, true, 111);
        assert_eq!(slots, 2);
        let (limit, slots) = allowed_at(limit, true, 200);
        assert_eq!(slots, 1);
        let (limit, slots) = allowed_at(limit, true, 300);
        assert_eq!(slots, 1, "never none");
        let (limit, slots) = allowed_at(limit, false, 359);
        assert_eq!(slots, 1, "not quiet for long enough");
        let (limit, slots) = allowed_at(limit, false, 360);
        assert_eq!(slots, 2);
        let (limit, slots) = allowed_at(limit, false, 400);
        assert_eq!(slots, 2);
        let (_, slots) = allowed_at(limit, false, 420);
        assert_eq!(slots, 3);
    }
}
