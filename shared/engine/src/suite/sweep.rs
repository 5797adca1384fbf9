//! Finds what was left undone: lost messages, dead workers, failed slices, watermarks and ends of runs that nobody wrote.

use std::time::Duration;

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;

use crate::engine::Engine;
use crate::error::Result;
use crate::message::Message;
use crate::model::{
    Origin, Outcome, RunPhase, Selection, SelectionKey, Slice, SliceFilter, SliceState, SlicesOf,
};

/// More slices than can be under way; if more have failed, the rest is tried again by the next tick.
pub(super) const MANY: usize = 1_000;

impl Engine {
    /// Finds what was left undone: messages that got lost, slices whose worker died, failed slices, watermarks and ends of
    /// runs that nobody wrote. Answers how many slices and runs are tried again.
    pub(super) async fn sweep(&self, selection: &Selection, current: &str) -> Result<usize> {
        let key = selection.key();
        let mut revived = self.sweep_under_way().await?;
        revived += self.sweep_failed(&key, current).await?;
        self.sweep_watermarks(selection).await?;
        for run in self.store.ledger().unfinished_runs(Origin::Timer).await? {
            if !run.planned && run.id != current {
                // Its planner did not come to the end: this tick goes on, and takes its slices over.
                self.end_unplanned(&run.id).await?;
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
            if !run.planned {
                let patience = self.lease.duration * 2;
                if run.started.saturating_add(patience) < self.clock.now() {
                    self.queue
                        .send(&Message::plan(&run.id), Duration::ZERO)
                        .await?;
                    revived += 1;
                }
                continue;
            }
            if let Some(request) = &run.request
                && run.selection != key
            {
                self.sweep_watermarks(&request.selection).await?;
            }
            self.finish_run(&run.id).await?;
        }
        Ok(revived)
    }

    /// Ends a run whose planner did not come to the end.
    pub(crate) async fn end_unplanned(&self, id: &str) -> Result<()> {
        let now = self.clock.now();
        self.change_run(id, |run| {
            let is_unplanned = run.phase() == RunPhase::Asked;
            is_unplanned.then(|| run.ended(now, Outcome::Interrupted, run.counts))?
        })
        .await
        .map(|_| ())
    }

    /// Slices whose message is lost, or whose worker died after it, wait for their turn again. Those whose worker died without a
    /// message wait since its lease ended.
    async fn sweep_under_way(&self) -> Result<usize> {
        let now = self.clock.now();
        let ledger = self.store.ledger();
        let mut revived = 0;
        let under_way = SliceFilter::UnderWay { now };
        for slice in ledger.find_slices(&under_way, MANY).await? {
            if self.is_stranded(&slice, now) {
                self.make_wait(&slice).await?;
                revived += 1;
            }
        }
        Ok(revived)
    }

    /// Failed slices wait for their turn again, some time after they failed: in their own run while that has no end, else in the
    /// run that is planned next.
    async fn sweep_failed(&self, selection: &SelectionKey, current: &str) -> Result<usize> {
        let now = self.clock.now();
        let ledger = self.store.ledger();
        let mut revived = 0;
        for slice in ledger
            .find_slices(&SliceFilter::Failed { selection }, MANY)
            .await?
        {
            let tried = slice.enqueued.max(slice.moved);
            let is_due = tried.is_none_or(|at| at.saturating_add(self.sweep.revive) < now);
            if !is_due {
                continue;
            }
            let run = ledger.run(&slice.run).await?;
            let goes_on = run.is_some_and(|run| run.is_unfinished());
            let open = Slice {
                state: SliceState::Open,
                sent_part: 0,
                run: match goes_on {
                    true => slice.run.clone(),
                    false => current.to_owned(),
                },
                ..slice.clone()
            };
            if ledger.swap_slice(&slice, &open).await?.is_some() {
                revived += 1;
            }
        }
        Ok(revived)
    }

    /// Raises the watermarks that finished slices allow, if their workers died before they did.
    async fn sweep_watermarks(&self, selection: &Selection) -> Result<()> {
        let key = selection.key();
        let totals = self
            .store
            .ledger()
            .slice_totals(SlicesOf::Selection(&key), self.clock.now())
            .await?;
        let mut templates = totals.templates;
        templates.retain(|_, totals| totals.done > 0);
        let templates: Vec<TemplateId> = templates.into_keys().collect();
        self.raise(&key, &templates, selection.origin()).await
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
}
