//! The engine, and what runs in one process and functions of a cloud have in common: the clock, plans, watermarks, workers.

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
use crate::plan::{self, Plan, PlanParts, PlanTerms, watermark};
use crate::ports::{Clock, Observer, Queue, Source, Store};
use crate::seeded::{Bug, planted};
use crate::slots::{SlotGatedSource, SlotKind, SlotRequest, SlotTerms, SourceSlots, record};
use crate::transform::Transform;
use crate::work::convert::Converters;
use crate::work::page::PageTerms;
use crate::work::{PAGES_IN_FLIGHT, Worker};

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
            outcome: None,
            counts: Counts::default(),
            failure: None,
            request: Some(request),
        }
    }

    /// Plans without changing anything.
    pub(crate) async fn plan(&self, request: &Request, run: &str) -> Result<Plan> {
        let mut counted = Vec::new();
        for origin in [Origin::Timer, Origin::OnDemand] {
            let unfinished = self.store.ledger().unfinished_runs(origin).await?;
            counted.extend(unfinished.into_iter().map(|run| run.id));
        }
        let parts = PlanParts {
            source: self.source.as_ref() as &dyn Source,
            store: self.store.as_ref(),
            transform: &self.transform,
        };
        plan::plan(parts, &self.plan, request, run, self.due(), &counted).await
    }

    pub(crate) async fn persist_plan(&self, selection: &SelectionKey, plan: &Plan) -> Result<()> {
        self.store
            .ledger()
            .keep_format(self.converters.format())
            .await?;
        if !plan.forgotten.is_empty() {
            self.store
                .ledger()
                .forget_watermarks(selection, &plan.forgotten)
                .await?;
        }
        if !plan.finished.is_empty() {
            self.store.ledger().remove_slices(&plan.finished).await?;
        }
        if !plan.slices.is_empty() {
            self.store.ledger().add_slices(&plan.slices).await?;
        }
        if planted(Bug::WatermarkBeforeRows) {
            let early = plan.slices.iter().map(|slice| Watermark {
                template: slice.template.clone(),
                until: slice.window.to,
                late_checked_until: slice.window.to,
                position: None,
            });
            let early: Vec<Watermark> = early.collect();
            self.store
                .ledger()
                .raise_watermarks(selection, &early)
                .await?;
        }
        if !plan.watermarks.is_empty() {
            self.store
                .ledger()
                .raise_watermarks(selection, &plan.watermarks)
                .await?;
        }
        Ok(())
    }

    /// Moves a template's watermark as far as its finished slices allow; `origin` is where its selection begins.
    pub(crate) async fn raise(
        &self,
        selection: &SelectionKey,
        template: &TemplateId,
        origin: Instant,
    ) -> Result<()> {
        let ledger = self.store.ledger();
        let so_far = ledger
            .watermarks(selection)
            .await?
            .into_iter()
            .find(|watermark| &watermark.template == template);
        let overlap = self.plan.overlap;
        let mut reached = so_far.clone();
        let mut beyond = so_far
            .as_ref()
            .map_or(origin, |watermark| watermark.late_checked_until);
        // The first slices behind the watermark decide: a gap ends the look, however many are finished behind it.
        loop {
            let filter = SliceFilter::Read {
                selection,
                template,
                beyond,
            };
            let slices = if planted(Bug::WatermarkOverOpenSlice) {
                ledger.slices(selection).await?
            } else {
                ledger.find_slices(&filter, READ_AT_ONCE).await?
            };
            let raised = watermark(template, &slices, reached.as_ref(), origin, overlap);
            let has_moved = raised.is_some();
            reached = raised.or(reached);
            match &reached {
                Some(reached) if has_moved && slices.len() == READ_AT_ONCE => {
                    beyond = reached.until;
                }
                _ => break,
            }
        }
        match reached {
            Some(watermark) if Some(&watermark) != so_far.as_ref() => {
                ledger.raise_watermarks(selection, &[watermark]).await
            }
            _ => Ok(()),
        }
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
