//! Queue and secrets against moto, each test in a process of its own that takes moto for AWS.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::{Duration, Instant};

use atlas_cloud_aws::{ManagedSecrets, SqsQueue};
use atlas_emulators::{Moto, Scripted, in_child};
use atlas_engine::message::{Message, Task};
use atlas_engine::ports::Queue;
use atlas_engine::{Error, ErrorKind};
use aws_config::BehaviorVersion;
use secrecy::ExposeSecret;

const ENDPOINT: &str = "AWS_ENDPOINT_URL";

/// Whether this is the process without moto; then the other one has already done the test.
fn is_done_by_child(test: &str) -> bool {
    if std::env::var_os(ENDPOINT).is_some() {
        return false;
    }
    let moto = Moto::start().unwrap();
    in_child(test, moto.environment()).unwrap();
    true
}

fn message() -> Message {
    Message {
        run: "timer/2026-11-25T09:15:00Z".to_owned(),
        task: Task::Slice {
            id: "preserve/Größe.v1/<&>".to_owned(),
            part: 7,
        },
        waits: 0,
    }
}

async fn sqs() -> aws_sdk_sqs::Client {
    aws_sdk_sqs::Client::new(&aws_config::load_defaults(BehaviorVersion::latest()).await)
}

/// A new queue: who reads it, and its address.
async fn with_queue() -> (aws_sdk_sqs::Client, String) {
    let client = sqs().await;
    let made = client.create_queue().queue_name("export-work").send().await;
    let url = made.unwrap().queue_url.unwrap();
    (client, url)
}

async fn take(client: &aws_sdk_sqs::Client, url: &str, wait: i32) -> Vec<String> {
    let receive = client
        .receive_message()
        .queue_url(url)
        .wait_time_seconds(wait);
    let messages = receive.send().await.unwrap().messages.unwrap_or_default();
    messages
        .into_iter()
        .filter_map(|message| message.body)
        .collect()
}

#[tokio::test]
async fn a_message_arrives_as_its_json() {
    if is_done_by_child("a_message_arrives_as_its_json") {
        return;
    }
    let (client, url) = with_queue().await;
    SqsQueue::new(&url)
        .send(&message(), Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(take(&client, &url, 5).await, [message().to_json()]);
}

#[tokio::test]
async fn all_that_lies_in_a_queue_is_counted() {
    if is_done_by_child("all_that_lies_in_a_queue_is_counted") {
        return;
    }
    let (client, url) = with_queue().await;
    let queue = SqsQueue::new(&url);
    assert_eq!(queue.count().await.unwrap(), 0);
    for delay in [0, 0, 600] {
        let delay = Duration::from_secs(delay);
        queue.send(&message(), delay).await.unwrap();
    }
    assert_eq!(queue.count().await.unwrap(), 3);
    assert_eq!(take(&client, &url, 5).await.len(), 1);
    assert_eq!(queue.count().await.unwrap(), 3);
    let none = SqsQueue::new(format!("{url}-none"));
    let error = none.count().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueDenied, "{}", error.chain());
}

#[tokio::test]
async fn a_delayed_message_is_hidden_until_its_time() {
    if is_done_by_child("a_delayed_message_is_hidden_until_its_time") {
        return;
    }
    let (client, url) = with_queue().await;
    let (sent, delay) = (Instant::now(), Duration::from_millis(1_500));
    SqsQueue::new(&url).send(&message(), delay).await.unwrap();
    assert_eq!(take(&client, &url, 20).await.len(), 1);
    assert!(sent.elapsed() >= delay);
}

#[tokio::test]
async fn a_delay_that_sqs_does_not_know_is_cut() {
    if is_done_by_child("a_delay_that_sqs_does_not_know_is_cut") {
        return;
    }
    let (_, url) = with_queue().await;
    // SQS refuses more than 900 seconds.
    let delay = Duration::from_secs(3_600);
    SqsQueue::new(&url).send(&message(), delay).await.unwrap();
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_denied_with_what_to_do() {
    if is_done_by_child("a_queue_that_is_not_there_is_denied_with_what_to_do") {
        return;
    }
    let endpoint = std::env::var(ENDPOINT).unwrap();
    let queue = SqsQueue::new(format!("{endpoint}/123456789012/none"));
    let error = queue.send(&message(), Duration::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueDenied, "{}", error.chain());
    assert!(
        error.help().unwrap().contains("Create the queue"),
        "{}",
        error.chain()
    );
}

/// Sends to a queue that cannot be reached, in a process of its own.
async fn send_as_child() -> Option<Error> {
    let endpoint = std::env::var(ENDPOINT).ok()?;
    let queue = SqsQueue::new(format!("{endpoint}/123456789012/work"));
    Some(queue.send(&message(), Duration::ZERO).await.unwrap_err())
}

async fn run(test: &'static str, endpoint: String, credentials: bool) {
    let mut variables = vec![
        (ENDPOINT, endpoint),
        ("AWS_REGION", "eu-central-1".to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ("AWS_CONFIG_FILE", "/dev/null".to_owned()),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".to_owned()),
    ];
    if credentials {
        variables.push(("AWS_ACCESS_KEY_ID", "testing".to_owned()));
        variables.push(("AWS_SECRET_ACCESS_KEY", "testing".to_owned()));
    }
    tokio::task::spawn_blocking(move || in_child(test, variables).unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_queue_that_is_down_is_unreachable() {
    if let Some(error) = send_as_child().await {
        assert_eq!(error.kind(), ErrorKind::QueueUnreachable);
        assert!(error.chain().contains("no connection"), "{}", error.chain());
        return;
    }
    let closed = Scripted::start(|_| None).await.unwrap().address();
    let test = "a_queue_that_is_down_is_unreachable";
    run(test, format!("http://{closed}"), true).await;
}

#[tokio::test]
async fn a_busy_service_is_asked_three_times() {
    if let Some(error) = send_as_child().await {
        assert_eq!(error.kind(), ErrorKind::QueueUnreachable);
        assert!(error.chain().contains("503"), "{}", error.chain());
        return;
    }
    let busy = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
    let server = Scripted::start(move |_| Some(busy)).await.unwrap();
    let test = "a_busy_service_is_asked_three_times";
    run(test, format!("http://{}", server.address()), true).await;
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn a_service_that_never_answers_is_given_up() {
    if let Some(error) = send_as_child().await {
        assert_eq!(error.kind(), ErrorKind::QueueUnreachable);
        return;
    }
    let server = Scripted::start(|_| None).await.unwrap();
    let test = "a_service_that_never_answers_is_given_up";
    run(test, format!("http://{}", server.address()), true).await;
}

#[tokio::test]
async fn a_program_without_credentials_is_denied_with_what_to_do() {
    if let Some(error) = send_as_child().await {
        assert_eq!(error.kind(), ErrorKind::QueueDenied, "{}", error.chain());
        assert!(error.help().unwrap().contains("credentials"));
        return;
    }
    let test = "a_program_without_credentials_is_denied_with_what_to_do";
    run(test, "http://127.0.0.1:9".to_owned(), false).await;
}

#[tokio::test]
async fn secrets_come_whole_or_by_member() {
    if is_done_by_child("secrets_come_whole_or_by_member") {
        return;
    }
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let client = aws_sdk_secretsmanager::Client::new(&config);
    let text = r#"{"password":"s3cret","port":5432}"#;
    for (name, value) in [("atlas/plain", "s3cret"), ("atlas/json", text)] {
        let made = client.create_secret().name(name).secret_string(value);
        made.send().await.unwrap();
    }
    let bytes = aws_sdk_secretsmanager::primitives::Blob::new([1, 2, 3]);
    let made = client
        .create_secret()
        .name("atlas/bytes")
        .secret_binary(bytes);
    made.send().await.unwrap();

    let secrets = ManagedSecrets::default();
    for (id, member, expected) in [
        ("atlas/plain", None, "s3cret"),
        ("atlas/json", None, text),
        ("atlas/json", Some("password"), "s3cret"),
    ] {
        let secret = secrets.secret(id, member).await.unwrap();
        assert_eq!(secret.expose_secret(), expected);
    }
    for (id, member, said) in [
        ("atlas/none", None, "ResourceNotFoundException"),
        ("atlas/bytes", None, "bytes"),
        ("atlas/plain", Some("password"), "not a JSON object"),
        ("atlas/json", Some("user"), "no such member"),
        ("atlas/json", Some("port"), "no such member"),
    ] {
        let error = secrets.secret(id, member).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SecretUnavailable);
        assert!(error.chain().contains(said), "{}", error.chain());
        assert!(!format!("{error:?}").contains("s3cret"));
    }
}
