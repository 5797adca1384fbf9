//! What the planner does when its timer fires: sweep, plan, send, end runs.
//!
//! ```text
//!  timer ─► planner's lease ─► sweep ──────────► cut ─► slices, some at a time ─► watermarks ─► run is planned
//!             (one at a time)  lost messages,            (with slots of the source)
//!                              dead workers,        └─► messages ─► workers begin while the rest is planned
//!                              failed slices,
//!                              ends of runs
//! ```
//! The occurrence of the schedule names the run, so a timer that fires twice, late or again after a crash goes on with the
//! same run, up to the same cut. A planner whose time is over leaves what it found so far; the next one goes on behind it.
//! Everything else that a planner may have left undone is found in the store by the next one.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use serde::Serialize;

use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{RunLease, RunLeaseRequest, RunLeaseTerms};
use crate::model::{Cut, Origin, Request, Run, RunPhase, Slice};
use crate::plan::PlanKeeper;
use crate::seeded::{Bug, planted};
use crate::slots::{SlotKind, SourceSlots, want_slot};
use crate::suite::unplanned::WhyUnplanned;
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
    /// Commit times before this belong to it; `None` = it is not planned to its end: the next tick goes on.
    pub cut: Option<Instant>,
    /// Why nothing was planned; the report counts such ticks.
    pub unplanned: Option<WhyUnplanned>,
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
            unplanned: Some(WhyUnplanned::OtherPlanner),
            sent: 0,
            revived: 0,
        };
        if let Some(lease) = self.lead().await? {
            let result = self
                .lead_tick(&mut tick, request, &while_leading(budget, &lease))
                .await;
            lease.release().await;
            if let Err(error) = result {
                let failed = Some(WhyUnplanned::Failed);
                // A store that is away is why planning failed, most likely: that is the error to tell.
                if let Err(noting) = self.note_planning(&tick.run, failed).await {
                    tracing::warn!(
                        "the report does not say that a tick failed: {}",
                        noting.chain()
                    );
                }
                return Err(error);
            }
        }
        self.note_planning(&tick.run, tick.unplanned).await?;
        Ok(tick)
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
            Some(run) if run.planned => Some(run),
            begun => match self.wait_for_planning_slot(budget).await? {
                Some(slots) => {
                    let planned = self.plan_tick(begun, &tick.run, request, budget).await;
                    slots.release().await;
                    tick.unplanned = Some(WhyUnplanned::TimeOver);
                    let planned = planned?;
                    tick.sent += planned.sent;
                    planned.run
                }
                None => {
                    tick.unplanned = Some(WhyUnplanned::NoSlot);
                    None
                }
            },
        };
        if let Some(run) = planned {
            tick.unplanned = None;
            tick.cut = run.cut;
            tick.sent += self.fill(&run.id).await?;
            self.finish_run(&run.id).await?;
        }
        self.prune_runs().await;
        Ok(())
    }

    async fn plan_tick(
        &self,
        begun: Option<Run>,
        id: &str,
        request: &Request,
        budget: &Budget,
    ) -> Result<PlannedRun> {
        let run = match begun {
            Some(run) => run,
            None => {
                let run = self.new_run(id.to_owned(), Origin::Timer, request.clone());
                self.store.ledger().add_run(&run).await?;
                run
            }
        };
        self.plan_run(run, budget).await
    }

    /// The planner's lease, with a heartbeat; `None` while another one has it.
    pub(super) async fn lead(&self) -> Result<Option<RunLease>> {
        let request = RunLeaseRequest {
            store: &self.store,
            clock: &self.clock,
            observer: self.observer.as_ref(),
            terms: RunLeaseTerms {
                duration: self.lease.duration,
                heartbeat: self.lease.duration / 3,
            },
            name: PLANNER,
            owner: format!("{PLANNER_OWNER}{}", uuid::Uuid::now_v7()),
        };
        RunLease::take_free(request).await
    }

    /// Half of the slots at most count for a plan: workers need the others meanwhile.
    pub(super) fn planning_slots(&self) -> usize {
        (self.slots.most / 2).max(1)
    }

    async fn wait_for_planning_slot(&self, budget: &Budget) -> Result<Option<SourceSlots>> {
        let owner = format!("{PLANNER_OWNER}{}", uuid::Uuid::now_v7());
        let store = self.store.as_ref();
        let patience = self.lease.duration / 2;
        let end = tokio::time::Instant::now() + patience;
        let mut waits = false;
        let slots = loop {
            let slots = self
                .request_slots(&owner, SlotKind::Planner, self.planning_slots(), None)
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

    /// Plans a run to its end, from where its last planner came, and answers how it stands then: a cancel meanwhile stays one.
    pub(super) async fn plan_run(&self, run: Run, budget: &Budget) -> Result<PlannedRun> {
        let Some(request) = run.request.clone() else {
            return Err(Error::new(
                ErrorKind::StoreCorrupt,
                "plan a run: its record does not say what was asked for",
            ));
        };
        // First of all: the plan goes on behind the slices that there are, so somebody has to work them.
        self.adopt(&run).await?;
        let keeper = RunKeeper {
            engine: self,
            run: &run,
            sent: AtomicUsize::new(0),
            has_advanced: AtomicBool::new(false),
        };
        let plan = match self.plan(&request, &run.id, &keeper, budget).await {
            Ok(plan) => plan,
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                if !keeper.has_advanced.into_inner() {
                    return Err(stood_still(error));
                }
                return Ok(PlannedRun {
                    run: None,
                    sent: keeper.sent.into_inner(),
                });
            }
            Err(error) => return Err(error),
        };
        self.raise_planned(&run.selection, &plan).await?;
        let stands = self
            .change_run(&run.id, |stands| {
                if planted(Bug::CancelOverwritten) {
                    return Some(Run {
                        step: stands.step,
                        cut: stands.cut,
                        source_clock: stands.source_clock,
                        planned: true,
                        ..run.clone()
                    });
                }
                stands.planned()
            })
            .await?
            .ok_or_else(run_is_gone)?;
        if stands.phase() == RunPhase::Cancelled {
            // Taken back while it was planned: what was added since goes the same way.
            self.cancel_slices(&stands).await?;
        }
        Ok(PlannedRun {
            run: Some(stands),
            sent: keeper.sent.into_inner(),
        })
    }
}

/// What came of planning a run.
pub(super) struct PlannedRun {
    /// As it stands; `None` = the time was over, and what was planned so far is kept, and worked.
    pub(super) run: Option<Run>,
    /// Messages that were sent for its slices meanwhile.
    pub(super) sent: usize,
}

/// Keeps the plan of a run in the store. Workers begin with it at once.
struct RunKeeper<'a> {
    engine: &'a Engine,
    run: &'a Run,
    /// Messages.
    sent: AtomicUsize,
    /// Whether it has its cut, or slices, that it had not before.
    has_advanced: AtomicBool,
}

#[async_trait]
impl PlanKeeper for RunKeeper<'_> {
    async fn fix_cut(&self, cut: Cut) -> Result<Cut> {
        let stands = self
            .engine
            .change_run(&self.run.id, |run| run.with_cut(cut))
            .await?
            .ok_or_else(run_is_gone)?;
        if self.run.cut.is_none() {
            self.has_advanced.store(true, Ordering::Relaxed);
        }
        // One that was taken back meanwhile has none, and gets none.
        Ok(stands.made_cut().unwrap_or(cut))
    }

    async fn forget(&self, watermarks: &[TemplateId], slices: &[String]) -> Result<()> {
        self.engine
            .forget(&self.run.selection, watermarks, slices)
            .await
    }

    async fn add_slices(&self, slices: &[Slice]) -> Result<()> {
        self.engine.store.ledger().add_slices(slices).await?;
        self.has_advanced.store(true, Ordering::Relaxed);
        let sent = self.engine.fill_if_possible(&self.run.id).await;
        self.sent.fetch_add(sent, Ordering::Relaxed);
        Ok(())
    }
}

/// The budget of a planner, which ends with its lease.
pub(super) fn while_leading(budget: &Budget, lease: &RunLease) -> Budget {
    Budget {
        give_way: lease.lost().clone(),
        ..budget.clone()
    }
}

fn stood_still(cause: Error) -> Error {
    Error::new(
        ErrorKind::SourceUnreachable,
        "plan a run: the time was over before anything new was found",
    )
    .because(cause)
    .fix(
        "It is tried again. If it goes on like this, the server counts too slowly for the time of a function: give the functions \
         more time, or look for what slows the server down",
    )
}

fn run_is_gone() -> Error {
    Error::new(ErrorKind::StoreCorrupt, "plan a run: its record is gone")
}
