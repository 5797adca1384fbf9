//! Function: worker. A message names a slice, and its pages are copied until it is done or the time is over. What was
//! delivered too often is marked as failed ([`mark_failed`]).

use std::time::Duration;

use atlas_engine::Result;
use atlas_engine::message::Message;
use atlas_engine::suite::deliver::Delivered;
use atlas_engine::suite::runs::MarkedFailed;
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
        Delivered::Again(_) => Verdict::Again,
        _ => Verdict::Forget,
    }
}

/// Marks what a message asked for as failed, because it was delivered too often, if its record shows a try.
pub async fn mark_failed(suite: &Suite, text: &str) -> Verdict {
    let message = match Message::parse(text) {
        Ok(message) => message,
        Err(why) => {
            let noted = suite.engine.note_unreadable(&why).await;
            return settle(noted.map(|()| Verdict::Forget));
        }
    };
    settle(suite.engine.mark_failed(&message).await.map(|marked| {
        match marked {
            MarkedFailed::Stale => {}
            MarkedFailed::Untried => tracing::error!(
                run_id = message.run,
                "a dead letter asks for what nobody has tried: it is left as it is, and the planner sends for it again"
            ),
            MarkedFailed::Divided => tracing::warn!(
                run_id = message.run,
                "a slice of several templates failed after several tries: each of them goes on in a slice of its own"
            ),
            MarkedFailed::Failed => tracing::error!(
                "a slice or a plan was given up after several tries; `atlas status` names it"
            ),
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

fn settle(result: Result<Verdict>) -> Verdict {
    result.unwrap_or_else(|error| {
        tracing::warn!(
            "a message was not settled, and comes again: {}",
            error.chain()
        );
        Verdict::Again
    })
}
