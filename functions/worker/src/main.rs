//! The worker on AWS Lambda. Its queue and the queue of dead letters send batches; each record is answered for by itself.

use std::time::{Duration, Instant};

use atlas_cloud_aws::SqsQueue;
use atlas_lambda::{Error, Event, serve};
use atlas_runtime::function::{Lazy, Suite};
use atlas_runtime::settings::QueueAccess;
use atlas_runtime::suite::{DEAD_QUEUE, MARGIN};
use atlas_worker::{Verdict, handle, is_last, mark_failed, within_bound};
use aws_lambda_events::sqs::{SqsBatchResponse, SqsMessage};
use serde_json::{Value, json};

/// Without it, a message that failed would come back only after the visibility that a dead worker needs.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let suite = &Lazy::default();
    serve(async |event: Event| {
        let end = Instant::now() + event.left;
        let records = records(event.payload);
        let mut answer = SqsBatchResponse::default();
        let suite = match suite.get().await {
            Ok(suite) => suite,
            // No error: an error brings the whole batch back, for as long as the suite cannot start.
            Err(error) if is_at_its_end(&records) => {
                tracing::error!("dead letters are let go, because the suite cannot start: {error}");
                return Ok(json!(answer));
            }
            Err(error) => return Err(error.into()),
        };
        for (place, record) in records.into_iter().enumerate() {
            let left = end.saturating_duration_since(Instant::now());
            // The first one is begun with whatever the platform leaves: else a function with a short limit would do nothing.
            let verdict = if place > 0 && left <= MARGIN {
                not_begun(suite, &record, left).await
            } else {
                one(suite, &record, left).await
            };
            if verdict == Verdict::Again {
                // Without an id, SQS takes the whole batch for failed: nothing gets lost.
                answer.add_failure(record.message_id.unwrap_or_default());
            }
        }
        Ok(json!(answer))
    })
    .await
}

/// The records of an event. One that SQS would not send is taken for a message that nobody can read, and fails no other.
fn records(mut event: Value) -> Vec<SqsMessage> {
    let records = event.get_mut("Records").map(Value::take);
    let Some(Value::Array(records)) = records else {
        tracing::warn!("the event holds no messages of SQS");
        return Vec::new();
    };
    records
        .into_iter()
        .map(|record| serde_json::from_value(record).unwrap_or_default())
        .collect()
}

async fn one(suite: &Suite, record: &SqsMessage, left: Duration) -> Verdict {
    let body = record.body.as_deref().unwrap_or_default();
    if is_dead_letter(record) {
        return within_bound(mark_failed(suite, body).await, deliveries(record));
    }
    let verdict = handle(suite, body, left).await;
    if verdict == Verdict::Again {
        release(suite, record, AGAIN_AFTER).await;
    }
    verdict
}

/// Gives a message back whose turn came too late, for another worker to begin at once. Nothing is noted in its slice: should SQS
/// set it aside for its receives alone, the slice is not taken for failed.
async fn not_begun(suite: &Suite, record: &SqsMessage, left: Duration) -> Verdict {
    tracing::warn!(
        left_seconds = left.as_secs_f64(),
        "a message of a batch was not begun and is given back: {} s are too little time",
        left.as_secs()
    );
    if !is_dead_letter(record) {
        release(suite, record, Duration::ZERO).await;
    }
    Verdict::Again
}

fn is_at_its_end(records: &[SqsMessage]) -> bool {
    !records.is_empty()
        && records
            .iter()
            .all(|record| is_dead_letter(record) && is_last(deliveries(record)))
}

fn is_dead_letter(record: &SqsMessage) -> bool {
    let queue = record.event_source_arn.as_deref();
    queue.is_some_and(|queue| queue.ends_with(DEAD_QUEUE))
}

/// Receives so far, this one included.
fn deliveries(record: &SqsMessage) -> Option<u64> {
    let count = record.attributes.get("ApproximateReceiveCount");
    count?.parse().ok()
}

async fn release(suite: &Suite, record: &SqsMessage, delay: Duration) {
    let Some(QueueAccess::Sqs { url }) = &suite.settings.queue else {
        return;
    };
    let receipt = record.receipt_handle.as_deref().unwrap_or_default();
    if let Err(error) = SqsQueue::new(url).show_again(receipt, delay).await {
        tracing::warn!(
            "a message was not released and comes back later: {}",
            error.chain()
        );
    }
}
