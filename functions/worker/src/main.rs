//! The worker on AWS Lambda. Its queue and the queue of dead letters send batches; each record is answered for by itself.

use std::time::{Duration, Instant};

use atlas_cloud_aws::SqsQueue;
use atlas_lambda::{Error, Event, serve};
use atlas_runtime::function::{Lazy, Suite};
use atlas_runtime::settings::QueueAccess;
use atlas_runtime::suite::DEAD_QUEUE;
use atlas_worker::{Verdict, handle, mark_failed};
use serde_json::{Value, json};

/// Without it, a message that failed would come back only after the visibility that a dead worker needs.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let suite = &Lazy::default();
    serve(async |event: Event| {
        let suite = suite.get().await?;
        // One clock for the whole batch: what the first message took is not there for the second.
        let end = Instant::now() + event.left;
        let mut failures = Vec::new();
        for record in event
            .payload
            .get("Records")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            if one(suite, record, end.saturating_duration_since(Instant::now())).await
                == Verdict::Again
            {
                failures.push(json!({ "itemIdentifier": text(record, "messageId") }));
            }
        }
        Ok(json!({ "batchItemFailures": failures }))
    })
    .await
}

async fn one(suite: &Suite, record: &Value, left: Duration) -> Verdict {
    let body = text(record, "body");
    if text(record, "eventSourceARN").ends_with(DEAD_QUEUE) {
        return mark_failed(suite, body).await;
    }
    let verdict = handle(suite, body, left).await;
    if verdict == Verdict::Again
        && let Err(error) = release(suite, text(record, "receiptHandle")).await
    {
        tracing::warn!(
            "a message was not released and comes back later: {}",
            error.chain()
        );
    }
    verdict
}

async fn release(suite: &Suite, receipt: &str) -> atlas_engine::Result<()> {
    match &suite.settings.queue {
        Some(QueueAccess::Sqs { url }) => {
            let queue = SqsQueue::new(url);
            queue.show_again(receipt, AGAIN_AFTER).await
        }
        _ => Ok(()),
    }
}

fn text<'a>(record: &'a Value, member: &str) -> &'a str {
    record
        .get(member)
        .and_then(Value::as_str)
        .unwrap_or_default()
}
