//! The shipped worker of Lambda is sent batches and odd events, over the runtime API that Lambda has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atlas_emulators::Scripted;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{Receiver, Sender, channel};

const WORKER: &str = env!("CARGO_BIN_EXE_atlas-lambda-worker");
/// Nothing here takes longer, unless something hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// As the platform leaves it to a function of 300 seconds.
const PLENTY: Duration = Duration::from_secs(300);
/// Less than a worker wants to end before its platform does.
const LITTLE: Duration = Duration::from_secs(12);
const WORK: &str = "arn:aws:sqs:eu-central-1:123456789012:export-work";
const DEAD: &str = "arn:aws:sqs:eu-central-1:123456789012:export-work-poison";
const PLAN: &str = r#"{"m":{"v":1,"kind":"plan","run":"no such run"}}"#;

/// An event with the time that is left for it.
type Sent = (Value, Duration);
/// `response` or `error`, and what it says.
type Got = (String, Value);

struct Runtime {
    events: Mutex<Receiver<Sent>>,
    answers: Sender<Got>,
}

async fn next(State(runtime): State<Arc<Runtime>>) -> impl IntoResponse {
    let Some((event, left)) = runtime.events.lock().await.recv().await else {
        return std::future::pending().await;
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let headers = [
        ("Lambda-Runtime-Aws-Request-Id", "one".to_owned()),
        (
            "Lambda-Runtime-Deadline-Ms",
            (now + left).as_millis().to_string(),
        ),
        ("Lambda-Runtime-Invoked-Function-Arn", "arn".to_owned()),
        ("Lambda-Runtime-Trace-Id", "Root=1".to_owned()),
        ("Content-Type", "application/json".to_owned()),
    ];
    (headers, event.to_string())
}

async fn answered(
    State(runtime): State<Arc<Runtime>>,
    Path((_, what)): Path<(String, String)>,
    body: Bytes,
) -> StatusCode {
    let body = serde_json::from_slice(&body).unwrap();
    runtime.answers.send((what, body)).await.unwrap();
    StatusCode::ACCEPTED
}

/// The worker over an empty SQLite file, with a queue that takes whatever it is told.
struct Worker {
    _process: Child,
    _folder: TempDir,
    queue: Scripted,
    events: Sender<Sent>,
    answers: Receiver<Got>,
}

impl Worker {
    async fn start(base_url: &str) -> Self {
        let (events, waiting) = channel(1);
        let (done, answers) = channel(1);
        let runtime = Arc::new(Runtime {
            events: Mutex::new(waiting),
            answers: done,
        });
        let api = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/{what}", post(answered))
            .with_state(runtime);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async { axum::serve(listener, api).await });
        let taken = "HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: 2\r\n\r\n{}";
        let queue = Scripted::start(move |_| Some(taken)).await.unwrap();
        let endpoint = format!("http://{}", queue.address());
        let folder = tempfile::tempdir().unwrap();
        let process = Command::new(WORKER)
            .env("AWS_LAMBDA_RUNTIME_API", address)
            .env("AWS_LAMBDA_FUNCTION_NAME", "worker")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("AWS_REGION", "eu-central-1")
            .env("AWS_ACCESS_KEY_ID", "testing")
            .env("AWS_SECRET_ACCESS_KEY", "testing")
            .env("AWS_ENDPOINT_URL", &endpoint)
            .env(
                "ATLAS_QUEUE_URL",
                format!("{endpoint}/123456789012/export-work"),
            )
            .env("ATLAS_OPENEHR_BASE_URL", base_url)
            .env("ATLAS_SQLITE_PATH", folder.path().join("copy.db"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            _process: process,
            _folder: folder,
            queue,
            events,
            answers,
        }
    }

    /// Over a source that nothing here asks.
    async fn ready() -> Self {
        Self::start("http://127.0.0.1:9/ehrbase/rest/openehr/v1").await
    }

    async fn invoke(&mut self, event: Value, left: Duration) -> Got {
        self.events.send((event, left)).await.unwrap();
        let answer = tokio::time::timeout(LIMIT, self.answers.recv()).await;
        answer.expect("the worker never answers").unwrap()
    }

    /// The ids that a batch gives back.
    async fn given_back(&mut self, event: Value, left: Duration) -> Vec<String> {
        let (what, body) = self.invoke(event, left).await;
        assert_eq!(what, "response", "{body}");
        let failures = body["batchItemFailures"].as_array().unwrap();
        let ids = failures.iter().map(|one| one["itemIdentifier"].as_str());
        ids.map(|id| id.unwrap().to_owned()).collect()
    }
}

fn record(id: &str, queue: &str, body: &str, receives: &str) -> Value {
    json!({
        "messageId": id,
        "receiptHandle": format!("receipt of {id}"),
        "body": body,
        "attributes": {
            "ApproximateReceiveCount": receives,
            "SentTimestamp": "1764000000000",
            "SenderId": "AIDA",
            "ApproximateFirstReceiveTimestamp": "1764000000001"
        },
        "messageAttributes": {},
        "md5OfBody": "0",
        "eventSource": "aws:sqs",
        "eventSourceARN": queue,
        "awsRegion": "eu-central-1"
    })
}

fn batch(records: &[Value]) -> Value {
    json!({ "Records": records })
}

#[tokio::test]
async fn each_message_of_a_batch_has_what_is_left_and_one_that_comes_too_late_is_given_back() {
    let mut worker = Worker::ready().await;
    let work = |id: &str| record(id, WORK, PLAN, "1");
    let three = [work("a"), work("b"), work("c")];
    let none: [&str; 0] = [];
    assert_eq!(worker.given_back(batch(&three), PLENTY).await, none);
    assert!(worker.queue.requests().is_empty());

    // The first one is begun with whatever is left.
    assert_eq!(worker.given_back(batch(&three[..1]), LITTLE).await, none);
    assert_eq!(worker.given_back(batch(&three), LITTLE).await, ["b", "c"]);
    let released = worker.queue.requests();
    assert_eq!(released.len(), 2, "{released:?}");
    for (request, id) in released.iter().zip(["b", "c"]) {
        assert!(request.contains("ChangeMessageVisibility"), "{request}");
        assert!(request.contains(&format!("receipt of {id}")), "{request}");
        assert!(request.contains("\"VisibilityTimeout\":0"), "{request}");
    }

    let dead = [
        record("a", DEAD, PLAN, "1"),
        record("b", DEAD, "not a message", "1"),
    ];
    assert_eq!(worker.given_back(batch(&dead), PLENTY).await, none);
    assert_eq!(worker.given_back(batch(&dead), LITTLE).await, ["b"]);
}

#[tokio::test]
async fn odd_events_and_records_fail_no_other() {
    let mut worker = Worker::ready().await;
    let none: [&str; 0] = [];
    for event in [
        json!({}),
        json!(null),
        json!([]),
        json!("x"),
        json!(7),
        json!({ "Records": null }),
        json!({ "Records": "x" }),
        json!({ "Records": [] }),
        json!({ "Records": [null, 7, {}, [], "x"] }),
        json!({ "Records": [{ "messageId": "a", "body": 7 }] }),
        json!({ "Records": [{ "messageId": 7, "body": PLAN }, record("b", WORK, PLAN, "1")] }),
        json!({ "Records": [{ "messageId": "a", "attributes": "x" }, record("b", DEAD, PLAN, "x")] }),
    ] {
        let back = worker.given_back(event.clone(), PLENTY).await;
        assert_eq!(back, none, "{event}");
    }
}

#[tokio::test]
async fn dead_letters_end_even_if_nothing_can_start() {
    let mut worker = Worker::start("nonsense").await;
    let none: [&str; 0] = [];
    let dead = |receives: &str| record("a", DEAD, PLAN, receives);
    for receives in ["1", "4"] {
        let (what, body) = worker.invoke(batch(&[dead(receives)]), PLENTY).await;
        assert_eq!(what, "error", "{receives}: {body}");
    }
    for receives in ["5", "6", "x"] {
        let back = worker.given_back(batch(&[dead(receives)]), PLENTY).await;
        assert_eq!(back, none, "{receives}");
    }
    // Messages of work are never let go: SQS sets them aside.
    for records in [
        vec![record("b", WORK, PLAN, "9")],
        vec![dead("5"), record("b", WORK, PLAN, "9")],
        vec![],
    ] {
        let (what, body) = worker.invoke(batch(&records), PLENTY).await;
        assert_eq!(what, "error", "{body}");
    }
}
