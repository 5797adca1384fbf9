//! The part of the SQS protocol (AWS JSON 1.0) that the functions and the host need, on a loopback port.
//!
//! | request | |
//! | --- | --- |
//! | `CreateQueue`, `GetQueueUrl`, `GetQueueAttributes` | visibility, delay, wait, redrive policy; counts |
//! | `SendMessage`, `SendMessageBatch` | with delay and message attributes |
//! | `ReceiveMessage` | long poll; all system attributes, asked for or not |
//! | `ChangeMessageVisibility`, `DeleteMessage`, `DeleteMessageBatch` | |
//!
//! Signatures are not checked. The access key id says who asks: each process of a function has its own.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::faults::{Fault, Faults, Gates, Point};
use super::options::{ACCOUNT, REGION};
use super::queue_store::{Message, Refusal, Settings, Store};

/// Messages in one request.
const MAX_BATCH: usize = 10;

/// Says which process has an access key id; `None` for the host's own and for strangers.
pub(super) type Senders = Arc<dyn Fn(&str) -> Option<i32> + Send + Sync>;

/// What the server works on.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) store: Arc<Store>,
    pub(super) faults: Faults,
    pub(super) gates: Gates,
    pub(super) senders: Senders,
    pub(super) address: SocketAddr,
}

/// Serves until the task is ended.
pub(super) async fn serve(listener: TcpListener, server: Server) {
    let routes = Router::new()
        .route("/", post(answer))
        // A batch of the longest messages, escaped.
        .layer(DefaultBodyLimit::max(64 << 20))
        .with_state(server);
    // Only ends with an error of the listener, which axum itself waits out.
    let _ = axum::serve(listener, routes).await;
}

impl Refusal {
    /// The error's name in the protocol, and its name in the older protocol, which clients still compare.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::NoQueue => (
                "com.amazonaws.sqs#QueueDoesNotExist",
                "AWS.SimpleQueueService.NonExistentQueue",
            ),
            Self::Exists => ("com.amazonaws.sqs#QueueNameExists", "QueueAlreadyExists"),
            Self::Receipt => (
                "com.amazonaws.sqs#ReceiptHandleIsInvalid",
                "ReceiptHandleIsInvalid",
            ),
            Self::NotInFlight => (
                "com.amazonaws.sqs#MessageNotInflight",
                "AWS.SimpleQueueService.MessageNotInflight",
            ),
            Self::Empty => (
                "com.amazonaws.sqs#EmptyBatchRequest",
                "AWS.SimpleQueueService.EmptyBatchRequest",
            ),
            Self::TooMany => (
                "com.amazonaws.sqs#TooManyEntriesInBatchRequest",
                "AWS.SimpleQueueService.TooManyEntriesInBatchRequest",
            ),
            Self::NotDistinct => (
                "com.amazonaws.sqs#BatchEntryIdsNotDistinct",
                "AWS.SimpleQueueService.BatchEntryIdsNotDistinct",
            ),
            Self::TooLong => (
                "com.amazonaws.sqs#BatchRequestTooLong",
                "AWS.SimpleQueueService.BatchRequestTooLong",
            ),
            Self::Invalid(_) => (
                "com.amazon.coral.service#InvalidParameterValueException",
                "InvalidParameterValue",
            ),
            Self::Unsupported => (
                "com.amazonaws.sqs#UnsupportedOperation",
                "AWS.SimpleQueueService.UnsupportedOperation",
            ),
        }
    }

    fn message(self) -> &'static str {
        match self {
            Self::NoQueue => "The specified queue does not exist.",
            Self::Exists => "A queue of this name exists with other attributes.",
            Self::Receipt => "The receipt handle is not valid.",
            Self::NotInFlight => "The message is not in flight.",
            Self::Empty => "The batch is empty.",
            Self::TooMany => "The batch has more than 10 entries.",
            Self::NotDistinct => "Two entries of the batch have the same id.",
            Self::TooLong => "The batch is longer than 1048576 bytes.",
            Self::Invalid(why) => why,
            Self::Unsupported => "The local queue does not know this operation.",
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (name, query) = self.names();
        let body = json!({"__type": name, "message": self.message()});
        let query = ("x-amzn-query-error", format!("{query};Sender"));
        (StatusCode::BAD_REQUEST, [query], body.to_string()).into_response()
    }
}

async fn answer(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> Response {
    if server.faults.hit(Fault::QueueRefused) {
        return broken();
    }
    if server.faults.hit(Fault::QueueUnavailable) {
        let body = json!({"__type": "ServiceUnavailable", "message": "switched off by a fault"});
        return (StatusCode::SERVICE_UNAVAILABLE, body.to_string()).into_response();
    }
    let target = headers
        .get("x-amz-target")
        .and_then(|target| target.to_str().ok()?.strip_prefix("AmazonSQS."))
        .unwrap_or_default();
    let sender = sender(&headers);
    let done = match target {
        "CreateQueue" => server.create(&body),
        "GetQueueUrl" => server.url_of(&body),
        "GetQueueAttributes" => server.attributes(&body),
        "SendMessage" | "SendMessageBatch" => {
            let process = (server.senders)(sender);
            if process.is_some() {
                server.gates.pass(Point::BeforeSend, process).await;
            }
            let done = if target == "SendMessage" {
                server.send(&body, sender)
            } else {
                server.send_batch(&body, sender)
            };
            if done.is_ok() && process.is_some() {
                server.gates.pass(Point::AfterSend, process).await;
            }
            if done.is_ok() && server.faults.hit(Fault::LoseAnswer) {
                return broken();
            }
            done
        }
        "ReceiveMessage" => server.receive(&body).await,
        "ChangeMessageVisibility" => server.change_visibility(&body),
        "DeleteMessage" => server.delete(&body),
        "DeleteMessageBatch" => server.delete_batch(&body),
        _ => Err(Refusal::Unsupported),
    };
    match done {
        Ok(answer) => {
            let json = (header::CONTENT_TYPE, "application/x-amz-json-1.0");
            ([json], answer.to_string()).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// A response whose body fails before its first byte: the server closes the connection without having written anything.
fn broken() -> Response {
    let failure = futures::stream::once(async {
        Err::<Bytes, _>(std::io::Error::other("broken by a fault"))
    });
    Response::new(Body::from_stream(failure))
}

/// The access key id of a request's signature.
fn sender(headers: &HeaderMap) -> &str {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.split_once("Credential="))
        .and_then(|(_, credential)| credential.split('/').next())
        .unwrap_or_default()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateQueue {
    queue_name: String,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetQueueUrl {
    queue_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OfQueue {
    queue_url: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RedrivePolicy {
    #[serde(rename = "deadLetterTargetArn")]
    arn: String,
    /// A number or its text: both are in use.
    #[serde(rename = "maxReceiveCount")]
    after: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Sent {
    #[serde(default)]
    id: String,
    message_body: String,
    delay_seconds: Option<u64>,
    message_attributes: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Batch<T> {
    queue_url: String,
    #[serde(default = "Vec::new")]
    entries: Vec<T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Receive {
    queue_url: String,
    max_number_of_messages: Option<usize>,
    visibility_timeout: Option<u64>,
    wait_time_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Receipt {
    #[serde(default)]
    id: String,
    receipt_handle: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ChangeVisibility {
    queue_url: String,
    receipt_handle: String,
    visibility_timeout: u64,
}

type Answer = Result<Value, Refusal>;

impl Server {
    fn create(&self, body: &[u8]) -> Answer {
        let request: CreateQueue = parse(body)?;
        let mut settings = Settings::default();
        for (name, value) in &request.attributes {
            match name.as_str() {
                "VisibilityTimeout" => settings.visibility = seconds(number(value)?, 43_200)?,
                "DelaySeconds" => settings.delay = seconds(number(value)?, 900)?,
                "ReceiveMessageWaitTimeSeconds" => settings.wait = seconds(number(value)?, 20)?,
                "RedrivePolicy" => {
                    let policy: RedrivePolicy = parse(value.as_bytes())?;
                    let to = last(&policy.arn, ':').to_owned();
                    self.store
                        .settings(&to)
                        .map_err(|_| Refusal::Invalid("there is no such dead-letter queue"))?;
                    let after = match &policy.after {
                        Value::String(text) => number(text)?,
                        other => other.as_u64().unwrap_or_default(),
                    };
                    let after = u32::try_from(after)
                        .ok()
                        .filter(|after| (1..=1000).contains(after))
                        .ok_or(Refusal::Invalid("maxReceiveCount is 1 to 1000"))?;
                    settings.redrive = Some((to, after));
                }
                _ => {
                    return Err(Refusal::Invalid(
                        "the local queue does not know this attribute",
                    ));
                }
            }
        }
        self.store.create(&request.queue_name, settings)?;
        Ok(json!({"QueueUrl": url(self.address, &request.queue_name)}))
    }

    fn url_of(&self, body: &[u8]) -> Answer {
        let request: GetQueueUrl = parse(body)?;
        self.store.settings(&request.queue_name)?;
        Ok(json!({"QueueUrl": url(self.address, &request.queue_name)}))
    }

    fn attributes(&self, body: &[u8]) -> Answer {
        let request: OfQueue = parse(body)?;
        let name = last(&request.queue_url, '/');
        let settings = self.store.settings(name)?;
        let counts = self.store.counts(name)?;
        let mut attributes = json!({
            "QueueArn": arn(name),
            "ApproximateNumberOfMessages": counts.visible.to_string(),
            "ApproximateNumberOfMessagesNotVisible": counts.in_flight.to_string(),
            "ApproximateNumberOfMessagesDelayed": counts.delayed.to_string(),
            "VisibilityTimeout": settings.visibility.as_secs().to_string(),
            "DelaySeconds": settings.delay.as_secs().to_string(),
            "ReceiveMessageWaitTimeSeconds": settings.wait.as_secs().to_string(),
        });
        if let Some((to, after)) = settings.redrive {
            let policy = json!({"deadLetterTargetArn": arn(&to), "maxReceiveCount": after});
            attributes["RedrivePolicy"] = policy.to_string().into();
        }
        Ok(json!({"Attributes": attributes}))
    }

    fn send(&self, body: &[u8], sender: &str) -> Answer {
        let queue: OfQueue = parse(body)?;
        self.send_one(last(&queue.queue_url, '/'), parse(body)?, sender)
    }

    fn send_batch(&self, body: &[u8], sender: &str) -> Answer {
        let batch: Batch<Sent> = parse(body)?;
        let name = last(&batch.queue_url, '/');
        self.store.settings(name)?;
        let bytes: usize = batch
            .entries
            .iter()
            .map(|sent| sent.message_body.len())
            .sum();
        if bytes > super::queue_store::MAX_BYTES {
            return Err(Refusal::TooLong);
        }
        each(
            batch.entries,
            |sent| sent.id.clone(),
            |sent| self.send_one(name, sent, sender),
        )
    }

    fn send_one(&self, name: &str, sent: Sent, sender: &str) -> Answer {
        let delay = sent
            .delay_seconds
            .map(|delay| seconds(delay, 900))
            .transpose()?;
        let message = self.store.send(
            name,
            sender,
            &sent.message_body,
            sent.message_attributes,
            delay,
        )?;
        Ok(json!({"MessageId": message.id, "MD5OfMessageBody": message.md5}))
    }

    async fn receive(&self, body: &[u8]) -> Answer {
        let request: Receive = parse(body)?;
        let name = last(&request.queue_url, '/');
        let most = request.max_number_of_messages.unwrap_or(1);
        if !(1..=MAX_BATCH).contains(&most) {
            return Err(Refusal::Invalid("MaxNumberOfMessages is 1 to 10"));
        }
        let visibility = request
            .visibility_timeout
            .map(|visibility| seconds(visibility, 43_200))
            .transpose()?;
        let wait = match request.wait_time_seconds {
            Some(wait) => seconds(wait, 20)?,
            None => self.store.settings(name)?.wait,
        };
        let until = Instant::now() + wait;
        loop {
            // Listens before it looks, or what arrives in between would be missed.
            let changed = self.store.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (messages, next) = self.store.receive(name, most, visibility)?;
            if !messages.is_empty() {
                let messages: Vec<Value> = messages.iter().map(received).collect();
                return Ok(json!({"Messages": messages}));
            }
            if Instant::now() >= until {
                return Ok(json!({}));
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(next.map_or(until, |next| next.min(until))) => {}
            }
        }
    }

    fn change_visibility(&self, body: &[u8]) -> Answer {
        let request: ChangeVisibility = parse(body)?;
        let visibility = seconds(request.visibility_timeout, 43_200)?;
        let name = last(&request.queue_url, '/');
        self.store
            .change_visibility(name, &request.receipt_handle, visibility)?;
        Ok(json!({}))
    }

    fn delete(&self, body: &[u8]) -> Answer {
        let queue: OfQueue = parse(body)?;
        let receipt: Receipt = parse(body)?;
        self.store
            .delete(last(&queue.queue_url, '/'), &receipt.receipt_handle)?;
        Ok(json!({}))
    }

    fn delete_batch(&self, body: &[u8]) -> Answer {
        let batch: Batch<Receipt> = parse(body)?;
        let name = last(&batch.queue_url, '/');
        self.store.settings(name)?;
        each(
            batch.entries,
            |entry| entry.id.clone(),
            |entry| {
                self.store
                    .delete(name, &entry.receipt_handle)
                    .map(|()| json!({}))
            },
        )
    }
}

/// Runs each entry of a batch by itself, after the batch as a whole was checked.
fn each<T>(entries: Vec<T>, id: impl Fn(&T) -> String, run: impl Fn(T) -> Answer) -> Answer {
    if entries.is_empty() {
        return Err(Refusal::Empty);
    }
    if entries.len() > MAX_BATCH {
        return Err(Refusal::TooMany);
    }
    if entries.iter().map(&id).collect::<HashSet<_>>().len() < entries.len() {
        return Err(Refusal::NotDistinct);
    }
    let (mut successful, mut failed) = (Vec::new(), Vec::new());
    for entry in entries {
        let id = id(&entry);
        match run(entry) {
            Ok(mut done) => {
                done["Id"] = id.into();
                successful.push(done);
            }
            Err(refusal) => failed.push(json!({
                "Id": id,
                "SenderFault": true,
                "Code": refusal.names().1,
                "Message": refusal.message(),
            })),
        }
    }
    Ok(json!({"Successful": successful, "Failed": failed}))
}

fn received(message: &Message) -> Value {
    let mut attributes = Map::new();
    let mut set = |name: &str, value: String| attributes.insert(name.to_owned(), value.into());
    set("SenderId", message.sender.clone());
    set("SentTimestamp", message.sent.as_millisecond().to_string());
    set("ApproximateReceiveCount", message.receives.to_string());
    if let Some(first) = message.first_received {
        set(
            "ApproximateFirstReceiveTimestamp",
            first.as_millisecond().to_string(),
        );
    }
    if let Some(from) = &message.moved_from {
        set("DeadLetterQueueSourceArn", arn(from));
    }
    let mut received = json!({
        "MessageId": message.id,
        "ReceiptHandle": message.receipt,
        "MD5OfBody": message.md5,
        "Body": message.body,
        "Attributes": attributes,
    });
    if let Some(attributes) = &message.attributes {
        received["MessageAttributes"] = attributes.clone();
    }
    received
}

/// Address of a queue.
pub(super) fn url(address: SocketAddr, name: &str) -> String {
    format!("http://{address}/{ACCOUNT}/{name}")
}

fn arn(name: &str) -> String {
    format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{name}")
}

fn last(text: &str, separator: char) -> &str {
    text.rsplit(separator).next().unwrap_or_default()
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|_| Refusal::Invalid("the request has a wrong shape"))
}

fn number(text: &str) -> Result<u64, Refusal> {
    text.parse()
        .map_err(|_| Refusal::Invalid("an attribute is not a number"))
}

fn seconds(value: u64, most: u64) -> Result<Duration, Refusal> {
    if value > most {
        return Err(Refusal::Invalid("a number of seconds is out of range"));
    }
    Ok(Duration::from_secs(value))
}
