//! The engine, and what runs in one process and functions of a cloud have in common: the clock, plans, watermarks, workers.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use tokio::sync::Semaphore;

use crate::error::Result;
use crate::lease::RunLeaseTerms;
use crate::message::Message;
use crate::model::{
    Counts, LeaseTerms, Origin, Record, Request, Run, SelectionKey, Slice, SliceFilter, Watermark,
};
use crate::plan::{self, Plan, PlanKeeper, PlanParts, PlanTerms, watermark};
use crate::ports::{Clock, Observer, Queue, Source, Store};
use crate::seeded::{Bug, planted};
use crate::slots::{SlotGatedSource, SlotKind, SlotRequest, SlotTerms, SourceSlots, record};
use crate::transform::Transform;
use crate::work::convert::Converters;
use crate::work::page::PageTerms;
use crate::work::{Budget, PAGES_IN_FLIGHT, Worker};

/// [`Engine::retry_after`] of every run that nobody asked to retry: at most once a day.
pub const RETRY_QUARANTINE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Finished slices behind a watermark are looked at so many at a time.
const READ_AT_ONCE: usize = 100;

/// The engine with everything it needs from the outside.
pub struct Engine {
    /// Where compositions come from; asked only while a slot is held.
    pub source: Arc<SlotGatedSource>,
    /// Where they go.
    pub store: Arc<dyn Store>,
    /// Brings messages to workers.
    pub queue: Arc<dyn Queue>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Is told what happens.
    pub observer: Arc<dyn Observer>,
    /// Stages and keys of the copy.
    pub transform: Transform,
    /// Makes the content of the store.
    pub converters: Arc<dyn Converters>,
    /// How runs are cut into slices.
    pub plan: PlanTerms,
    /// Size of pages.
    pub pages: PageTerms,
    /// Duration of the leases of slices.
    pub lease: LeaseTerms,
    /// Duration and heartbeat of the leases that make runs exclusive.
    pub run_lease: RunLeaseTerms,
    /// Slots of the source.
    pub slots: SlotTerms,
    /// When what was left undone is done again.
    pub sweep: SweepTerms,
    /// A composition in quarantine is tried again this long after it was tried last.
    pub retry_after: Duration,
    /// How long after its end the record of a run is kept.
    pub keep_runs: Duration,
    /// Requests that the source answers at once: it keeps that bound itself, this sizes work and memory for it.
    pub readers: usize,
}

/// When what was left undone is done again.
#[derive(Debug, Clone, Copy)]
pub struct SweepTerms {
    /// A message that was sent so long ago without any progress is taken for lost.
    pub orphan: Duration,
    /// A failed slice is tried again after this.
    pub revive: Duration,
}

impl Default for SweepTerms {
    fn default() -> Self {
        Self {
            orphan: Duration::from_secs(1800),
            revive: Duration::from_secs(3600),
        }
    }
}

impl Engine {
    /// Goes by the clock that all processes of the store share: a lease means the same to all of them.
    pub(crate) async fn follow_store_clock(&self) -> Result<()> {
        if let Some(now) = self.store.ledger().now().await? {
            self.clock.follow(now);
        }
        Ok(())
    }

    pub(crate) fn due(&self) -> Instant {
        self.clock.now().saturating_sub(self.retry_after)
    }

    /// Removes records of runs that ended long ago. What prevents it is told and no more: the next run does it.
    pub(crate) async fn prune_runs(&self) {
        let ended_before = self.clock.now().saturating_sub(self.keep_runs);
        if let Err(error) = self.store.ledger().prune_runs(ended_before).await {
            tracing::warn!("old records of runs were not removed: {}", error.chain());
        }
    }

    pub(crate) fn new_run(&self, id: String, origin: Origin, request: Request) -> Run {
        Run {
            id,
            step: 0,
            origin,
            selection: request.selection.key(),
            mode: request.mode,
            started: self.clock.now(),
            ended: None,
            cut: None,
            source_clock: None,
            planned: false,
            outcome: None,
            counts: Counts::default(),
            failure: None,
            request: Some(request),
        }
    }

    /// Plans a run, and keeps its slices as the keeper does. Its watermarks are for [`raise_planned`](Self::raise_planned).
    pub(crate) async fn plan(
        &self,
        request: &Request,
        run: &str,
        keeper: &dyn PlanKeeper,
        budget: &Budget,
    ) -> Result<Plan> {
        let mut counted = Vec::new();
        for origin in [Origin::Timer, Origin::OnDemand] {
            let unfinished = self.store.ledger().unfinished_runs(origin).await?;
            counted.extend(unfinished.into_iter().map(|run| run.id));
        }
        let parts = PlanParts {
            source: self.source.as_ref() as &dyn Source,
            store: self.store.as_ref(),
            transform: &self.transform,
            keeper,
            budget,
        };
        plan::plan(parts, &self.plan, request, run, self.due(), &counted).await
    }

    /// What is forgotten before a run gets its slices: also what is known of the copy in other formats.
    pub(crate) async fn forget(
        &self,
        selection: &SelectionKey,
        watermarks: &[TemplateId],
        slices: &[String],
    ) -> Result<()> {
        let ledger = self.store.ledger();
        ledger.keep_format(self.converters.format()).await?;
        if !watermarks.is_empty() {
            ledger.forget_watermarks(selection, watermarks).await?;
        }
        if !slices.is_empty() {
            ledger.remove_slices(slices).await?;
        }
        Ok(())
    }

    /// Raises the watermarks of a plan whose slices are all kept.
    pub(crate) async fn raise_planned(&self, selection: &SelectionKey, plan: &Plan) -> Result<()> {
        let ledger = self.store.ledger();
        if planted(Bug::WatermarkBeforeRows) {
            let lines = plan.slices.iter().flat_map(|slice| {
                let window = slice.window;
                slice
                    .lines()
                    .map(move |line| (line.template.clone(), window))
            });
            let early = lines.map(|(template, window)| Watermark {
                template,
                until: window.to,
                late_checked_until: window.to,
                position: None,
            });
            let early: Vec<Watermark> = early.collect();
            ledger.raise_watermarks(selection, &early).await?;
        }
        if plan.watermarks.is_empty() {
            return Ok(());
        }
        ledger.raise_watermarks(selection, &plan.watermarks).await
    }

    /// Moves the watermarks of templates as far as their finished slices allow; `origin` is where the selection begins.
    pub(crate) async fn raise(
        &self,
        selection: &SelectionKey,
        templates: &[TemplateId],
        origin: Instant,
    ) -> Result<()> {
        let ledger = self.store.ledger();
        let so_far = ledger.watermarks(selection).await?;
        let mut raised = Vec::new();
        // Most templates look from the same instant: what they share is found once.
        let mut together = BTreeMap::new();
        for template in templates {
            let before = so_far
                .iter()
                .find(|watermark| &watermark.template == template);
            raised.extend(
                self.raised(selection, template, before, origin, &mut together)
                    .await?,
            );
        }
        if raised.is_empty() {
            return Ok(());
        }
        ledger.raise_watermarks(selection, &raised).await
    }

    /// The watermark of a template, if its finished slices move it. `together` keeps slices that several templates share, by the
    /// instant behind which they end.
    async fn raised(
        &self,
        selection: &SelectionKey,
        template: &TemplateId,
        so_far: Option<&Watermark>,
        origin: Instant,
        together: &mut BTreeMap<Instant, Vec<Slice>>,
    ) -> Result<Option<Watermark>> {
        let ledger = self.store.ledger();
        let mut reached = so_far.cloned();
        let mut beyond = so_far.map_or(origin, |watermark| watermark.late_checked_until);
        // The first slices behind the watermark decide: a gap ends the look, however many are finished behind it.
        loop {
            let alone = SliceFilter::Read {
                selection,
                template,
                beyond,
            };
            let (slices, is_all) = if planted(Bug::WatermarkOverOpenSlice) {
                (ledger.slices(selection).await?, true)
            } else {
                let mut slices = ledger.find_slices(&alone, READ_AT_ONCE).await?;
                let shared = match together.entry(beyond) {
                    Entry::Occupied(found) => found.into_mut(),
                    Entry::Vacant(place) => {
                        let filter = SliceFilter::ReadTogether { selection, beyond };
                        place.insert(ledger.find_slices(&filter, READ_AT_ONCE).await?)
                    }
                };
                let is_all = slices.len().max(shared.len()) < READ_AT_ONCE;
                slices.extend_from_slice(shared);
                (slices, is_all)
            };
            let overlap = self.plan.overlap;
            let raised = watermark(template, &slices, reached.as_ref(), origin, overlap);
            let has_moved = raised.is_some();
            reached = raised.or(reached);
            match &reached {
                Some(reached) if has_moved && !is_all => beyond = reached.until,
                _ => break,
            }
        }
        Ok(reached.filter(|reached| Some(reached) != so_far))
    }

    /// Puts the slot or slots of a process under its requests; `None` if none is free.
    pub(crate) async fn request_slots(
        &self,
        owner: &str,
        kind: SlotKind,
        wanted: usize,
        dead: Option<&'static str>,
    ) -> Result<Option<SourceSlots>> {
        let request = SlotRequest {
            owner: owner.to_owned(),
            kind,
            wanted,
            dead,
        };
        SourceSlots::take(
            Arc::clone(&self.store),
            Arc::clone(&self.clock),
            Arc::clone(&self.source),
            self.slots,
            request,
        )
        .await
    }

    pub(crate) fn worker(&self, owner: String, dead: Option<&'static str>) -> Worker {
        Worker {
            source: Arc::clone(&self.source) as Arc<dyn Source>,
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            observer: Arc::clone(&self.observer),
            transform: self.transform.clone(),
            permits: Arc::new(Semaphore::new(self.readers.max(1) * PAGES_IN_FLIGHT)),
            pages: self.pages,
            lease: self.lease,
            owner,
            dead,
            due: self.due(),
        }
    }

    /// Sends the message of the part that is due, then notes that it is on its way. Dying between the two costs a second
    /// message, which will find nothing to do.
    pub(crate) async fn enqueue(&self, slice: &Slice) -> Result<()> {
        self.enqueue_later(slice, Duration::ZERO).await
    }

    /// As [`enqueue`](Self::enqueue), to be delivered `delay` from now.
    pub(crate) async fn enqueue_later(&self, slice: &Slice, delay: Duration) -> Result<()> {
        self.queue.send(&Message::of(slice), delay).await?;
        let noted = Slice {
            sent_part: slice.part,
            enqueued: Some(self.clock.now()),
            ..slice.clone()
        };
        // Refused means that a worker was faster: then it has the message.
        self.store
            .ledger()
            .swap_slice(slice, &noted)
            .await
            .map(|_| ())
    }

    /// A control record, as it is before anybody wrote it if nobody did.
    pub(crate) async fn record(&self, name: &str) -> Result<Record> {
        record(self.store.as_ref(), name).await
    }
}
