//! Function: worker. A message names a slice, and its pages are copied until it is done or the time is over. What was
//! delivered too often is marked as failed ([`mark_failed`]), if its record shows that somebody tried it.

use std::time::Duration;

use atlas_engine::message::{Message, Task};
use atlas_engine::model::{Origin, Slice, SliceState};
use atlas_engine::suite::deliver::Delivered;
use atlas_engine::suite::runs::MarkedFailed;
use atlas_engine::{Error, Result};
use atlas_runtime::function::Suite;

/// A dead letter that fails is let go after so many deliveries: no platform sets it aside a second time.
const MOST_DEAD_DELIVERIES: u64 = 5;

/// What the queue does with a message afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Forgets it.
    Forget,
    /// Delivers it again, and sets it aside after a few times.
    Again,
}

/// Does what a message asks for, within the time that the platform leaves.
pub async fn handle(suite: &Suite, text: &str, left: Duration) -> Verdict {
    let message = match Message::parse(text) {
        Ok(message) => message,
        Err(why) => {
            return settle(
                suite
                    .engine
                    .note_unreadable(&why)
                    .await
                    .map(|()| Verdict::Forget),
            );
        }
    };
    let delivered = suite.engine.deliver(&message, &suite.budget(left)).await;
    match (&delivered, delivered.error()) {
        (_, Some(error)) => tracing::warn!(
            run_id = message.run,
            outcome = delivered.name(),
            "a message was not carried out ({}): {}",
            delivered.name(),
            error.chain()
        ),
        (_, None) => tracing::info!(
            run_id = message.run,
            outcome = delivered.name(),
            "a message was carried out: {}",
            delivered.name()
        ),
    }
    match delivered {
        Delivered::Again(error) => {
            note_try(suite, &message, &error).await;
            Verdict::Again
        }
        _ => Verdict::Forget,
    }
}

/// Marks what a message asked for as failed, because it was delivered too often. A slice whose record shows no try stays open, and
/// the planner sends for it again: a queue can be written by others, and a message can be set aside before anybody could begin it.
pub async fn mark_failed(suite: &Suite, text: &str) -> Verdict {
    let message = match Message::parse(text) {
        Ok(message) => message,
        Err(why) => {
            let noted = suite.engine.note_unreadable(&why).await;
            return settle(noted.map(|()| Verdict::Forget));
        }
    };
    let marked = match is_untried(suite, &message).await {
        Ok(false) => suite.engine.mark_failed(&message).await,
        Ok(true) => {
            tracing::error!(
                run_id = message.run,
                "a dead letter asks for what nobody has tried: it is left as it is, and the planner sends for it again"
            );
            Ok(MarkedFailed::Stale)
        }
        Err(error) => Err(error),
    };
    settle(marked.map(|marked| {
        if marked == MarkedFailed::Failed {
            tracing::error!(
                "a slice or a plan was given up after several tries; `atlas status` names it"
            );
        }
        Verdict::Forget
    }))
}

/// Whether a dead letter that fails now is let go. `None` stands for a count that is missing or not to be trusted.
#[must_use]
pub fn is_last(deliveries: Option<u64>) -> bool {
    deliveries.is_none_or(|deliveries| deliveries >= MOST_DEAD_DELIVERIES)
}

/// Ends a dead letter that could not be settled and was delivered often enough. Nothing is lost: the planner finds what it asked
/// for by the records.
#[must_use]
pub fn within_bound(verdict: Verdict, deliveries: Option<u64>) -> Verdict {
    if verdict == Verdict::Again && is_last(deliveries) {
        tracing::error!(
            "a dead letter could not be settled in {MOST_DEAD_DELIVERIES} tries and is let go; the planner finds its slice by the record"
        );
        return Verdict::Forget;
    }
    verdict
}

/// Whether the records show no try of what a dead letter asks for. A run of the timer is never planned by a message.
async fn is_untried(suite: &Suite, message: &Message) -> Result<bool> {
    let ledger = suite.engine.store.ledger();
    Ok(match &message.task {
        Task::Slice { id, .. } => ledger
            .slice(id)
            .await?
            .is_some_and(|slice| is_open_and_untried(&slice)),
        Task::Plan => ledger
            .run(&message.run)
            .await?
            .is_some_and(|run| run.origin != Origin::OnDemand),
    })
}

/// A worker that took it left its name, and one that failed left the reason.
fn is_open_and_untried(slice: &Slice) -> bool {
    slice.state == SliceState::Open && slice.owner.is_none() && slice.failure.is_none()
}

/// Leaves the reason in the record where a try failed before the slice was taken, such as for a web template: else the record
/// would show no try. Whoever changes the record at the same time knows more.
async fn note_try(suite: &Suite, message: &Message, error: &Error) {
    let Task::Slice { id, part } = &message.task else {
        return;
    };
    let ledger = suite.engine.store.ledger();
    let noted = match ledger.slice(id).await {
        Ok(Some(slice))
            if slice.run == message.run && slice.part == *part && is_open_and_untried(&slice) =>
        {
            let tried = Slice {
                failure: Some(error.chain()),
                ..slice.clone()
            };
            ledger.swap_slice(&slice, &tried).await.map(|_| ())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = noted {
        tracing::warn!("the reason was not kept: {}", error.chain());
    }
}

fn settle(result: Result<Verdict>) -> Verdict {
    result.unwrap_or_else(|error| {
        tracing::warn!(
            "a message was not settled, and comes again: {}",
            error.chain()
        );
        Verdict::Again
    })
}
