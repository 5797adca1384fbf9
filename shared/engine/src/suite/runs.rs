//! The life of a run: asked for, planned, worked, ended or cancelled.

use std::collections::BTreeMap;
use std::time::Duration;

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use sha2::{Digest, Sha256};

use crate::engine::Engine;
use crate::error::Result;
use crate::message::Message;
use crate::model::{
    Origin, Outcome, Request, Run, RunPhase, Slice, SliceFilter, SliceKind, SliceState,
    SliceTotals, SlicesOf,
};
use crate::plan;

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
    pub open: u64,
    /// Slices that are finished and still there.
    pub done: u64,
    /// Slices that were given up.
    pub failed: u64,
}

/// What a dead letter led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkedFailed {
    /// Nothing was left to mark.
    Stale,
    /// Its record shows no try: a queue can be written by others, and a message can be set aside before anybody could begin it.
    Untried,
    /// Several templates shared it: each of them goes on in a slice of its own, so that the one that fails holds up nobody.
    Divided,
    /// It is marked as failed, for everybody to see.
    Failed,
}

impl Engine {
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
        if stands.phase() == RunPhase::Asked {
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

    /// How a run stands; `None` if there is none of that id.
    ///
    /// # Errors
    /// What the store could not do.
    pub async fn run_state(&self, id: &str) -> Result<Option<RunState>> {
        let Some(run) = self.store.ledger().run(id).await? else {
            return Ok(None);
        };
        let slices = self.totals_of(id).await?;
        Ok(Some(RunState {
            expected: slices.expected,
            open: slices.open(),
            done: slices.done,
            failed: slices.failed,
            run: Run {
                counts: if run.ended.is_some() {
                    run.counts
                } else {
                    slices.counts
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
        let counts = self.totals_of(&run.id).await?.counts;
        let now = self.clock.now();
        let cancel = |run: &Run| run.ended(now, Outcome::Cancelled, counts);
        let stands = self.change_run(id, cancel).await?;
        if let Some(run) = &stands
            && run.phase() == RunPhase::Cancelled
        {
            self.cancel_slices(run).await?;
        }
        Ok(stands)
    }

    /// Stops the work on slices of a run that was cancelled, and removes those that nothing waits for.
    pub(super) async fn cancel_slices(&self, run: &Run) -> Result<()> {
        let slices = self.slices_of(run).await?;
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
        self.store.ledger().drop_slices(&needless).await
    }

    /// Changes the record of a run, whoever else does meanwhile: `change` is asked again of the record as it stands then, and
    /// leaves it alone with `None`. Answers how the run stands; `None` if there is none of that id.
    pub(crate) async fn change_run(
        &self,
        id: &str,
        change: impl Fn(&Run) -> Option<Run>,
    ) -> Result<Option<Run>> {
        let ledger = self.store.ledger();
        loop {
            let Some(stands) = ledger.run(id).await? else {
                return Ok(None);
            };
            let Some(after) = change(&stands) else {
                return Ok(Some(stands));
            };
            if let Some(changed) = ledger.swap_run(&stands, &after).await? {
                return Ok(Some(changed));
            }
        }
    }

    /// Ends a planned run whose slices are all finished or given up.
    pub(crate) async fn finish_run(&self, id: &str) -> Result<()> {
        // Cheap, and almost always enough: all slices are counted for the last few only.
        let waits = SliceFilter::Waiting {
            run: id,
            now: self.clock.now(),
        };
        let ledger = self.store.ledger();
        if !ledger.find_slices(&waits, 1).await?.is_empty() {
            return Ok(());
        }
        let slices = self.totals_of(id).await?;
        if slices.open() > 0 {
            return Ok(());
        }
        // Looked at after the slices: whoever ended the run meanwhile has removed some of them.
        let is_running =
            |run: &Run| run.phase() == RunPhase::Planned && run.origin != Origin::CommandLine;
        let Some(run) = ledger.run(id).await?.filter(is_running) else {
            return Ok(());
        };
        let outcome = match slices.failed > 0 || slices.fresh_quarantine > 0 {
            true => Outcome::Partial,
            false => Outcome::Complete,
        };
        let now = self.clock.now();
        let Some(ended) = run.ended(now, outcome, slices.counts) else {
            return Ok(());
        };
        let Some(ended) = self.store.ledger().swap_run(&run, &ended).await? else {
            // Cancelled, or ended by whoever finished another slice.
            return Ok(());
        };
        let watermarks = ledger.watermarks(&ended.selection).await?;
        let finished: Vec<String> = self
            .slices_of(&ended)
            .await?
            .into_iter()
            .filter(|slice| plan::is_behind(slice, &watermarks))
            .map(|slice| slice.id)
            .collect();
        if !finished.is_empty() {
            self.store.ledger().remove_slices(&finished).await?;
        }
        Ok(())
    }

    async fn totals_of(&self, run: &str) -> Result<SliceTotals> {
        let now = self.clock.now();
        let totals = self.store.ledger().slice_totals(SlicesOf::Run(run), now);
        Ok(totals.await?.all)
    }

    async fn slices_of(&self, run: &Run) -> Result<Vec<Slice>> {
        let mut slices = self.store.ledger().slices(&run.selection).await?;
        slices.retain(|slice| slice.run == run.id);
        Ok(slices)
    }

    /// Ends a run that nobody could plan.
    pub(crate) async fn fail_run(&self, id: &str, failure: &str) -> Result<()> {
        let now = self.clock.now();
        self.change_run(id, |run| {
            let failed = run.ended(now, Outcome::Failed, run.counts)?;
            Some(Run {
                failure: Some(failure.to_owned()),
                ..failed
            })
        })
        .await
        .map(|_| ())
    }

    pub(crate) async fn mark_run_failed(&self, id: &str) -> Result<MarkedFailed> {
        match self.store.ledger().run(id).await? {
            // One of the schedule is never planned by a message.
            Some(run) if run.phase() == RunPhase::Asked && run.origin != Origin::OnDemand => {
                Ok(MarkedFailed::Untried)
            }
            Some(run) if run.phase() == RunPhase::Asked => {
                let why =
                    "given up after several tries to plan it; `atlas doctor` tells what is wrong";
                self.fail_run(id, why).await?;
                Ok(MarkedFailed::Failed)
            }
            _ => Ok(MarkedFailed::Stale),
        }
    }

    /// Raises the fence of a slice that is not done, however often its worker commits meanwhile; its message is not waited for.
    pub(super) async fn stop_worker(&self, slice: Slice) -> Result<()> {
        let mut stands = Some(slice);
        while let Some(slice) = stands.filter(|slice| slice.state != SliceState::Done) {
            let fenced = Slice {
                fence: slice.fence + 1,
                owner: None,
                lease_until: None,
                sent_part: 0,
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

    /// Makes the unfinished slices of runs that are over slices of this run, if they are of its selection: of cancelled runs and of
    /// such whose record is gone all, of others those that were not given up. A run of the command line works its slices under
    /// their leases; what it left is free.
    pub(super) async fn adopt(&self, run: &Run) -> Result<()> {
        let now = self.clock.now();
        let mut runs: BTreeMap<String, Option<Run>> = BTreeMap::new();
        for slice in self.store.ledger().slices(&run.selection).await? {
            if slice.state == SliceState::Done || slice.run == run.id || slice.is_leased(now) {
                continue;
            }
            if !runs.contains_key(&slice.run) {
                let found = self.store.ledger().run(&slice.run).await?;
                runs.insert(slice.run.clone(), found);
            }
            let is_orphan = match runs.get(&slice.run).and_then(Option::as_ref) {
                None => true,
                Some(of) if of.phase() == RunPhase::Cancelled => true,
                Some(of) => {
                    let is_over = !of.is_unfinished() || of.origin == Origin::CommandLine;
                    is_over && slice.state == SliceState::Open
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

    /// After a slice was finished: its watermark, and the end of its run if it was the last one.
    pub(crate) async fn finish(&self, slice: &Slice) -> Result<()> {
        if slice.kind == SliceKind::Read {
            let request = self
                .store
                .ledger()
                .run(&slice.run)
                .await?
                .and_then(|run| run.request);
            let origin = request.map_or(Instant::EPOCH, |request| request.selection.origin());
            let templates: Vec<TemplateId> = slice.templates().cloned().collect();
            self.raise(&slice.selection, &templates, origin).await?;
        }
        self.finish_run(&slice.run).await
    }
}

/// The key may be anything, so it never travels: its digest does.
fn run_id_of_key(key: &str) -> uuid::Uuid {
    let digest = Sha256::digest(key.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}
