//! Work is pulled. About as many messages as there are slots are under way, however many slices a run has: whoever finishes a
//! slice goes on with the next one that waits, as long as its budget lasts, and then sends one message for it.
//!
//! ```text
//!  slices that wait ──► fill: a message for each slot without work ──► worker ─► slice ─► next slice ─► … ─► fill
//!        ▲                                                               │
//!        └─────────── no slot is free: the slice waits again ◄───────────┘
//! ```
//! So a run that waits for the slots of another one has no message at all, and a message meets a free slot.

use std::collections::VecDeque;

use crate::engine::Engine;
use crate::error::Result;
use crate::model::{Origin, Run, Slice, SliceFilter};
use crate::slots::{has_worker, slot_state};
use crate::suite::deliver::Delivered;

impl Engine {
    /// Sends messages for slices that wait until as many are under way as slots are allowed, the runs in turn, after the one that
    /// was worked `last`. Answers how many it sent.
    pub(super) async fn fill(&self, last: &str) -> Result<usize> {
        let now = self.clock.now();
        let slots = slot_state(self.store.as_ref(), &self.slots, now).await?;
        let ledger = self.store.ledger();
        let under_way = ledger
            .find_slices(&SliceFilter::UnderWay { now }, slots.allowed)
            .await?
            .len();
        let missing = slots.allowed.saturating_sub(under_way);
        if missing == 0 {
            return Ok(0);
        }
        let mut waiting: VecDeque<VecDeque<Slice>> = VecDeque::new();
        for run in self.running_after(last).await? {
            let filter = SliceFilter::Waiting { run: &run.id, now };
            waiting.push_back(ledger.find_slices(&filter, missing).await?.into());
        }
        let mut sent = 0;
        while sent < missing
            && let Some(mut of_run) = waiting.pop_front()
        {
            if let Some(slice) = of_run.pop_front() {
                self.enqueue(&slice).await?;
                sent += 1;
                waiting.push_back(of_run);
            }
        }
        Ok(sent)
    }

    /// As [`fill`](Self::fill), after what a message asked for is done: it must not come again for this.
    pub(super) async fn fill_if_possible(&self, last: &str) -> usize {
        self.fill(last).await.unwrap_or_else(|error| {
            tracing::warn!(
                "no message was sent for the next slice, the planner's sweep does it: {}",
                error.chain()
            );
            0
        })
    }

    /// The next slice that waits, with its run: of the run that comes after the one that was worked `last`, so that a small run
    /// does not wait for the end of a large one.
    pub(super) async fn next_slice(&self, last: &str) -> Result<Option<(Slice, Run)>> {
        let now = self.clock.now();
        for run in self.running_after(last).await? {
            let filter = SliceFilter::Waiting { run: &run.id, now };
            let found = self.store.ledger().find_slices(&filter, 1).await?.pop();
            if let Some(slice) = found {
                return Ok(Some((slice, run)));
            }
        }
        Ok(None)
    }

    /// Runs whose slices workers work, beginning with the one whose turn it is.
    async fn running_after(&self, last: &str) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        for origin in [Origin::Timer, Origin::OnDemand] {
            runs.extend(self.store.ledger().unfinished_runs(origin).await?);
        }
        // Of one that is still being planned, there are slices already.
        runs.retain(|run| run.cut.is_some());
        runs.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        let after = runs.partition_point(|run| run.id.as_str() <= last);
        runs.rotate_left(after);
        Ok(runs)
    }

    /// What becomes of a message that finds no slot. Where workers hold them, the slice waits, without a message: they look for
    /// it when they are through. Where others do, who look for nothing, the message comes again.
    ///
    /// Waiting is noted before anybody is looked for, and workers look for slices after they gave their slot back: one of the two
    /// sees the other.
    pub(super) async fn without_slot(&self, slice: &Slice) -> Result<Delivered> {
        let ledger = self.store.ledger();
        let mut stands = slice.clone();
        let waits = loop {
            let waits = Slice {
                sent_part: 0,
                ..stands.clone()
            };
            if let Some(waits) = ledger.swap_slice(&stands, &waits).await? {
                break waits;
            }
            // Perhaps only that its message was sent has been noted, and this is the message.
            let Some(now) = ledger.slice(&slice.id).await? else {
                return Ok(Delivered::Stale);
            };
            if !now.is_free(self.clock.now()) || now.part != slice.part {
                return Ok(Delivered::Stale);
            }
            stands = now;
        };
        if has_worker(self.store.as_ref(), self.clock.now()).await? {
            return Ok(Delivered::Left);
        }
        self.enqueue_later(&waits, self.pause()).await?;
        Ok(Delivered::PutBack)
    }

    /// Makes a slice wait for its turn whose worker died, or whose message is lost.
    pub(super) async fn make_wait(&self, slice: &Slice) -> Result<()> {
        let waits = Slice {
            sent_part: 0,
            owner: None,
            lease_until: None,
            ..slice.clone()
        };
        // Refused means that somebody works on it after all.
        self.store
            .ledger()
            .swap_slice(slice, &waits)
            .await
            .map(|_| ())
    }
}
