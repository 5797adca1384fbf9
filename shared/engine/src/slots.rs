//! A place at the source. All processes that share a store share N source slots: whoever asks the source holds one for
//! each request that is under way, so the source never sees more than N at once, however many workers there are.
//!
//! ```text
//!  store:   slot/000 ── held by worker 7 until …     slots ── {"allowed": 2, …}: how many of the N may be held now
//!  process: SourceSlots (takes, renews, gives back) ──► SlotGatedSource (one permit for each slot held) ──► source
//! ```
//! A planner or a person that finds none free says so in the record `slot-wanted`: until there is one, workers take none and give
//! way at their next page.
//!
//! The source's 429, 503 and slow answers halve what is allowed; quiet raises it again, one by one. A process that was
//! frozen finds its slots' lease run out before it asks again: a request that was under way is the only excess.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use atlas_openehr::id::{ObjectId, TemplateId};
use atlas_openehr::time::Instant;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{Census, Cursor, Meta, Page, Record, Scope, Usage};
use crate::ports::{Clock, Compositions, Definitions, FlatOracle, Source, Store};

/// What the records of slots begin with; three digits follow.
pub(crate) const SLOT: &str = "slot/";
/// The record of what is allowed.
const LIMIT: &str = "slots";
/// The record of who waits for a slot and needs it more than a worker.
const WANTED: &str = "slot-wanted";
/// All three begin like this, so that one query answers them.
const ALL: &str = "slot";

/// What the owners of slots and leases for working messages begin with.
pub(crate) const WORKER_OWNER: &str = "worker/";

/// Between two renewals, so many times less one a holder looks whether somebody waits.
const LOOKS: u32 = 6;

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
}

#[derive(Default)]
struct GateState {
    /// Until when slots of this process are held.
    until: Option<Instant>,
    /// Permits of slots that were lost while a request was under way.
    owed: usize,
    /// When the source pushed back last.
    pushed: Option<Instant>,
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
            self.state().pushed = Some(self.clock.now());
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

    fn state(&self) -> MutexGuard<'_, GateState> {
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
/// end of their lease. Once it is dropped, nothing is asked through them any more.
pub struct SourceSlots {
    hold: Arc<Hold>,
    _beat: AbortOnDropHandle<()>,
}

struct Hold {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    gate: Arc<SlotGatedSource>,
    terms: SlotTerms,
    request: SlotRequest,
    /// Never locked across a wait: whatever is given up in between, what is held stays known.
    held: Mutex<Held>,
    /// The last push-back of the gate that was reported already.
    reported: Mutex<Option<Instant>>,
    give_way: CancellationToken,
}

#[derive(Default)]
struct Held {
    slots: Vec<Record>,
    /// What comes from here on is given back at once.
    is_over: bool,
}

/// Who asks for slots, and for how many.
pub struct SlotRequest {
    /// Unique among all that ever take one.
    pub owner: String,
    /// What for.
    pub kind: SlotKind,
    /// Slots at most.
    pub wanted: usize,
    /// Slots of processes that are known to be dead, by what their owners begin with, are taken over.
    pub dead: Option<&'static str>,
}

/// What a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// To plan, which is short, and without which nobody else has work: workers give way.
    Planner,
    /// For a person who waits at the command line: workers give way.
    CommandLine,
    /// To work slices.
    Worker,
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
        request: SlotRequest,
    ) -> Result<Option<Self>> {
        let reported = gate.state().pushed;
        let hold = Arc::new(Hold {
            store,
            clock,
            gate,
            terms,
            request,
            held: Mutex::default(),
            reported: Mutex::new(reported),
            give_way: CancellationToken::new(),
        });
        hold.beat().await?;
        if hold.held().slots.is_empty() {
            return Ok(None);
        }
        let beating = Arc::clone(&hold);
        let beat = tokio::spawn(async move {
            for look in 1_u32.. {
                tokio::time::sleep(beating.terms.lease / (3 * LOOKS)).await;
                let done = match look % LOOKS {
                    0 => beating.beat().await,
                    _ => beating.look_for_wanted().await,
                };
                if let Err(error) = done {
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

    /// Cancelled when somebody waits who needs a slot more.
    #[must_use]
    pub fn give_way(&self) -> CancellationToken {
        self.hold.give_way.clone()
    }

    /// Gives the slots back. A failure costs only the rest of their lease.
    pub async fn release(self) {
        for slot in self.hold.let_go() {
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

impl Drop for SourceSlots {
    fn drop(&mut self) {
        self.hold.let_go();
    }
}

impl Hold {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more is asked through what was held.
    fn let_go(&self) -> Vec<Record> {
        let mut held = self.held();
        held.is_over = true;
        let slots = std::mem::take(&mut held.slots);
        for _ in &slots {
            self.gate.owe_one();
        }
        slots
    }

    /// Keeps a slot that was taken; `false` if it came too late.
    fn accept(&self, slot: Record, until: Instant) -> bool {
        let mut held = self.held();
        if !held.is_over {
            held.slots.push(slot);
            self.gate.open(1, until);
        }
        !held.is_over
    }

    /// Replaces a slot that is held by what it is now; `None` = it is not held any more. Answers whether it was still held.
    fn note(&self, slot: &Record, now: Option<Record>) -> bool {
        let slots = &mut self.held().slots;
        let before = slots.len();
        slots.retain(|held| held != slot);
        let was_held = slots.len() < before;
        slots.extend(now.filter(|_| was_held));
        was_held
    }

    /// Renews what is held, gives back what is not allowed any more, takes what is wanted and free.
    async fn beat(&self) -> Result<()> {
        let limit = self.report_pushbacks().await?;
        let now = self.clock.now();
        let until = now.saturating_add(self.terms.lease);
        let held = self.held().slots.clone();
        let mut failed = None;
        for slot in held {
            let surplus = number(&slot).is_none_or(|number| number >= limit);
            if surplus && self.gate.close_one(self.terms.lease / 3).await {
                if self.note(&slot, None) {
                    failed = self.give_back(&slot).await.err().or(failed);
                } else {
                    // It was let go meanwhile, and its permit is owed twice now.
                    self.gate.open(1, now);
                }
                continue;
            }
            let renewed = self.mine(&slot, until);
            match self.store.ledger().swap_record(&slot, &renewed).await {
                Ok(Some(renewed)) => {
                    if self.note(&slot, Some(renewed)) {
                        self.gate.open(0, until);
                    }
                }
                // Somebody took it while we were away.
                Ok(None) => {
                    if self.note(&slot, None) {
                        self.gate.owe_one();
                    }
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let missing = self
            .request
            .wanted
            .max(1)
            .saturating_sub(self.held().slots.len());
        if missing > 0 {
            let mut taken = 0;
            for slot in self.free(limit, now).await? {
                if taken == missing {
                    break;
                }
                let mine = self.mine(&slot, until);
                if let Some(mine) = self.store.ledger().swap_record(&slot, &mine).await? {
                    if !self.accept(mine.clone(), until) {
                        return self.give_back(&mine).await;
                    }
                    taken += 1;
                }
            }
        }
        Ok(())
    }

    /// Whether somebody waits for whom a worker gives way.
    fn is_wanted(&self, records: &[Record], now: Instant) -> bool {
        self.request.kind == SlotKind::Worker
            && records
                .iter()
                .any(|record| record.name == WANTED && record.is_held(now))
    }

    async fn look_for_wanted(&self) -> Result<()> {
        let records = self.store.ledger().records(WANTED).await?;
        if self.is_wanted(&records, self.clock.now()) {
            self.give_way.cancel();
        }
        Ok(())
    }

    fn mine(&self, slot: &Record, until: Instant) -> Record {
        Record {
            owner: Some(self.request.owner.clone()),
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
        let mut there = self.store.ledger().records(ALL).await?;
        if self.is_wanted(&there, now) {
            return Ok(Vec::new());
        }
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
                let dead = self
                    .request
                    .dead
                    .is_some_and(|like| owner.starts_with(like));
                owner != self.request.owner && (!slot.is_held(now) || dead)
            })
            .collect())
    }

    /// Halves what is allowed if the source pushed back since, raises it after quiet; answers what is allowed now.
    async fn report_pushbacks(&self) -> Result<usize> {
        let last = self.gate.state().pushed;
        let pushed = {
            let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
            let before = std::mem::replace(&mut *reported, last);
            last.filter(|_| before != last)
        };
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

/// What is allowed after this instant; `pushed` is when the source pushed back, if nobody has reported that yet. Several
/// processes report one storm, each when it comes to it.
fn adjusted(
    stands: Option<Limit>,
    pushed: Option<Instant>,
    now: Instant,
    terms: &SlotTerms,
) -> Option<Limit> {
    match (stands, pushed) {
        (None, None) => None,
        (None, Some(_)) => Some(Limit {
            allowed: (terms.most / 2).max(1),
            lowered: now,
            changed: now,
        }),
        (Some(limit), Some(pushed)) => {
            let same_storm = limit.lowered.saturating_add(terms.storm) > pushed;
            let halved = (limit.allowed.min(terms.most) / 2).max(1);
            Some(Limit {
                allowed: if same_storm { limit.allowed } else { halved },
                lowered: if same_storm { limit.lowered } else { now },
                changed: now,
            })
        }
        (Some(limit), None) => {
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

/// Says that somebody waits for a slot who needs it more than a worker, until an instant; `None` = not any more.
///
/// # Errors
/// What the store could not do.
pub(crate) async fn want_slot(
    store: &dyn Store,
    owner: &str,
    until: Option<Instant>,
) -> Result<()> {
    let before = record(store, WANTED).await?;
    let is_mine = before.owner.as_deref() == Some(owner);
    if until.is_none() && !is_mine {
        return Ok(());
    }
    let after = Record {
        owner: until.map(|_| owner.to_owned()),
        until,
        ..before.clone()
    };
    // Refused means that somebody else says so: as good.
    store
        .ledger()
        .swap_record(&before, &after)
        .await
        .map(|_| ())
}

/// Whether a slot is held for work that goes on with the next slice when it is through.
///
/// # Errors
/// What the store could not do.
pub(crate) async fn has_worker(store: &dyn Store, now: Instant) -> Result<bool> {
    let slots = store.ledger().records(SLOT).await?;
    let is_worker = |slot: &Record| {
        let owner = slot.owner.as_deref().unwrap_or_default();
        slot.is_held(now) && owner.starts_with(WORKER_OWNER)
    };
    Ok(slots.iter().any(is_worker))
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
    let records = store.ledger().records(ALL).await?;
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
        let allowed_at = |limit, pushed: bool, seconds| {
            let pushed = pushed.then(|| at(seconds));
            let next = adjusted(limit, pushed, at(seconds), &terms);
            (next, allowed(next, &terms))
        };
        assert_eq!(allowed_at(None, false, 0), (None, 8));
        let (limit, slots) = allowed_at(None, true, 100);
        assert_eq!(slots, 4);
        let (limit, slots) = allowed_at(limit, true, 105);
        assert_eq!(slots, 4, "the same storm");
        let late = adjusted(limit, Some(at(101)), at(190), &terms);
        assert_eq!(allowed(late, &terms), 4, "the same storm, reported late");
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
