//! A whole run: plan, work the slices, report. What the command line calls; functions call the same parts
//! ([`plan`](crate::plan::plan), [`Worker::work`]) from their queue.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::convert::{Converters, Losses};
use crate::error::{Disposition, Error, ErrorKind, Result};
use crate::model::{
    Counts, LeaseTerms, Mode, Outcome, Run, SelectionKey, Slice, SliceKind, SliceState, Usage,
};
use crate::page::PageTerms;
use crate::plan::{Plan, PlanTerms, Request, plan, watermark};
use crate::ports::{Clock, Event, Observer, Source, Store};
use crate::work::{Budget, PAGES_IN_FLIGHT, Progress, Task, Worker};

/// Name of the hold that makes runs of the command line exclusive.
const EXPORT_HOLD: &str = "export";

/// [`Engine::retry_after`] of every run that nobody asked to retry: at most once a day.
pub const RETRY_QUARANTINE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The engine with everything it needs from the outside.
pub struct Engine {
    /// Where compositions come from.
    pub source: Arc<dyn Source>,
    /// Where they go.
    pub store: Arc<dyn Store>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Is told what happens.
    pub observer: Arc<dyn Observer>,
    /// Makes the content of the store.
    pub converters: Arc<dyn Converters>,
    /// How runs are cut into slices.
    pub plan: PlanTerms,
    /// Size of pages.
    pub pages: PageTerms,
    /// Duration of leases.
    pub lease: LeaseTerms,
    /// A composition in quarantine is tried again this long after it was tried last.
    pub retry_after: Duration,
    /// Requests that the source answers at once: it keeps that bound itself, this sizes work and memory for it.
    pub readers: usize,
}

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
    /// As [`plan`].
    pub async fn dry_run(&self, request: &Request) -> Result<Plan> {
        self.store.prepare().await?;
        let due = self.due();
        plan(
            self.source.as_ref(),
            self.store.as_ref(),
            &self.plan,
            request,
            "dry-run",
            due,
        )
        .await
    }

    /// Brings the copy up to the cut. A run that was stopped or killed is continued by the next one.
    ///
    /// # Errors
    /// Only what prevents a run from beginning: the store is held by another run, source or store refuse, or the stop
    /// comes first.
    /// What happens later is in the report.
    pub async fn export(&self, request: &Request, budget: &Budget) -> Result<Report> {
        let begun = tokio::time::Instant::now();
        self.store.prepare().await?;
        let Some(_hold) = self.store.hold(EXPORT_HOLD).await? else {
            return Err(Error::new(
                ErrorKind::Held,
                "start a run: another one is exporting into this store",
            )
            .fix("wait for it to end; `atlas status` shows how far it is"));
        };
        let usage_before = self.source.usage();
        let mut run = Run {
            id: uuid::Uuid::now_v7().to_string(),
            selection: request.selection.key(),
            mode: request.mode,
            started: self.clock.now(),
            ended: None,
            cut: None,
            outcome: None,
            counts: Counts::default(),
        };
        let request = &self.continued(request, &run.selection).await?;
        let planning = plan(
            self.source.as_ref(),
            self.store.as_ref(),
            &self.plan,
            request,
            &run.id,
            self.due(),
        );
        let Some(plan) = budget.stop.run_until_cancelled(planning).await else {
            return Err(Error::new(
                ErrorKind::Interrupted,
                "plan the run: it was stopped before anything was read",
            )
            .fix("run again; nothing was changed"));
        };
        let plan = plan?;
        run.cut = Some(plan.cut);
        self.store.save_run(&run).await?;
        self.keep(&run.selection, &plan).await?;

        let mut tally = Tally::new(&plan);
        let stopped_by = self
            .work_all(request, &run, &plan, budget, &mut tally)
            .await
            .err();
        self.fill_watermarks(&run.selection, &mut tally).await?;
        for (template, report) in &mut tally.templates {
            report.losses = self.converters.losses(template);
        }

        let counts = tally.total();
        run.ended = Some(self.clock.now());
        run.outcome = Some(tally.outcome(stopped_by.as_ref(), budget, self.clock.now()));
        run.counts = counts;
        let saved = self.store.save_run(&run).await;
        let stopped_by = match (stopped_by, saved) {
            (None, Err(error)) => Some(error),
            (stopped_by, _) => stopped_by,
        };
        let usage = self.source.usage();
        Ok(Report {
            outcome: if stopped_by.is_some() && run.outcome == Some(Outcome::Complete) {
                Outcome::Failed
            } else {
                run.outcome.unwrap_or(Outcome::Failed)
            },
            run: run.id,
            cut: plan.cut,
            counts,
            usage: Usage {
                requests: usage.requests - usage_before.requests,
                bytes: usage.bytes - usage_before.bytes,
            },
            elapsed: begun.elapsed(),
            templates: tally.templates,
            stopped_by,
        })
    }

    fn due(&self) -> Instant {
        self.clock.now().saturating_sub(self.retry_after)
    }

    /// A full run that was cut short goes on where it stopped: its open slices are all that is left of it.
    async fn continued(&self, request: &Request, selection: &SelectionKey) -> Result<Request> {
        let mut request = request.clone();
        if request.mode == Mode::Full {
            let unfinished = self.store.runs(1).await?.into_iter().find(|last| {
                last.mode == Mode::Full
                    && &last.selection == selection
                    && last.cut.is_some()
                    && matches!(last.outcome, None | Some(Outcome::Interrupted))
            });
            let open = match &unfinished {
                Some(last) => self
                    .store
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

    async fn keep(&self, selection: &SelectionKey, plan: &Plan) -> Result<()> {
        self.store.keep_format(self.converters.format()).await?;
        if !plan.forgotten.is_empty() {
            self.store
                .forget_frontiers(selection, &plan.forgotten)
                .await?;
        }
        if !plan.finished.is_empty() {
            self.store.remove_slices(&plan.finished).await?;
        }
        if !plan.slices.is_empty() {
            self.store.add_slices(&plan.slices).await?;
        }
        if !plan.frontiers.is_empty() {
            self.store
                .raise_frontiers(selection, &plan.frontiers)
                .await?;
        }
        Ok(())
    }

    /// Works every slice that is not done, a few at a time. Ends early when nothing more can succeed.
    async fn work_all(
        &self,
        request: &Request,
        run: &Run,
        plan: &Plan,
        budget: &Budget,
        tally: &mut Tally,
    ) -> Result<()> {
        let mut waiting: VecDeque<Slice> = self
            .store
            .slices(&run.selection)
            .await?
            .into_iter()
            .filter(|slice| {
                slice.state != SliceState::Done && plan.templates.contains(&slice.template)
            })
            .collect();
        announce(&waiting, self.observer.as_ref());
        let worker = self.worker(&run.id);
        let mut working = JoinSet::new();
        let mut stopped_by = None;
        loop {
            while stopped_by.is_none()
                // One more than there are readers: it reads while another one commits its end.
                && working.len() <= self.readers.max(1)
                && !budget.is_spent(self.clock.now())
                && let Some(slice) = waiting.pop_front()
            {
                let converter = match self.converters.of(&slice.template).await {
                    Ok(converter) => converter,
                    Err(error) => {
                        stopped_by = self.fail(tally, &slice, error);
                        continue;
                    }
                };
                let task = Task {
                    run: run.id.clone(),
                    ehrs: request.selection.ehrs.clone(),
                    converter,
                    format: self.converters.format(),
                    slice,
                };
                let (worker, budget) = (worker.clone(), budget.clone());
                working.spawn(async move {
                    let slice = task.slice.clone();
                    let result = worker.work(task, &budget).await;
                    (slice, result)
                });
            }
            let Some(ended) = working.join_next().await else {
                return stopped_by.map_or(Ok(()), Err);
            };
            let (before, result) = ended.map_err(|error| {
                Error::new(ErrorKind::Internal, "work a slice: its task ended").because(error)
            })?;
            let after = self.store.slice(&before.id).await?;
            if let Some(after) = &after {
                tally.add(after, &before);
            }
            match result {
                Ok(Progress::Done) => {
                    if before.kind == SliceKind::Read {
                        self.raise(request, &run.selection, &before.template)
                            .await?;
                    }
                }
                Ok(Progress::Paused) => tally.paused = true,
                Ok(Progress::Held) => {
                    let error = Error::new(ErrorKind::Held, "work a slice: another worker has it")
                        .fix("the other worker finishes it; run again to see the result");
                    stopped_by = stopped_by.or(self.fail(tally, &before, error));
                }
                Err(error) => {
                    let fatal = self.fail(tally, &before, error);
                    stopped_by = stopped_by.or(fatal);
                }
            }
        }
    }

    /// Notes why a slice could not go on; answers the error if the whole run cannot.
    fn fail(&self, tally: &mut Tally, slice: &Slice, error: Error) -> Option<Error> {
        self.observer.event(&Event::SliceFailed {
            template: &slice.template,
            error: &error,
        });
        tally
            .templates
            .entry(slice.template.clone())
            .or_default()
            .failure = Some(error.chain());
        match (error.kind(), error.kind().disposition()) {
            (ErrorKind::Held, _) => None,
            // Retried often enough inside the ports: the next slice would fare no better.
            (_, Disposition::Retry | Disposition::StopRun) => Some(error),
            (_, Disposition::StopSlice | Disposition::Divide) => None,
        }
    }

    fn worker(&self, run: &str) -> Worker {
        Worker {
            source: Arc::clone(&self.source),
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            observer: Arc::clone(&self.observer),
            permits: Arc::new(Semaphore::new(self.readers.max(1) * PAGES_IN_FLIGHT)),
            pages: self.pages,
            lease: self.lease,
            owner: format!("export/{run}"),
            takes_over: true,
            due: self.due(),
        }
    }

    async fn raise(
        &self,
        request: &Request,
        selection: &SelectionKey,
        template: &TemplateId,
    ) -> Result<()> {
        let slices = self.store.slices(selection).await?;
        let so_far = self
            .store
            .frontiers(selection)
            .await?
            .into_iter()
            .find(|frontier| &frontier.template == template);
        let origin = request.selection.from.unwrap_or(Instant::EPOCH);
        let overlap = self.plan.overlap;
        let Some(frontier) = watermark(template, &slices, so_far.as_ref(), origin, overlap) else {
            return Ok(());
        };
        self.store.raise_frontiers(selection, &[frontier]).await
    }

    async fn fill_watermarks(&self, selection: &SelectionKey, tally: &mut Tally) -> Result<()> {
        for frontier in self.store.frontiers(selection).await? {
            if let Some(report) = tally.templates.get_mut(&frontier.template) {
                report.watermark = Some(frontier.until);
            }
        }
        Ok(())
    }
}

fn announce(waiting: &VecDeque<Slice>, observer: &dyn Observer) {
    let mut expected: BTreeMap<&TemplateId, u64> = BTreeMap::new();
    for slice in waiting {
        *expected.entry(&slice.template).or_insert(0) +=
            slice.expected.saturating_sub(slice.counts.read);
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
        self.templates
            .entry(after.template.clone())
            .or_default()
            .counts += added;
    }

    fn total(&self) -> Counts {
        let mut total = Counts::default();
        for report in self.templates.values() {
            total += report.counts;
        }
        total
    }

    fn outcome(&self, stopped_by: Option<&Error>, budget: &Budget, now: Instant) -> Outcome {
        let failed = self
            .templates
            .values()
            .any(|report| report.failure.is_some());
        if stopped_by.is_some() {
            Outcome::Failed
        } else if self.paused || budget.is_spent(now) {
            Outcome::Interrupted
        } else if failed || self.fresh_quarantine > 0 {
            Outcome::Partial
        } else {
            Outcome::Complete
        }
    }
}
