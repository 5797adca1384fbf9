//! A whole run in one process: plan, work the slices from a queue of its own, report. What the command line calls; the
//! functions of a cloud do the same in many processes ([`suite`](crate::suite)).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use tokio::task::JoinSet;

use crate::engine::Engine;
use crate::error::{Error, ErrorKind, InRun, Result};
use crate::lease::{RunLease, RunLeaseRequest};
use crate::local::{Delivery, LocalQueue};
use crate::message::{Message, Task};
use crate::model::{
    Counts, Cut, Mode, Origin, Outcome, Request, Run, SelectionKey, Slice, SliceKind, SliceState,
    Usage,
};
use crate::plan::{Plan, PlanKeeper, Unkept};
use crate::ports::{Event, Observer, Queue, Source};
use crate::slots::{SlotKind, SourceSlots, want_slot};
use crate::work::convert::Losses;
use crate::work::job::{SliceJob, Worked};
use crate::work::{Budget, Progress};

/// Name of the lease that makes runs of the command line exclusive.
const EXPORT_LEASE: &str = "export";

/// What the owners of such runs begin with: whoever has the lease knows that all others of them are dead.
const EXPORT_OWNER: &str = "export/";

/// A run that finds all slots taken looks again after this long.
const SLOT_AGAIN: Duration = Duration::from_secs(1);

/// What became of one template in a run.
#[derive(Debug, Clone, Default)]
pub struct TemplateReport {
    /// What became of its compositions.
    pub counts: Counts,
    /// "Checked until", after the run.
    pub watermark: Option<Instant>,
    /// What the format did not carry (quirks of FLAT).
    pub losses: Losses,
    /// Why it is not complete, without personal data.
    pub failure: Option<String>,
}

/// What became of a run.
#[derive(Debug)]
pub struct Report {
    /// The run.
    pub run: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Commit times before this were looked at.
    pub cut: Instant,
    /// What became of the compositions; the sum over `templates`.
    pub counts: Counts,
    /// What the source was asked.
    pub usage: Usage,
    /// How long it took.
    pub elapsed: Duration,
    /// By template.
    pub templates: BTreeMap<TemplateId, TemplateReport>,
    /// What stopped the run before its end, if something did.
    pub stopped_by: Option<Error>,
}

impl Engine {
    /// What a run would do, without doing it.
    ///
    /// # Errors
    /// As [`plan`](crate::plan::plan).
    pub async fn dry_run(&self, request: &Request) -> Result<Plan> {
        self.store.prepare().await?;
        self.follow_store_clock().await?;
        let owner = format!("dry-run/{}", uuid::Uuid::now_v7());
        let slots = self.acquire(&owner, None, &Budget::default()).await?;
        let plan = self
            .plan(request, "dry-run", &Unkept, &Budget::default())
            .await;
        slots.release().await;
        plan
    }

    /// Brings the copy up to the cut. A run that was stopped or killed is continued by the next one.
    ///
    /// # Errors
    /// Only what prevents a run from beginning: the store is held by another run, source or store refuse, or the stop
    /// comes first.
    /// What happens later is in the report.
    pub async fn export(&self, request: &Request, budget: &Budget) -> Result<Report> {
        self.store.prepare().await?;
        self.follow_store_clock().await?;
        let id = uuid::Uuid::now_v7().to_string();
        let owner = format!("{EXPORT_OWNER}{id}");
        let lease = RunLeaseRequest {
            store: &self.store,
            clock: &self.clock,
            observer: self.observer.as_ref(),
            terms: self.run_lease,
            name: EXPORT_LEASE,
            owner: owner.clone(),
        };
        let Some(lease) = RunLease::take(lease, &budget.stop).await? else {
            return Err(Error::new(
                ErrorKind::Held,
                "start a run: another one is exporting into this store",
            )
            .fix("wait for it to end; `atlas status` shows how far it is"));
        };
        let report = self.export_alone(&lease, id, owner, request, budget).await;
        lease.release().await;
        report
    }

    /// The run, under its lease: a lease that is lost stops it at the next page.
    async fn export_alone(
        &self,
        lease: &RunLease,
        id: String,
        owner: String,
        request: &Request,
        budget: &Budget,
    ) -> Result<Report> {
        let stop = budget.stop.child_token();
        let under_lease = Budget {
            stop: stop.clone(),
            ..budget.clone()
        };
        let exporting = async {
            let slots = self
                .acquire(&owner, Some(EXPORT_OWNER), &under_lease)
                .await?;
            let report = self
                .export_with_slots(id, owner.clone(), request, &under_lease)
                .await;
            slots.release().await;
            report
        };
        tokio::pin!(exporting);
        let lost = tokio::select! {
            report = &mut exporting => return report,
            () = lease.lost().cancelled() => {
                stop.cancel();
                Error::new(ErrorKind::LostLease, "go on with the run: another one has taken over")
                    .fix("the other run goes on from the last checkpoints; was this process stopped for a while?")
            }
        };
        let mut report = exporting.await?;
        report.outcome = Outcome::Interrupted;
        report.stopped_by = report.stopped_by.or(Some(lost));
        Ok(report)
    }

    async fn export_with_slots(
        &self,
        id: String,
        owner: String,
        request: &Request,
        budget: &Budget,
    ) -> Result<Report> {
        let begun = tokio::time::Instant::now();
        let usage_before = self.source.usage();
        let run = self.new_run(id, Origin::CommandLine, request.clone());
        let request = &self.continued(request, &run.selection).await?;
        let plan = self.plan_export(request, &run, budget).await?;

        // From here on something may be committed: whatever stops the run, its report comes.
        let mut tally = Tally::new(&plan);
        let mut stopped_by = self
            .work_all(request, owner, &run, &plan, budget, &mut tally)
            .await
            .err();
        if let Err(error) = self.fill_watermarks(&run.selection, &mut tally).await {
            stopped_by = stopped_by.or(Some(error));
        }
        for (template, report) in &mut tally.templates {
            report.losses = self.converters.losses(template);
        }

        let counts = tally.total();
        let outcome = tally.outcome(stopped_by.as_ref(), budget);
        let end = |run: &Run| run.ended(self.clock.now(), outcome, counts);
        if let Err(error) = self.change_run(&run.id, end).await {
            stopped_by = stopped_by.or(Some(error));
        }
        let usage = self.source.usage();
        if stopped_by.is_none() {
            self.prune_runs().await;
        }
        Ok(Report {
            outcome: tally.outcome(stopped_by.as_ref(), budget),
            run: run.id,
            cut: plan.cut,
            counts,
            usage: Usage {
                requests: usage.requests - usage_before.requests,
                bytes: usage.bytes - usage_before.bytes,
                busy: usage.busy - usage_before.busy,
            },
            elapsed: begun.elapsed(),
            templates: tally.templates,
            stopped_by,
        })
    }

    /// Plans a run, whose record is there from its cut on.
    async fn plan_export(&self, request: &Request, run: &Run, budget: &Budget) -> Result<Plan> {
        let keeper = ExportKeeper { engine: self, run };
        // Only a stop ends it: the time of a budget is that of pages.
        let budget = &Budget {
            stop: budget.stop.clone(),
            ..Budget::default()
        };
        let planned: Result<Plan> = async {
            let plan = self.plan(request, &run.id, &keeper, budget).await?;
            self.raise_planned(&run.selection, &plan).await?;
            self.change_run(&run.id, Run::planned).await?;
            Ok(plan)
        }
        .await;
        if let Err(error) = &planned {
            let ended = match error.kind() {
                ErrorKind::Interrupted => self.end_unplanned(&run.id).await,
                _ => self.fail_run(&run.id, &error.chain()).await,
            };
            if let Err(second) = ended {
                tracing::warn!("the end of a run was not noted: {}", second.chain());
            }
        }
        planned
    }

    /// As many slots as there are readers, or as many as are free; waits for the first one.
    async fn acquire(
        &self,
        owner: &str,
        dead: Option<&'static str>,
        budget: &Budget,
    ) -> Result<SourceSlots> {
        let store = self.store.as_ref();
        let mut reported = false;
        loop {
            let kind = SlotKind::CommandLine;
            if let Some(slots) = self.request_slots(owner, kind, self.readers, dead).await? {
                if reported {
                    want_slot(store, owner, None).await?;
                }
                return Ok(slots);
            }
            // Workers keep a slot from slice to slice, until somebody says that he waits.
            let until = self.clock.now().saturating_add(SLOT_AGAIN * 10);
            want_slot(store, owner, Some(until)).await?;
            if !reported {
                reported = true;
                let note = "all slots of the source are taken by other workers; waiting for one";
                self.observer.event(&Event::Note(note));
            }
            let waited = budget
                .stop
                .run_until_cancelled(tokio::time::sleep(SLOT_AGAIN));
            if waited.await.is_none() {
                return Err(stopped_early());
            }
        }
    }

    /// A full run that was cut short goes on where it stopped: its open slices are all that is left of it.
    async fn continued(&self, request: &Request, selection: &SelectionKey) -> Result<Request> {
        let mut request = request.clone();
        if request.mode == Mode::Full {
            let unfinished = self.store.ledger().runs(1).await?.into_iter().find(|last| {
                last.mode == Mode::Full
                    && &last.selection == selection
                    && last.planned
                    && matches!(last.outcome, None | Some(Outcome::Interrupted))
            });
            let open = match &unfinished {
                Some(last) => self
                    .store
                    .ledger()
                    .slices(selection)
                    .await?
                    .into_iter()
                    .any(|slice| slice.state == SliceState::Open && slice.id.ends_with(&last.id)),
                None => false,
            };
            if open {
                self.observer.event(&Event::Note(
                    "going on with the full run that was stopped before its end",
                ));
                request.mode = Mode::Incremental;
            }
        }
        Ok(request)
    }

    /// Works every slice that is not done, a few at a time. Ends early when nothing more can succeed.
    async fn work_all(
        &self,
        request: &Request,
        owner: String,
        run: &Run,
        plan: &Plan,
        budget: &Budget,
        tally: &mut Tally,
    ) -> Result<()> {
        let mut waiting = self.store.ledger().slices(&run.selection).await?;
        waiting.retain(|slice| {
            let mut templates = slice.templates();
            slice.state != SliceState::Done
                && templates.any(|template| plan.templates.contains(template))
        });
        announce(&waiting, self.observer.as_ref());
        let queue = LocalQueue::default();
        for slice in waiting {
            queue.send(&Message::of(&slice), Duration::ZERO).await?;
        }
        let job = SliceJob {
            converters: Arc::clone(&self.converters),
            worker: self.worker(owner, Some(EXPORT_OWNER)),
            ehrs: request.selection.ehrs.clone(),
            run: run.id.clone(),
        };
        let mut working = JoinSet::new();
        let mut stopped_by: Option<Error> = None;
        loop {
            while stopped_by.is_none()
                // One more than there are readers: it reads while another one commits its end.
                && working.len() <= self.readers.max(1)
                && !budget.is_spent()
                && let Some(Delivery { message, .. }) = queue.next()
            {
                let Task::Slice { id, .. } = message.task else {
                    continue;
                };
                let slice = match self.store.ledger().slice(&id).await {
                    Ok(Some(slice)) => slice,
                    Ok(None) => continue,
                    // The slices in work come to their next page first.
                    Err(error) => {
                        stopped_by = Some(error);
                        continue;
                    }
                };
                let (job, budget) = (job.clone(), budget.clone());
                working.spawn(async move {
                    let worked = job.work(slice.clone(), &budget).await;
                    (slice, worked)
                });
            }
            let Some(ended) = working.join_next().await else {
                return stopped_by.map_or(Ok(()), Err);
            };
            let stop = match ended {
                Ok((before, worked)) => {
                    if let Some(after) = &worked.after {
                        queue_taken_out(&queue, &before, after).await?;
                    }
                    self.note_worked(request, run, tally, &before, worked).await
                }
                Err(error) => Some(
                    Error::new(ErrorKind::Internal, "work a slice: its task ended").because(error),
                ),
            };
            stopped_by = stopped_by.or(stop);
        }
    }

    /// Notes how a slice was worked, and moves its watermark; answers the error if the whole run cannot go on.
    async fn note_worked(
        &self,
        request: &Request,
        run: &Run,
        tally: &mut Tally,
        before: &Slice,
        worked: Worked,
    ) -> Option<Error> {
        if let Some(after) = &worked.after {
            tally.add(after, before);
        }
        match worked.result {
            Ok(Progress::Done) if before.kind == SliceKind::Read => {
                let origin = request.selection.origin();
                // Members that were taken out meanwhile have slices of their own.
                let read = worked.after.as_ref().unwrap_or(before);
                let templates: Vec<TemplateId> = read.templates().cloned().collect();
                let raised = self.raise(&run.selection, &templates, origin);
                raised.await.err()
            }
            Ok(Progress::Done) => None,
            Ok(Progress::Paused) => {
                tally.paused = true;
                None
            }
            Ok(Progress::Held) => {
                let error = Error::new(ErrorKind::Held, "work a slice: another worker has it")
                    .fix("the other worker finishes it; run again to see the result");
                self.fail(tally, before, error)
            }
            Err(error) => self.fail(tally, before, error),
        }
    }

    /// Notes why a slice could not go on; answers the error if the whole run cannot.
    fn fail(&self, tally: &mut Tally, slice: &Slice, error: Error) -> Option<Error> {
        for template in slice.templates() {
            self.observer.event(&Event::SliceFailed {
                template,
                error: &error,
            });
            let report = tally.templates.entry(template.clone()).or_default();
            report.failure = Some(error.chain());
        }
        match error.kind().policy().run {
            InRun::Stop => Some(error),
            InRun::NextSlice => None,
        }
    }

    async fn fill_watermarks(&self, selection: &SelectionKey, tally: &mut Tally) -> Result<()> {
        for watermark in self.store.ledger().watermarks(selection).await? {
            if let Some(report) = tally.templates.get_mut(&watermark.template) {
                report.watermark = Some(watermark.until);
            }
        }
        Ok(())
    }
}

/// Members that were taken out of a slice have slices of their own, which nobody else works.
async fn queue_taken_out(queue: &LocalQueue, slice: &Slice, after: &Slice) -> Result<()> {
    for (before, after) in slice.members.iter().zip(&after.members) {
        if after.taken_out
            && !before.taken_out
            && let Some((_, own)) = slice.without(&after.template)
        {
            queue.send(&Message::of(&own), Duration::ZERO).await?;
        }
    }
    Ok(())
}

/// Keeps the plan of a run of the command line, which nobody else works.
struct ExportKeeper<'a> {
    engine: &'a Engine,
    run: &'a Run,
}

#[async_trait]
impl PlanKeeper for ExportKeeper<'_> {
    async fn fix_cut(&self, cut: Cut) -> Result<Cut> {
        let run = Run {
            cut: Some(cut.at),
            source_clock: Some(cut.source_clock),
            ..self.run.clone()
        };
        self.engine.store.ledger().add_run(&run).await?;
        Ok(cut)
    }

    async fn forget(&self, watermarks: &[TemplateId], slices: &[String]) -> Result<()> {
        self.engine
            .forget(&self.run.selection, watermarks, slices)
            .await
    }

    async fn add_slices(&self, slices: &[Slice]) -> Result<()> {
        self.engine.store.ledger().add_slices(slices).await
    }
}

fn stopped_early() -> Error {
    Error::new(
        ErrorKind::Interrupted,
        "plan the run: it was stopped before anything was read",
    )
    .fix("run again; nothing was changed")
}

fn announce(waiting: &[Slice], observer: &dyn Observer) {
    let mut expected: BTreeMap<&TemplateId, u64> = BTreeMap::new();
    for slice in waiting {
        for line in slice.lines().filter(|line| line.is_read) {
            *expected.entry(line.template).or_insert(0) +=
                line.expected.saturating_sub(line.counts.read);
        }
    }
    for (template, expected) in expected {
        observer.event(&Event::Planned { template, expected });
    }
}

/// What this process did, by template.
struct Tally {
    templates: BTreeMap<TemplateId, TemplateReport>,
    /// Quarantined while reading or comparing: what fails again when it is retried is no news.
    fresh_quarantine: u64,
    paused: bool,
}

impl Tally {
    fn new(plan: &Plan) -> Self {
        Self {
            templates: plan
                .templates
                .iter()
                .map(|template| (template.clone(), TemplateReport::default()))
                .collect(),
            fresh_quarantine: 0,
            paused: false,
        }
    }

    fn add(&mut self, after: &Slice, before: &Slice) {
        let added = after.counts.since(&before.counts);
        if after.kind != SliceKind::Retry {
            self.fresh_quarantine += added.quarantined;
        }
        for (after, before) in after.lines().zip(before.lines()) {
            let report = self.templates.entry(after.template.clone()).or_default();
            report.counts += after.counts.since(&before.counts);
        }
    }

    fn total(&self) -> Counts {
        let mut total = Counts::default();
        for report in self.templates.values() {
            total += report.counts;
        }
        total
    }

    fn outcome(&self, stopped_by: Option<&Error>, budget: &Budget) -> Outcome {
        let failed = self
            .templates
            .values()
            .any(|report| report.failure.is_some());
        if stopped_by.is_some() {
            Outcome::Failed
        } else if self.paused || budget.is_spent() {
            Outcome::Interrupted
        } else if failed || self.fresh_quarantine > 0 {
            Outcome::Partial
        } else {
            Outcome::Complete
        }
    }
}
