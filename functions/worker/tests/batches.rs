//! The shipped worker of Lambda is sent batches and odd events, over the runtime API that Lambda has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::time::Duration;

use atlas_emulators::{Invoked, Lambda, Scripted};
use serde_json::{Value, json};
use tempfile::TempDir;

const WORKER: &str = env!("CARGO_BIN_EXE_atlas-lambda-worker");
/// As the platform leaves it to a function of 300 seconds.
const PLENTY: Duration = Duration::from_secs(300);
/// Less than a worker wants to end before its platform does.
const LITTLE: Duration = Duration::from_secs(12);
const WORK: &str = "arn:aws:sqs:eu-central-1:123456789012:export-work";
const DEAD: &str = "arn:aws:sqs:eu-central-1:123456789012:export-work-poison";
const PLAN: &str = r#"{"m":{"v":1,"kind":"plan","run":"no such run"}}"#;

/// The worker over an empty SQLite file, with a queue that takes whatever it is told.
struct Worker {
    program: Lambda,
    queue: Scripted,
    _folder: TempDir,
}

impl Worker {
    async fn start(base_url: &str) -> Self {
        let taken = "HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: 2\r\n\r\n{}";
        let queue = Scripted::start(move |_| Some(taken)).await.unwrap();
        let endpoint = format!("http://{}", queue.address());
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("copy.db");
        let store = store.to_str().unwrap();
        let url = format!("{endpoint}/123456789012/export-work");
        let variables = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("ATLAS_QUEUE_URL", url.as_str()),
            ("ATLAS_OPENEHR_BASE_URL", base_url),
            ("ATLAS_SQLITE_PATH", store),
        ];
        Self {
            program: Lambda::start(Path::new(WORKER), &variables).await.unwrap(),
            queue,
            _folder: folder,
        }
    }

    /// Over a source that nothing here asks.
    async fn ready() -> Self {
        Self::start("http://127.0.0.1:9/ehrbase/rest/openehr/v1").await
    }

    /// The ids that a batch gives back.
    async fn given_back(&mut self, event: Value, left: Duration) -> Vec<String> {
        let invoked = self.program.invoke(event, left).await.unwrap();
        let Invoked::Response(body) = invoked else {
            panic!("{invoked:?}");
        };
        let failures = body["batchItemFailures"].as_array().unwrap();
        let ids = failures.iter().map(|one| one["itemIdentifier"].as_str());
        ids.map(|id| id.unwrap().to_owned()).collect()
    }

    async fn fails(&mut self, records: &[Value]) -> bool {
        let invoked = self.program.invoke(batch(records), PLENTY).await.unwrap();
        matches!(invoked, Invoked::Error(_))
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
        assert!(worker.fails(&[dead(receives)]).await, "{receives}");
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
        assert!(worker.fails(&records).await, "{records:?}");
    }
}
