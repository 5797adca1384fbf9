//! What the planner does when its timer fires, and what a run on demand needs of it: plan, send, sweep, end runs.
//!
//! ```text
//!  tick ─► planner's lease ─► sweep ─────────────► plan ─► slices in the store ─► messages ─► run has its cut
//!             (one at a time)  lost messages,       (with a slot of the source)
//!                              dead workers,
//!                              failed slices, ends of runs
//! ```
//! The occurrence of the schedule names the run, so a timer that fires twice, late or again after a crash goes on with the
//! same run. Everything that a planner may have left undone is found in the store by the next one.

use std::collections::BTreeMap;
use std::time::Duration;

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::model::{
    Counts, Mode, Origin, Outcome, Record, Request, Run, Selection, SelectionKey, Slice, SliceKind,
    SliceState,
};
use crate::plan;
use crate::slots::SourceSlots;
use crate::suite::deliver::{Delivered, MarkedFailed};
use crate::work::Budget;

/// The record whose lease makes planning exclusive.
pub(crate) const PLANNER: &str = "planner";
/// What the owners of leases for planning begin with.
pub(crate) const PLANNER_OWNER: &str = "planner/";

/// What a tick did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannerTick {
    /// The run of this occurrence.
    pub run: String,
    /// Commit times before this belong to it; `None` = nothing was planned, because another planner is at work, all slots
    /// stayed taken, or the time ran out: the next tick does it.
    pub cut: Option<Instant>,
    /// Messages for slices that had none.
    pub sent: usize,
    /// Messages sent again.
    pub sent_again: usize,
}

/// What somebody who asks for a run gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunRequested {
    /// It was accepted, and is planned by a worker.
    New(Run),
    /// The same was asked for under this key before.
    Same(Run),
    /// Something else was asked for under this key before.
    Conflict,
}

/// How a run stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunState {
    /// Its record; counts are those of its slices so far.
    pub run: Run,
    /// Compositions that its slices are expected to read.
    pub expected: u64,
    /// Slices that are not finished.
    pub open: usize,
    /// Slices that are finished and still there.
    pub done: usize,
    /// Slices that were given up.
    pub failed: usize,
}

impl Engine {
    /// Plans what is new for a selection, as the schedule's occurrence asks, and repairs what others left undone.
    ///
    /// # Errors
    /// Whatever source, store and queue could not do. Called again with the same occurrence, it goes on.
    pub async fn plan_and_repair(
        &self,
        occurrence: Instant,
        request: &Request,
        budget: &Budget,
    ) -> Result<PlannerTick> {
        self.store.prepare().await?;
        self.follow_store_clock().await?;
        let mut tick = PlannerTick {
            run: format!("timer/{occurrence}"),
            cut: None,
            sent: 0,
            sent_again: 0,
        };
        let Some(lease) = self.lead().await? else {
            return Ok(tick);
        };
        let result = self.lead_tick(&mut tick, request, budget).await;
        self.stop_leading(&lease).await;
        result.map(|()| tick)
    }

    async fn lead_tick(
        &self,
        tick: &mut PlannerTick,
        request: &Request,
        budget: &Budget,
    ) -> Result<()> {
        let selection = request.selection.key();
        tick.sent_again = self.sweep(&request.selection, &tick.run).await?;
        let planned = match self.store.ledger().run(&tick.run).await? {
            Some(run) if run.cut.is_some() => Some(run),
            begun => match self.wait_for_planning_slot(budget).await? {
                Some(slots) => {
                    let planned = self.plan_tick(begun, &tick.run, request).await;
                    slots.release().await;
                    Some(planned?)
                }
                None => None,
            },
        };
        if let Some(run) = planned {
            tick.cut = run.cut;
            tick.sent = self.send_unsent(&selection).await?;
            self.finish_run(&run.id).await?;
        }
        Ok(())
    }

    async fn plan_tick(&self, begun: Option<Run>, id: &str, request: &Request) -> Result<Run> {
        let run = match begun {
            Some(run) => run,
            None => {
                let run = self.new_run(id.to_owned(), Origin::Timer, request.clone());
                self.store.ledger().add_run(&run).await?;
                run
            }
        };
        self.plan_run(run).await
    }

    /// The planner's lease; `None` while another one has it.
    async fn lead(&self) -> Result<Option<Record>> {
        let record = self.record(PLANNER).await?;
        let now = self.clock.now();
        if record.is_held(now) {
            return Ok(None);
        }
        let mine = Record {
            owner: Some(format!("{PLANNER_OWNER}{}", uuid::Uuid::now_v7())),
            // Planning can take longer on a large server: two planners decide the same, so that is harmless.
            until: Some(now.saturating_add(self.lease.duration)),
            ..record.clone()
        };
        self.store.ledger().swap_record(&record, &mine).await
    }

    async fn stop_leading(&self, lease: &Record) {
        let free = Record {
            owner: None,
            until: None,
            ..lease.clone()
        };
        if let Err(error) = self.store.ledger().swap_record(lease, &free).await {
            tracing::warn!(
                "the planner's lease was not given back and is held until it ends: {}",
                error.chain()
            );
        }
    }

    async fn wait_for_planning_slot(&self, budget: &Budget) -> Result<Option<SourceSlots>> {
        let owner = format!("{PLANNER_OWNER}{}", uuid::Uuid::now_v7());
        let patience = tokio::time::Instant::now() + self.lease.duration / 3;
        loop {
            if let Some(slots) = self.request_slots(&owner, 1, None).await? {
                return Ok(Some(slots));
            }
            let again = tokio::time::Instant::now() + self.lease.duration / 45;
            if budget.is_spent() || again > patience {
                return Ok(None);
            }
            tokio::time::sleep_until(again).await;
        }
    }

    /// Plans a run that has no cut yet. Its slices are durable before its cut is: a crash between the two plans the rest.
    async fn plan_run(&self, run: Run) -> Result<Run> {
        let Some(mut request) = run.request.clone() else {
            return Err(Error::new(
                ErrorKind::StoreCorrupt,
                "plan a run: its record does not say what was asked for",
            ));
        };
        let slices = self.store.ledger().slices(&run.selection).await?;
        if slices.iter().any(|slice| slice.run == run.id) {
            // Planned once already, up to where its slices reach.
            request.mode = Mode::Incremental;
        }
        let plan = self.plan(&request, &run.id).await?;
        self.persist_plan(&run.selection, &plan).await?;
        self.adopt(&run).await?;
        let run = Run {
            cut: Some(plan.cut),
            ..run
        };
        self.store.ledger().save_run(&run).await?;
        Ok(run)
    }

    async fn send_unsent(&self, selection: &SelectionKey) -> Result<usize> {
        let mut sent = 0;
        for slice in self.store.ledger().slices(selection).await? {
            let waits = slice.state == SliceState::Open && slice.sent_part < slice.part;
            if waits && !slice.is_leased(self.clock.now()) {
                self.enqueue(&slice).await?;
                sent += 1;
            }
        }
        Ok(sent)
    }

    /// Finds what was left undone: messages that got lost, slices whose worker died, failed slices, watermarks and ends of
    /// runs that nobody wrote. Answers how many messages were sent again.
    async fn sweep(&self, selection: &Selection, current: &str) -> Result<usize> {
        let key = selection.key();
        let mut sent = self.sweep_selection(selection, true).await?;
        for run in self.store.ledger().unfinished_runs(Origin::Timer).await? {
            if run.cut.is_none() && run.id != current {
                // Its planner died before it had planned: this tick plans what it would have.
                self.end_unplanned(run).await?;
                continue;
            }
            self.finish_run(&run.id).await?;
        }
        for run in self
            .store
            .ledger()
            .unfinished_runs(Origin::OnDemand)
            .await?
        {
            if run.cut.is_none() {
                let patience = self.lease.duration * 2;
                if run.started.saturating_add(patience) < self.clock.now() {
                    self.queue
                        .send(&Message::plan(&run.id), Duration::ZERO)
                        .await?;
                    sent += 1;
                }
                continue;
            }
            if let Some(request) = &run.request
                && run.selection != key
            {
                sent += self.sweep_selection(&request.selection, false).await?;
            }
            self.finish_run(&run.id).await?;
        }
        Ok(sent)
    }

    async fn end_unplanned(&self, run: Run) -> Result<()> {
        let ended = Run {
            ended: Some(self.clock.now()),
            outcome: Some(Outcome::Interrupted),
            ..run
        };
        self.store.ledger().save_run(&ended).await
    }

    async fn sweep_selection(&self, selection: &Selection, revives: bool) -> Result<usize> {
        let key = selection.key();
        let now = self.clock.now();
        let mut finished: Vec<TemplateId> = Vec::new();
        let mut sent = 0;
        for slice in self.store.ledger().slices(&key).await? {
            match slice.state {
                SliceState::Done => {
                    if slice.kind == SliceKind::Read && !finished.contains(&slice.template) {
                        finished.push(slice.template);
                    }
                }
                SliceState::Open => {
                    if self.is_stranded(&slice, now) {
                        self.enqueue(&slice).await?;
                        sent += 1;
                    }
                }
                SliceState::Failed => {
                    let due = slice
                        .enqueued
                        .is_none_or(|at| at.saturating_add(self.sweep.revive) < now);
                    if revives && due {
                        let open = Slice {
                            state: SliceState::Open,
                            ..slice.clone()
                        };
                        if let Some(open) = self.store.ledger().swap_slice(&slice, &open).await? {
                            self.enqueue(&open).await?;
                            sent += 1;
                        }
                    }
                }
            }
        }
        for template in finished {
            self.raise(&key, &template, selection.origin()).await?;
        }
        Ok(sent)
    }

    /// Whether nobody works on an open slice and no message is likely to bring somebody.
    fn is_stranded(&self, slice: &Slice, now: Instant) -> bool {
        if slice.is_leased(now) {
            return false;
        }
        let Some(enqueued) = slice.enqueued.filter(|_| slice.sent_part >= slice.part) else {
            return true;
        };
        let worker_died =
            slice.owner.is_some() && slice.lease_until.is_some_and(|until| enqueued < until);
        worker_died || enqueued.saturating_add(self.sweep.orphan) < now
    }

    /// Ends a planned run whose slices are all finished or given up.
    pub(crate) async fn finish_run(&self, id: &str) -> Result<()> {
        let is_running = |run: &Run| {
            run.ended.is_none() && run.cut.is_some() && run.origin != Origin::CommandLine
        };
        let Some(run) = self.store.ledger().run(id).await?.filter(is_running) else {
            return Ok(());
        };
        let slices = self.slices_of(&run).await?;
        if slices.iter().any(|slice| slice.state == SliceState::Open) {
            return Ok(());
        }
        // Looked at after the slices: whoever ended the run meanwhile has removed some of them.
        let Some(run) = self.store.ledger().run(id).await?.filter(is_running) else {
            return Ok(());
        };
        let counts = total(&slices);
        let failed = slices.iter().any(|slice| slice.state == SliceState::Failed);
        let fresh = slices
            .iter()
            .any(|slice| slice.kind != SliceKind::Retry && slice.counts.quarantined > 0);
        let ended = Run {
            ended: Some(self.clock.now()),
            outcome: Some(if failed || fresh {
                Outcome::Partial
            } else {
                Outcome::Complete
            }),
            counts,
            ..run
        };
        self.store.ledger().save_run(&ended).await?;
        let watermarks = self.store.ledger().watermarks(&ended.selection).await?;
        let finished: Vec<String> = slices
            .into_iter()
            .filter(|slice| plan::is_behind(slice, &watermarks))
            .map(|slice| slice.id)
            .collect();
        if !finished.is_empty() {
            self.store.ledger().remove_slices(&finished).await?;
        }
        Ok(())
    }

    async fn slices_of(&self, run: &Run) -> Result<Vec<Slice>> {
        let mut slices = self.store.ledger().slices(&run.selection).await?;
        slices.retain(|slice| slice.run == run.id);
        Ok(slices)
    }

    pub(crate) async fn deliver_plan(
        &self,
        message: &Message,
        budget: &Budget,
    ) -> Result<Delivered> {
        self.follow_store_clock().await?;
        let Some(run) = self.store.ledger().run(&message.run).await? else {
            return Ok(Delivered::Stale);
        };
        if run.ended.is_some() || budget.is_spent() {
            return Ok(Delivered::Stale);
        }
        let Some(lease) = self.lead().await? else {
            return self.wait_for_slot(message).await;
        };
        let delivered = self.lead_plan(message, run).await;
        self.stop_leading(&lease).await;
        delivered
    }

    async fn lead_plan(&self, message: &Message, run: Run) -> Result<Delivered> {
        let run = if run.cut.is_some() {
            run
        } else {
            let owner = format!("{PLANNER_OWNER}{}", uuid::Uuid::now_v7());
            let Some(slots) = self.request_slots(&owner, 1, None).await? else {
                return self.wait_for_slot(message).await;
            };
            let planned = self.plan_run(run.clone()).await;
            slots.release().await;
            match planned {
                Ok(run) => run,
                Err(error) if cannot_be_planned(&error) => {
                    self.fail_run(run, error.chain()).await?;
                    return Ok(Delivered::GivenUp(error));
                }
                Err(error) => return Err(error),
            }
        };
        self.send_unsent(&run.selection).await?;
        self.finish_run(&run.id).await?;
        Ok(Delivered::Planned)
    }

    async fn fail_run(&self, run: Run, failure: String) -> Result<()> {
        let failed = Run {
            ended: Some(self.clock.now()),
            outcome: Some(Outcome::Failed),
            failure: Some(failure),
            ..run
        };
        self.store.ledger().save_run(&failed).await
    }

    pub(crate) async fn mark_run_failed(&self, id: &str) -> Result<MarkedFailed> {
        match self.store.ledger().run(id).await? {
            Some(run) if run.ended.is_none() && run.cut.is_none() => {
                let why =
                    "given up after several tries to plan it; `atlas doctor` tells what is wrong";
                self.fail_run(run, why.to_owned()).await?;
                Ok(MarkedFailed::Failed)
            }
            _ => Ok(MarkedFailed::Stale),
        }
    }

    /// Accepts a run on demand; a worker plans it. The same key with the same request is the same run.
    ///
    /// # Errors
    /// What store and queue could not do. Asked again with the same key, nothing happens twice.
    pub async fn request_run(&self, key: Option<&str>, request: Request) -> Result<RunRequested> {
        self.store.prepare().await?;
        self.follow_store_clock().await?;
        let id = key
            .map_or_else(uuid::Uuid::now_v7, run_id_of_key)
            .to_string();
        let run = self.new_run(id, Origin::OnDemand, request);
        let is_new = self.store.ledger().add_run(&run).await?;
        let stands = self
            .store
            .ledger()
            .run(&run.id)
            .await?
            .unwrap_or_else(|| run.clone());
        if stands.request != run.request {
            return Ok(RunRequested::Conflict);
        }
        if stands.cut.is_none() && stands.ended.is_none() {
            self.queue
                .send(&Message::plan(&stands.id), Duration::ZERO)
                .await?;
        }
        Ok(if is_new {
            RunRequested::New(stands)
        } else {
            RunRequested::Same(stands)
        })
    }

    /// Raises the fence of a slice that is not done, however often its worker commits meanwhile.
    async fn stop_worker(&self, slice: Slice) -> Result<()> {
        let mut stands = Some(slice);
        while let Some(slice) = stands.filter(|slice| slice.state != SliceState::Done) {
            let fenced = Slice {
                fence: slice.fence + 1,
                owner: None,
                lease_until: None,
                ..slice.clone()
            };
            if self
                .store
                .ledger()
                .swap_slice(&slice, &fenced)
                .await?
                .is_some()
            {
                break;
            }
            stands = self.store.ledger().slice(&slice.id).await?;
        }
        Ok(())
    }

    /// Makes the unfinished slices of cancelled runs of the same selection slices of this run.
    async fn adopt(&self, run: &Run) -> Result<()> {
        let mut cancelled: BTreeMap<String, bool> = BTreeMap::new();
        for slice in self.store.ledger().slices(&run.selection).await? {
            if slice.state == SliceState::Done || slice.run == run.id {
                continue;
            }
            let is_orphan = match cancelled.get(&slice.run) {
                Some(known) => *known,
                None => {
                    let of = self.store.ledger().run(&slice.run).await?;
                    let is = of.is_none_or(|of| of.outcome == Some(Outcome::Cancelled));
                    cancelled.insert(slice.run.clone(), is);
                    is
                }
            };
            if is_orphan {
                let adopted = Slice {
                    run: run.id.clone(),
                    state: SliceState::Open,
                    sent_part: 0,
                    ..slice.clone()
                };
                self.store.ledger().swap_slice(&slice, &adopted).await?;
            }
        }
        Ok(())
    }

    /// How a run stands; `None` if there is none of that id.
    ///
    /// # Errors
    /// What the store could not do.
    pub async fn run_state(&self, id: &str) -> Result<Option<RunState>> {
        let Some(run) = self.store.ledger().run(id).await? else {
            return Ok(None);
        };
        let slices = self.slices_of(&run).await?;
        let of = |state| slices.iter().filter(|slice| slice.state == state).count();
        Ok(Some(RunState {
            expected: slices.iter().map(|slice| slice.expected).sum(),
            open: of(SliceState::Open),
            done: of(SliceState::Done),
            failed: of(SliceState::Failed),
            run: Run {
                counts: if run.ended.is_some() {
                    run.counts
                } else {
                    total(&slices)
                },
                ..run
            },
        }))
    }

    /// Takes a run on demand back. What was written stays; workers stop at their next commit. Slices that a watermark waits
    /// for stay until the next run of the same selection. `None` if there is no such run on demand.
    ///
    /// # Errors
    /// What the store could not do; asked again, it goes on.
    pub async fn cancel(&self, id: &str) -> Result<Option<Run>> {
        self.follow_store_clock().await?;
        let found = self.store.ledger().run(id).await?;
        let Some(run) = found.filter(|run| run.origin == Origin::OnDemand) else {
            return Ok(None);
        };
        if run.ended.is_some() && run.outcome != Some(Outcome::Cancelled) {
            return Ok(Some(run));
        }
        let slices = self.slices_of(&run).await?;
        let run = if run.ended.is_some() {
            run
        } else {
            let cancelled = Run {
                ended: Some(self.clock.now()),
                outcome: Some(Outcome::Cancelled),
                counts: total(&slices),
                ..run
            };
            self.store.ledger().save_run(&cancelled).await?;
            cancelled
        };
        let watermarks = self.store.ledger().watermarks(&run.selection).await?;
        let mut needless = Vec::new();
        for slice in slices {
            if slice.state == SliceState::Done {
                continue;
            }
            if slice.kind == SliceKind::Retry || plan::is_covered(&slice, &watermarks) {
                needless.push(slice.id);
                continue;
            }
            // No watermark covers it: the next run of this selection takes it over.
            self.stop_worker(slice).await?;
        }
        self.store.ledger().drop_slices(&needless).await?;
        Ok(Some(run))
    }
}

fn total(slices: &[Slice]) -> Counts {
    let mut total = Counts::default();
    for slice in slices {
        total += slice.counts;
    }
    total
}

/// The key may be anything, so it never travels: its digest does.
fn run_id_of_key(key: &str) -> uuid::Uuid {
    let digest = Sha256::digest(key.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

fn cannot_be_planned(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnknownTemplate
            | ErrorKind::FutureWatermark
            | ErrorKind::SourceUnsupported
            | ErrorKind::Usage
            | ErrorKind::StoreCorrupt
    )
}
