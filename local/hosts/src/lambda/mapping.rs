//! An event source mapping: polls a queue, invokes a function, deletes what succeeded.
//!
//! ```text
//! receive ──► invoke ──► judge the answer ──► delete the messages that succeeded
//!    ▲  one invocation per permit, `max_concurrency` of them         │
//!    └───────────────────────────────────────────────────────────────┘
//! ```
//! What failed is left alone: it comes back when its visibility ends, and the queue sets it aside after too many receives.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, Message, MessageSystemAttributeName};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::faults::{Fault, Faults, Gates, Point};
use super::function::Function;
use super::history::{History, Outcome};
use super::options::REGION;

/// Between two requests to a queue that does not answer.
const PAUSE: Duration = Duration::from_millis(200);

/// How often a delete is tried before the message is left to come back.
const DELETES: usize = 5;

/// A mapping from one queue to one function.
pub(super) struct Mapping {
    pub(super) function: Arc<Function>,
    pub(super) client: Client,
    pub(super) url: String,
    pub(super) arn: String,
    pub(super) batch_size: i32,
    pub(super) faults: Faults,
    pub(super) gates: Gates,
    pub(super) history: Arc<History>,
}

impl Mapping {
    /// Polls until the host stops. Running invocations go on to their ends.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let permits = Arc::new(Semaphore::new(self.function.spec.max_concurrency));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            let received = tokio::select! {
                () = stop.cancelled() => return,
                received = self.receive() => received,
            };
            let Ok(messages) = received else {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(PAUSE) => continue,
                }
            };
            if messages.is_empty() {
                continue;
            }
            let mapping = Arc::clone(&self);
            tokio::spawn(async move {
                mapping.deliver(messages).await;
                drop(permit);
            });
        }
    }

    async fn receive(&self) -> Result<Vec<Message>, ()> {
        let wait = self.function.pace.poll_wait.as_secs().clamp(1, 20);
        let answer = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(self.batch_size)
            .wait_time_seconds(i32::try_from(wait).unwrap_or(20))
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All")
            .send()
            .await
            .map_err(|error| {
                tracing::debug!(function = self.function.spec.name, %error, "no answer from the queue");
            })?;
        Ok(answer.messages.unwrap_or_default())
    }

    async fn deliver(&self, messages: Vec<Message>) {
        let _running = self.history.run();
        let records: Vec<Value> = messages
            .iter()
            .map(|message| self.record(message))
            .collect();
        let event = Bytes::from(json!({"Records": records}).to_string());
        let mut done = self.function.run(Uuid::new_v4().to_string(), event).await;

        let ids = messages.iter().filter_map(Message::message_id).collect();
        let succeeded = match (&done.invocation.outcome, &done.invocation.answer) {
            (Outcome::Succeeded, Some(answer)) => match failures(answer, &ids) {
                Ok(failed) => {
                    if !failed.is_empty() {
                        done.invocation.outcome = Outcome::Returned(format!(
                            "{} of {} messages failed",
                            failed.len(),
                            messages.len()
                        ));
                    }
                    messages
                        .iter()
                        .filter(|message| {
                            !failed.contains(message.message_id().unwrap_or_default())
                        })
                        .collect()
                }
                Err(why) => {
                    done.invocation.outcome = Outcome::Returned(why.to_owned());
                    Vec::new()
                }
            },
            _ => Vec::new(),
        };
        self.history.add(&done.invocation);
        if !succeeded.is_empty() {
            self.gates
                .pass(Point::BeforeDelete, done.invocation.process)
                .await;
            self.delete(succeeded).await;
            self.gates
                .pass(Point::AfterDelete, done.invocation.process)
                .await;
        }
    }

    async fn delete(&self, messages: Vec<&Message>) {
        let later = self.faults.take(|fault| match fault {
            Fault::DelayDelete(later) => Some(later),
            _ => None,
        });
        if let Some(later) = later {
            tokio::time::sleep(later).await;
        }
        // The position is the id: a duplicate has the same message id.
        let entries: Vec<_> = messages
            .iter()
            .enumerate()
            .filter(|_| !self.faults.hit(Fault::SkipDelete))
            .filter_map(|(at, message)| {
                DeleteMessageBatchRequestEntry::builder()
                    .id(at.to_string())
                    .receipt_handle(message.receipt_handle()?)
                    .build()
                    .ok()
            })
            .collect();
        if entries.is_empty() {
            return;
        }
        for _ in 0..DELETES {
            let deleted = self
                .client
                .delete_message_batch()
                .queue_url(&self.url)
                .set_entries(Some(entries.clone()))
                .send()
                .await;
            if deleted.is_ok() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
        tracing::warn!(
            function = self.function.spec.name,
            "messages could not be deleted; they will be delivered again"
        );
    }

    /// A message as Lambda puts it into an event.
    fn record(&self, message: &Message) -> Value {
        let attributes: BTreeMap<&str, &str> = message
            .attributes()
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let own: BTreeMap<&str, Value> = message
            .message_attributes()
            .into_iter()
            .flatten()
            .map(|(name, value)| {
                let binary = value
                    .binary_value()
                    .map(|value| BASE64_STANDARD.encode(value));
                let mut attribute = json!({
                    "dataType": value.data_type(),
                    "stringListValues": [],
                    "binaryListValues": [],
                });
                if let Some(text) = value.string_value() {
                    attribute["stringValue"] = text.into();
                }
                if let Some(binary) = binary {
                    attribute["binaryValue"] = binary.into();
                }
                (name.as_str(), attribute)
            })
            .collect();
        json!({
            "messageId": message.message_id(),
            "receiptHandle": message.receipt_handle(),
            "body": message.body(),
            "attributes": attributes,
            "messageAttributes": own,
            "md5OfBody": message.md5_of_body(),
            "eventSource": "aws:sqs",
            "eventSourceARN": self.arn,
            "awsRegion": REGION,
        })
    }
}

/// The messages of a batch that failed, by what the function answered.
///
/// # Errors
/// Why all of them failed.
fn failures(answer: &[u8], batch: &HashSet<&str>) -> Result<HashSet<String>, &'static str> {
    let answer: Value = serde_json::from_slice(answer)
        .map_err(|_| "the answer is not JSON: all messages failed")?;
    let list = match &answer {
        Value::Null => return Ok(HashSet::new()),
        Value::Object(members) => match members.get("batchItemFailures") {
            None | Some(Value::Null) => return Ok(HashSet::new()),
            Some(Value::Array(list)) => list,
            Some(_) => return Err("`batchItemFailures` is not a list: all messages failed"),
        },
        _ => return Err("the answer is not an object: all messages failed"),
    };
    list.iter()
        .map(|item| {
            item["itemIdentifier"]
                .as_str()
                .filter(|id| batch.contains(id))
                .map(str::to_owned)
                .ok_or("an `itemIdentifier` is not of this batch: all messages failed")
        })
        .collect()
}
