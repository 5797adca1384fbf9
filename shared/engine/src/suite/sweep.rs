//! Finds what was left undone: lost messages, dead workers, failed slices, watermarks and ends of runs that nobody wrote.

use std::time::Duration;

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;

use crate::engine::Engine;
use crate::error::Result;
use crate::message::Message;
use crate::model::{Origin, Outcome, RunPhase, Selection, Slice, SliceKind, SliceState};

impl Engine {
    /// Finds what was left undone: messages that got lost, slices whose worker died, failed slices, watermarks and ends of
    /// runs that nobody wrote. Answers how many messages were sent again.
    pub(super) async fn sweep(&self, selection: &Selection, current: &str) -> Result<usize> {
        let key = selection.key();
        let mut sent = self.sweep_selection(selection, true).await?;
        for run in self.store.ledger().unfinished_runs(Origin::Timer).await? {
            if run.cut.is_none() && run.id != current {
                // Its planner died before it had planned: this tick plans what it would have.
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

    async fn end_unplanned(&self, id: &str) -> Result<()> {
        let now = self.clock.now();
        self.change_run(id, |run| {
            let is_unplanned = run.phase() == RunPhase::Asked;
            is_unplanned.then(|| run.ended(now, Outcome::Interrupted, run.counts))?
        })
        .await
        .map(|_| ())
    }

    pub(super) async fn sweep_selection(
        &self,
        selection: &Selection,
        revives: bool,
    ) -> Result<usize> {
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
}
