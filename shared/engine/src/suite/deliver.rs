//! What a worker does with a message: looks whether it is still wanted, takes a slot of the source, works the slice as long
//! as its budget lasts, hands the rest on, and says whether the queue may forget the message.
//!
//! ```text
//!  message ─► slice record ─► stale? ─► leased? ─► slot ─► work ─┬─ done ──► watermark, end of the run, next slice
//!                              forget    put back    let it wait └─ paused ► send the next part
//! ```
//! A queue delivers at least once and in any order. What makes that harmless: the record says which part (`part`) may be
//! started, the lease says who works, the fence stops whoever lost it, and `sent_part` says whether the next part's message is
//! known to be on its way. A worker that dies between any two of these steps leaves a record from which a redelivery or the
//! planner's sweep ([`planner`](crate::suite::planner)) goes on.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::Engine;
use crate::error::{Error, ErrorKind, InMessage, Result};
use crate::message::{Message, Task};
use crate::model::{Outcome, Run, Slice, SliceState};
use crate::slots::{SlotKind, WORKER_OWNER, want_slot};
use crate::suite::planner::{PLANNER_OWNER, PlannedRun, while_leading};
use crate::suite::runs::MarkedFailed;
use crate::work::job::SliceJob;
use crate::work::{Budget, Progress};

/// A message that met a slice in work is put back so many times; the planner's sweep does the rest.
const MOST_WAITS: u32 = 3;
/// No queue delays a message for longer.
const LONGEST_DELAY: Duration = Duration::from_secs(900);

/// What became of a slice that a worker went on with.
enum Pulled {
    /// There was none.
    Nothing,
    /// It is finished, or somebody else has it.
    Finished,
    /// A message for the rest of it is on its way.
    HandedOn,
}

/// What became of a message. Only [`Again`](Self::Again) is delivered once more.
#[derive(Debug)]
pub enum Delivered {
    /// Nothing was left to do for it.
    Stale,
    /// The slice is finished.
    Done,
    /// The budget was spent; a message for the rest is on its way.
    Continued,
    /// Somebody else works on it, or all slots are taken: it was put back with a delay.
    PutBack,
    /// Workers hold all slots: one of them goes on with the slice when it is through.
    Left,
    /// The run was planned; its slices are on their way.
    Planned,
    /// The slice or the run cannot be finished, and was marked so.
    GivenUp(Error),
    /// It failed in a way that can pass: the queue delivers it again, and sets it aside after a few times.
    Again(Error),
}

impl Delivered {
    /// For logs and consoles.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Done => "done",
            Self::Continued => "continued",
            Self::PutBack => "put back",
            Self::Left => "left to other workers",
            Self::Planned => "planned",
            Self::GivenUp(_) => "given up",
            Self::Again(_) => "again",
        }
    }

    /// Why it did not succeed.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        match self {
            Self::GivenUp(error) | Self::Again(error) => Some(error),
            _ => None,
        }
    }
}

impl Engine {
    /// Does what a message asks for. The queue forgets the message unless the answer is [`Delivered::Again`].
    pub async fn deliver(&self, message: &Message, budget: &Budget) -> Delivered {
        let delivered = match &message.task {
            Task::Slice { id, part } => self.deliver_slice(message, id, *part, budget).await,
            Task::Plan => self.deliver_plan(message, budget).await,
        };
        delivered.unwrap_or_else(Delivered::Again)
    }

    async fn deliver_slice(
        &self,
        message: &Message,
        id: &str,
        part: u64,
        budget: &Budget,
    ) -> Result<Delivered> {
        self.follow_store_clock().await?;
        let Some(slice) = self.store.ledger().slice(id).await? else {
            return Ok(Delivered::Stale);
        };
        let now = self.clock.now();
        if slice.run != message.run || slice.state == SliceState::Failed {
            return Ok(Delivered::Stale);
        }
        if slice.state == SliceState::Done {
            // Whoever finished it may have died before it told anybody, and before it went on with the next one.
            self.finish(&slice).await?;
            self.fill(&slice.run).await?;
            return Ok(Delivered::Stale);
        }
        if part > slice.part {
            let action = "go on with a slice: the message is ahead of the slice's record";
            return Err(Error::new(ErrorKind::StoreCorrupt, action)
                .fix("Was the store restored from a backup? The planner's sweep sends the part that is due."));
        }
        if part < slice.part {
            let lost =
                part + 1 == slice.part && slice.sent_part < slice.part && !slice.is_leased(now);
            if lost {
                self.enqueue(&slice).await?;
            }
            return Ok(Delivered::Stale);
        }
        if slice.is_leased(now) {
            return self.put_back(message, &slice).await;
        }
        let run = self.store.ledger().run(&slice.run).await?;
        if run
            .as_ref()
            .is_some_and(|run| run.outcome == Some(Outcome::Cancelled))
        {
            return Ok(Delivered::Stale);
        }
        let Some(request) = run.and_then(|run| run.request) else {
            return Err(unknown_run());
        };
        let owner = format!("{WORKER_OWNER}{}", uuid::Uuid::now_v7());
        let kind = SlotKind::Worker;
        let Some(slots) = self.request_slots(&owner, kind, 1, None).await? else {
            return self.without_slot(&slice).await;
        };
        let budget = &Budget {
            give_way: slots.give_way(),
            ..budget.clone()
        };
        let job = SliceJob {
            converters: Arc::clone(&self.converters),
            worker: self.worker(owner, None),
            ehrs: request.selection.ehrs,
            run: slice.run.clone(),
        };
        let mut last = job.run.clone();
        let mut delivered = self.work_delivered(&job, slice, message, budget).await;
        let finished = |delivered: &Result<Delivered>| {
            matches!(delivered, Ok(Delivered::Done | Delivered::GivenUp(_)))
        };
        if finished(&delivered) && self.pull(job, &mut last, budget).await {
            delivered = Ok(Delivered::Continued);
        }
        slots.release().await;
        if finished(&delivered) {
            self.fill_if_possible(&last).await;
        }
        delivered
    }

    /// Works the slice of a message.
    async fn work_delivered(
        &self,
        job: &SliceJob,
        slice: Slice,
        message: &Message,
        budget: &Budget,
    ) -> Result<Delivered> {
        let part = slice.part;
        let worked = job.clone().work(slice, budget).await;
        match (worked.result, worked.after) {
            (Ok(Progress::Done), Some(slice)) => {
                self.finish(&slice).await?;
                Ok(Delivered::Done)
            }
            (Ok(Progress::Done), None) => Ok(Delivered::Done),
            (Ok(Progress::Paused), Some(slice)) => {
                self.enqueue(&slice).await?;
                Ok(Delivered::Continued)
            }
            (Ok(Progress::Paused), None) => Ok(Delivered::Stale),
            (Ok(Progress::Held), slice) => match slice {
                Some(slice) => self.put_back(message, &slice).await,
                None => Ok(Delivered::Stale),
            },
            (Err(error), after) if error.kind() == ErrorKind::LostLease => {
                let now = self.clock.now();
                let waits = after.is_some_and(|slice| slice.is_free(now) && slice.part == part);
                // Only the slot of the source was lost, or nobody has taken the slice yet: this message is still wanted.
                // Otherwise another worker goes on with it.
                if waits {
                    Err(error)
                } else {
                    Ok(Delivered::Stale)
                }
            }
            (Err(error), Some(slice)) if gives_up(&error) => {
                self.give_up(&slice, &error).await?;
                Ok(Delivered::GivenUp(error))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Goes on with slices that wait, as long as there is time for more than a beginning; `last` becomes the run of the last one.
    /// Answers whether that one was left before its end, with a message for its rest on the way.
    async fn pull(&self, mut job: SliceJob, last: &mut String, budget: &Budget) -> bool {
        while budget.has(self.lease.duration / 9) {
            let pulled = self.pull_one(&mut job, budget).await;
            last.clone_from(&job.run);
            match pulled {
                Ok(Pulled::Finished) => {}
                Ok(Pulled::Nothing) => return false,
                Ok(Pulled::HandedOn) => return true,
                Err(error) => {
                    // None of this is the fault of the message, whose slice is finished.
                    tracing::warn!("no other slice was begun: {}", error.chain());
                    return false;
                }
            }
        }
        false
    }

    async fn pull_one(&self, job: &mut SliceJob, budget: &Budget) -> Result<Pulled> {
        let Some((slice, run)) = self.next_slice(&job.run).await? else {
            return Ok(Pulled::Nothing);
        };
        let Some(request) = run.request else {
            return Err(unknown_run());
        };
        job.ehrs = request.selection.ehrs;
        job.run = run.id;
        let worked = job.clone().work(slice, budget).await;
        let Some(slice) = worked.after else {
            return Ok(Pulled::Finished);
        };
        match worked.result {
            Ok(Progress::Done) => {
                self.finish(&slice).await?;
                Ok(Pulled::Finished)
            }
            // Another worker was faster.
            Ok(Progress::Held) => Ok(Pulled::Finished),
            Err(error) if gives_up(&error) => {
                tracing::error!("a slice was given up: {}", error.chain());
                self.give_up(&slice, &error).await?;
                Ok(Pulled::Finished)
            }
            // A message of its own, whose deliveries are counted.
            Ok(Progress::Paused) => {
                self.enqueue(&slice).await?;
                Ok(Pulled::HandedOn)
            }
            Err(error) => {
                tracing::warn!("a slice is tried again: {}", error.chain());
                if !slice.is_free(self.clock.now()) {
                    return Ok(Pulled::Finished);
                }
                self.enqueue_later(&slice, self.pause()).await?;
                Ok(Pulled::HandedOn)
            }
        }
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
        let delivered = self
            .lead_plan(message, run, &while_leading(budget, &lease))
            .await;
        lease.release().await;
        delivered
    }

    async fn lead_plan(&self, message: &Message, run: Run, budget: &Budget) -> Result<Delivered> {
        let run = if run.planned {
            run
        } else {
            let owner = format!("{PLANNER_OWNER}{}", uuid::Uuid::now_v7());
            // The same at each delivery, so that the one that plans takes the wish back.
            let wish = format!("{PLANNER_OWNER}{}", run.id);
            let (kind, wanted) = (SlotKind::Planner, self.planning_slots());
            let Some(slots) = self.request_slots(&owner, kind, wanted, None).await? else {
                let until = self.clock.now().saturating_add(self.lease.duration / 3);
                want_slot(self.store.as_ref(), &wish, Some(until)).await?;
                return self.wait_for_slot(message).await;
            };
            let planned = self.plan_run(run.clone(), budget).await;
            slots.release().await;
            want_slot(self.store.as_ref(), &wish, None).await?;
            match planned {
                Ok(PlannedRun { run: Some(run), .. }) => run,
                Ok(PlannedRun { run: None, .. }) => {
                    self.queue.send(message, Duration::ZERO).await?;
                    return Ok(Delivered::Continued);
                }
                Err(error) if gives_up(&error) => {
                    self.fail_run(&run.id, &error.chain()).await?;
                    return Ok(Delivered::GivenUp(error));
                }
                Err(error) => return Err(error),
            }
        };
        if !run.is_unfinished() {
            return Ok(Delivered::Stale);
        }
        self.fill(&run.id).await?;
        self.finish_run(&run.id).await?;
        Ok(Delivered::Planned)
    }

    async fn put_back(&self, message: &Message, slice: &Slice) -> Result<Delivered> {
        if slice.state != SliceState::Open || message.waits >= MOST_WAITS {
            return Ok(Delivered::Stale);
        }
        let until = slice.lease_until.unwrap_or_else(|| self.clock.now());
        let delay = until.duration_since(self.clock.now()) + self.jitter();
        let again = Message {
            waits: message.waits + 1,
            ..message.clone()
        };
        self.queue.send(&again, delay.min(LONGEST_DELAY)).await?;
        Ok(Delivered::PutBack)
    }

    /// Waits are spread over a part of the lease, so that those who waited together do not come back together.
    fn jitter(&self) -> Duration {
        (self.lease.duration / 9).mul_f64(fastrand::f64())
    }

    /// Before something is tried again that others have to let go first.
    pub(super) fn pause(&self) -> Duration {
        self.lease.duration / 9 + self.jitter()
    }

    /// One message in, one message out: waiting burns no deliveries and cannot multiply.
    pub(crate) async fn wait_for_slot(&self, message: &Message) -> Result<Delivered> {
        self.queue.send(message, self.pause()).await?;
        Ok(Delivered::PutBack)
    }

    async fn give_up(&self, slice: &Slice, error: &Error) -> Result<()> {
        self.fail_slice(slice, error.chain()).await.map(|_| ())
    }

    /// Marks a slice as failed, or divides it among the templates that share it, if it still stands like this; and ends its run if
    /// it was the last one.
    async fn fail_slice(&self, slice: &Slice, failure: String) -> Result<MarkedFailed> {
        let ledger = self.store.ledger();
        let (mut after, own) = slice.apart();
        // First of all. Dying between the two costs only that they are read twice.
        if !own.is_empty() {
            ledger.add_slices(&own).await?;
        }
        after.failure = Some(failure);
        let (state, marked) = match own.is_empty() {
            true => (SliceState::Failed, MarkedFailed::Failed),
            false => (SliceState::Done, MarkedFailed::Divided),
        };
        after.state = state;
        match ledger.swap_slice(slice, &after).await? {
            Some(slice) => {
                self.finish_run(&slice.run).await?;
                Ok(marked)
            }
            None => Ok(MarkedFailed::Stale),
        }
    }

    /// Marks what a message asks for as failed, because it was delivered too often. Whoever works on it at this moment is
    /// left alone, and so is what nobody ever took.
    ///
    /// # Errors
    /// What the store could not do.
    pub async fn mark_failed(&self, message: &Message) -> Result<MarkedFailed> {
        self.follow_store_clock().await?;
        let Task::Slice { id, part } = &message.task else {
            return self.mark_run_failed(&message.run).await;
        };
        let Some(slice) = self.store.ledger().slice(id).await? else {
            return Ok(MarkedFailed::Stale);
        };
        let wanted =
            slice.run == message.run && slice.part == *part && slice.is_free(self.clock.now());
        if !wanted {
            return Ok(MarkedFailed::Stale);
        }
        if slice.moved.is_none() {
            return Ok(MarkedFailed::Untried);
        }
        let why = slice.failure.as_deref().unwrap_or("its workers died");
        let failure = format!("given up after several tries: {why}");
        let marked = self.fail_slice(&slice, failure).await?;
        if marked != MarkedFailed::Stale {
            self.fill_if_possible(&slice.run).await;
        }
        Ok(marked)
    }
}

/// Its EHRs never travel in a message: the record of the run has them.
fn unknown_run() -> Error {
    Error::new(
        ErrorKind::StoreCorrupt,
        "go on with a slice: the record of its run is missing",
    )
    .fix("the store was changed by hand, or the slice was planned by an older Atlas; `atlas export` finishes such slices")
}

/// Whether trying again cannot help.
fn gives_up(error: &Error) -> bool {
    error.kind().policy().message == InMessage::GiveUp
}
