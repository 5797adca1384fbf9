//! Function: worker. A message names a slice, and its pages are copied until it is done or the time is over. What was
//! delivered too often is marked as failed ([`mark_failed`]).

use std::time::Duration;

use atlas_engine::Result;
use atlas_engine::message::Message;
use atlas_engine::suite::deliver::Delivered;
use atlas_engine::suite::runs::MarkedFailed;
use atlas_runtime::function::Suite;

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

/// Marks what a message asked for as failed, because it was delivered too often.
pub async fn mark_failed(suite: &Suite, text: &str) -> Verdict {
    let buried = match Message::parse(text) {
        Ok(message) => suite.engine.mark_failed(&message).await,
        Err(why) => suite
            .engine
            .note_unreadable(&why)
            .await
            .map(|()| MarkedFailed::Stale),
    };
    settle(buried.map(|buried| {
        if buried == MarkedFailed::Failed {
            tracing::error!(
                "a slice or a plan was given up after several tries; `atlas status` names it"
            );
        }
        Verdict::Forget
    }))
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
