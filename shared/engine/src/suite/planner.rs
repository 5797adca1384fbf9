//! What the planner does when its timer fires: sweep, plan, send, end runs.
//!
//! ```text
//!  timer ─► planner's lease ─► sweep ─────────────► plan ─► slices in the store ─► messages ─► run has its cut
//!             (one at a time)  lost messages,       (with a slot of the source)
//!                              dead workers,
//!                              failed slices, ends of runs
//! ```
//! The occurrence of the schedule names the run, so a timer that fires twice, late or again after a crash goes on with the
//! same run. Everything that a planner may have left undone is found in the store by the next one.

use atlas_openehr::time::Instant;
use serde::Serialize;

use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Mode, Origin, Record, Request, Run, RunPhase};
use crate::seeded::{Bug, planted};
use crate::slots::{SlotKind, SourceSlots, want_slot};
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
    /// Messages for slices that waited; no more than there are slots.
    pub sent: usize,
    /// Slices whose message or worker was lost, failed ones whose time has come, and runs that nobody planned: all are tried
    /// again.
    pub revived: usize,
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
            revived: 0,
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
        tick.revived = self.sweep(&request.selection, &tick.run).await?;
        // What is there already does not wait for the plan, which can fail.
        tick.sent = self.fill("").await?;
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
            tick.sent += self.fill(&run.id).await?;
            self.finish_run(&run.id).await?;
        }
        self.prune_runs().await;
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
    pub(super) async fn lead(&self) -> Result<Option<Record>> {
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

    pub(super) async fn stop_leading(&self, lease: &Record) {
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
        let store = self.store.as_ref();
        let patience = self.lease.duration / 2;
        let end = tokio::time::Instant::now() + patience;
        let mut waits = false;
        let slots = loop {
            let slots = self
                .request_slots(&owner, SlotKind::Planner, 1, None)
                .await?;
            let again = tokio::time::Instant::now() + self.lease.duration / 45;
            if slots.is_some() || budget.is_spent() || again > end {
                break slots;
            }
            tokio::time::sleep_until(again).await;
            if !waits {
                waits = true;
                let until = self.clock.now().saturating_add(patience);
                want_slot(store, &owner, Some(until)).await?;
            }
        };
        if waits {
            want_slot(store, &owner, None).await?;
        }
        Ok(slots)
    }

    /// Plans a run that has no cut yet, and answers how it stands then: a cancel meanwhile stays one. Its slices are durable
    /// before its cut is: a crash between the two plans the rest.
    pub(super) async fn plan_run(&self, run: Run) -> Result<Run> {
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
        let stands = self
            .change_run(&run.id, |stands| {
                if planted(Bug::CancelOverwritten) {
                    let step = stands.step;
                    return run.planned(plan.cut).map(|run| Run { step, ..run });
                }
                stands.planned(plan.cut)
            })
            .await?;
        let Some(stands) = stands else {
            return Err(Error::new(
                ErrorKind::StoreCorrupt,
                "plan a run: its record is gone",
            ));
        };
        if stands.phase() == RunPhase::Cancelled {
            // Taken back while it was planned: what was added since goes the same way.
            self.cancel_slices(&stands).await?;
        }
        Ok(stands)
    }
}
