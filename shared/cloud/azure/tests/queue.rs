//! The queue against Azurite, and against servers that misbehave.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::{Duration, Instant};

use atlas_cloud_azure::{Access, StorageQueue};
use atlas_emulators::{
    ACCOUNT, Authority, Azurite, Identity, KEY, Relay, Scripted, Taken, in_child,
};
use atlas_engine::message::{Message, Task};
use atlas_engine::ports::Queue;
use atlas_engine::{Error, ErrorKind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Names the queue for a test that runs again in a process of its own.
const CHILD: &str = "ATLAS_TEST_QUEUE";
/// A message arrives, or the test fails, within this.
const LIMIT: Duration = Duration::from_secs(30);

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

fn open(url: String, access: Access) -> StorageQueue {
    StorageQueue::new(&url.into(), access).unwrap()
}

fn key(key: &str) -> Access {
    Access::Key {
        account: ACCOUNT.to_owned(),
        key: key.into(),
    }
}

fn text(taken: &Taken) -> String {
    String::from_utf8(STANDARD.decode(&taken.text).unwrap()).unwrap()
}

/// All that a person could come to see of an error.
fn shown(error: &Error) -> String {
    format!("{error} {error:?} {} {:?}", error.chain(), error.help())
}

async fn with_queue() -> Azurite {
    let azurite = Azurite::start().unwrap();
    azurite.create_queue("work").await.unwrap();
    azurite
}

fn signed(azurite: &Azurite) -> StorageQueue {
    let url = format!("{}/work?{}", azurite.queues(), azurite.sas().unwrap());
    open(url, Access::Signed)
}

#[tokio::test]
async fn a_message_arrives_as_base64_of_its_json_and_lives_for_a_week() {
    let azurite = with_queue().await;
    let by_key = open(format!("{}/work", azurite.queues()), key(KEY));
    for queue in [signed(&azurite), by_key] {
        queue.send(&message(), Duration::ZERO).await.unwrap();
        let taken = azurite.take("work").await.unwrap();
        assert_eq!(taken.len(), 1);
        assert_eq!(Message::parse(&text(&taken[0])).unwrap(), message());
        assert_eq!(taken[0].dequeue_count, 1);
        let expires = jiff::fmt::rfc2822::parse(&taken[0].expires).unwrap();
        let lives = expires.timestamp().as_second() - jiff::Timestamp::now().as_second();
        assert!((604_700..=604_800).contains(&lives), "{lives} s");
    }
}

#[tokio::test]
async fn all_that_lies_in_a_queue_is_counted() {
    let azurite = with_queue().await;
    let queue = signed(&azurite);
    assert_eq!(queue.count().await.unwrap(), 0);
    for delay in [0, 0, 600] {
        let delay = Duration::from_secs(delay);
        queue.send(&message(), delay).await.unwrap();
    }
    assert_eq!(queue.count().await.unwrap(), 3);
    assert_eq!(azurite.take("work").await.unwrap().len(), 2);
    let by_key = open(format!("{}/work", azurite.queues()), key(KEY));
    assert_eq!(by_key.count().await.unwrap(), 3);
    let none = open(format!("{}/none", azurite.queues()), key(KEY));
    let error = none.count().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueDenied);
    assert!(error.help().unwrap().contains("Create the queue"));
}

#[tokio::test]
async fn a_delayed_message_is_hidden_until_its_time() {
    let azurite = with_queue().await;
    let sent = Instant::now();
    let delay = Duration::from_millis(1_500);
    signed(&azurite).send(&message(), delay).await.unwrap();
    loop {
        let taken = azurite.take("work").await.unwrap();
        if !taken.is_empty() {
            assert!(sent.elapsed() >= delay);
            return;
        }
        assert!(sent.elapsed() < LIMIT, "the message never came");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_delay_of_more_than_fifteen_minutes_is_cut() {
    let server = Scripted::start(|_| Some("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"));
    let server = server.await.unwrap();
    let url = format!("http://{}/{ACCOUNT}/work", server.address());
    let delay = Duration::from_secs(3_600);
    open(url, Access::Signed)
        .send(&message(), delay)
        .await
        .unwrap();
    let requests = server.requests();
    assert!(
        requests[0].contains("visibilitytimeout=900 "),
        "{requests:?}"
    );
}

#[tokio::test]
async fn a_message_may_have_what_the_service_takes_and_no_more() {
    let azurite = with_queue().await;
    let queue = signed(&azurite);
    let sized = |bytes: usize| {
        let mut message = message();
        message.run.clear();
        message.run = "x".repeat(bytes - message.to_json().len());
        message
    };
    // 48 KiB are 64 KiB in base64.
    let most = sized(48 * 1_024);
    queue.send(&most, Duration::ZERO).await.unwrap();
    let taken = azurite.take("work").await.unwrap();
    assert_eq!(Message::parse(&text(&taken[0])).unwrap(), most);
    let error = queue.send(&sized(48 * 1_024 + 1), Duration::ZERO).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::QueueDenied);
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_denied_with_what_to_do() {
    let azurite = Azurite::start().unwrap();
    let error = signed(&azurite).send(&message(), Duration::ZERO).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueDenied);
    assert!(
        error.chain().contains("404 QueueNotFound"),
        "{}",
        error.chain()
    );
    assert!(error.help().unwrap().contains("Create the queue"));
}

#[tokio::test]
async fn a_wrong_key_or_signature_is_denied_and_never_shown() {
    let azurite = with_queue().await;
    let url = format!("{}/work", azurite.queues());
    let wrong = STANDARD.encode("another key of the same length");
    let sas = azurite.sas().unwrap().replace("sig=", "sig=AAAA");
    for queue in [
        open(url.clone(), key(&wrong)),
        open(format!("{url}?{sas}"), Access::Signed),
    ] {
        let error = queue.send(&message(), Duration::ZERO).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::QueueDenied);
        assert!(error.chain().contains("403"), "{}", error.chain());
        let shown = format!("{} {queue:?}", shown(&error));
        assert!(
            !shown.contains("AAAA") && !shown.contains(&wrong),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn a_queue_that_is_down_is_unreachable_and_its_signature_never_shown() {
    let azurite = with_queue().await;
    let queue = signed(&azurite);
    drop(azurite);
    let error = queue.send(&message(), Duration::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueUnreachable);
    let shown = shown(&error);
    assert!(
        shown.contains("no connection (connection refused)"),
        "{shown}"
    );
    assert!(
        !shown.contains("sig=") && !shown.contains("127.0.0.1"),
        "{shown}"
    );
}

#[tokio::test]
async fn a_lost_answer_repeats_the_message_and_never_loses_it() {
    let azurite = with_queue().await;
    let server = azurite.queues().trim_start_matches("http://");
    let server = server.split('/').next().unwrap().parse().unwrap();
    let to_relay = |relay: &Relay| {
        let sas = azurite.sas().unwrap();
        let url = format!("http://{}/{ACCOUNT}/work?{sas}", relay.address());
        open(url, Access::Signed)
    };

    let relay = Relay::start(server, 1).await.unwrap();
    to_relay(&relay)
        .send(&message(), Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(relay.lost(), 1);
    assert_eq!(azurite.take("work").await.unwrap().len(), 2);

    let relay = Relay::start(server, usize::MAX).await.unwrap();
    let error = to_relay(&relay).send(&message(), Duration::ZERO).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::QueueUnreachable);
    assert_eq!(relay.lost(), 3);
    assert_eq!(azurite.take("work").await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_busy_service_is_asked_three_times() {
    let busy = "HTTP/1.1 503 Busy\r\nx-ms-error-code: ServerBusy\r\nContent-Length: 0\r\n\r\n";
    let server = Scripted::start(move |_| Some(busy)).await.unwrap();
    let url = format!("http://{}/{ACCOUNT}/work", server.address());
    let error = open(url, Access::Signed)
        .send(&message(), Duration::ZERO)
        .await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueUnreachable);
    assert!(
        error.chain().contains("503 ServerBusy"),
        "{}",
        error.chain()
    );
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn a_service_that_never_answers_is_given_up() {
    let server = Scripted::start(|_| None).await.unwrap();
    let queue = open(
        format!("http://{}/{ACCOUNT}/work", server.address()),
        Access::Signed,
    );
    let message = message();
    let send = tokio::time::timeout(LIMIT, queue.send(&message, Duration::ZERO));
    let error = send.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueUnreachable);
}

/// Sends one message as the identity of this process to the queue that [`CHILD`] names, if it does.
async fn as_child() -> Option<atlas_engine::Result<()>> {
    let url = std::env::var(CHILD).ok()?;
    let queue = open(url, Access::Identity);
    Some(queue.send(&message(), Duration::ZERO).await)
}

struct Cloud {
    authority: Authority,
    azurite: Azurite,
    identity: Identity,
}

impl Cloud {
    async fn start() -> Self {
        let authority = Authority::new().unwrap();
        let azurite = Azurite::start_with_tls(&authority).unwrap();
        azurite.create_queue("work").await.unwrap();
        let identity = Identity::start(&authority).await.unwrap();
        Self {
            authority,
            azurite,
            identity,
        }
    }

    async fn run(&self, test: &'static str, mut variables: Vec<(&'static str, String)>) {
        let authority = self.authority.file().to_string_lossy().into_owned();
        variables.push(("SSL_CERT_FILE", authority));
        variables.push((CHILD, format!("{}/work", self.azurite.queues())));
        // Not on a thread that our own servers need.
        tokio::task::spawn_blocking(move || in_child(test, variables).unwrap())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_managed_identity_may_send() {
    if let Some(sent) = as_child().await {
        return sent.unwrap();
    }
    let cloud = Cloud::start().await;
    let mut variables = cloud.identity.managed();
    let test = "a_managed_identity_may_send";
    cloud.run(test, variables.clone()).await;
    variables.push(("AZURE_CLIENT_ID", "user-assigned".to_owned()));
    cloud.run(test, variables).await;

    assert_eq!(cloud.azurite.take("work").await.unwrap().len(), 2);
    let asked = cloud.identity.asked();
    assert_eq!(asked.len(), 2, "one token for each process");
    assert!(
        asked
            .iter()
            .all(|asked| asked["resource"] == "https://storage.azure.com")
    );
    assert_eq!(asked[0].get("client_id"), None);
    assert_eq!(asked[1]["client_id"], "user-assigned");
}

#[tokio::test]
async fn a_workload_identity_may_send() {
    if let Some(sent) = as_child().await {
        return sent.unwrap();
    }
    let cloud = Cloud::start().await;
    let variables = cloud.identity.workload();
    cloud.run("a_workload_identity_may_send", variables).await;
    assert_eq!(cloud.azurite.take("work").await.unwrap().len(), 1);
    let asked = cloud.identity.asked();
    assert_eq!(asked[0]["scope"], "https://storage.azure.com/.default");
    assert_eq!(asked[0]["client_id"], "client-of-the-tests");
}

#[tokio::test]
async fn an_identity_that_gets_no_token_is_denied() {
    if let Some(sent) = as_child().await {
        let error = sent.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::QueueDenied);
        assert!(error.chain().contains("no token"), "{}", error.chain());
        return;
    }
    let cloud = Cloud::start().await;
    let mut variables = cloud.identity.managed();
    variables.push(("IDENTITY_HEADER", "another".to_owned()));
    cloud
        .run("an_identity_that_gets_no_token_is_denied", variables)
        .await;
    assert!(cloud.azurite.take("work").await.unwrap().is_empty());
}

#[test]
fn an_identity_needs_https() {
    let url = "http://127.0.0.1:1/devstoreaccount1/work".to_owned();
    let error = StorageQueue::new(&url.into(), Access::Identity).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.help().unwrap().contains("https"));
}
