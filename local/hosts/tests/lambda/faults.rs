//! Each fault does what it says and leaves the host in order; gates hold what they name.

use std::time::{Duration, Instant};

use local_hosts::lambda::{Counts, Fault, Host, Outcome, Point, QueueService, Times};
use serde_json::{Value, json};

use super::support::{LIMIT, Work, client, line, next, services, state, until, within};

/// Sends by SDK, as a function does, so that the faults of sending apply.
async fn send(host: &Host, work: &Work, body: &Value) -> Result<(), aws_sdk_sqs::Error> {
    client(host.queue_endpoint())
        .send_message()
        .queue_url(host.queue(&work.queue).unwrap().url())
        .message_body(body.to_string())
        .send()
        .await?;
    Ok(())
}

async fn put(host: &Host, work: &Work, body: Value) {
    let queue = host.queue(&work.queue).unwrap();
    queue.put(&body.to_string()).await.unwrap();
}

async fn counts(host: &Host, work: &Work) -> Counts {
    host.queue(&work.queue).unwrap().counts().await.unwrap()
}

/// After whatever happened: a message is worked off, and nothing is left.
async fn works(host: &Host, work: &Work) {
    assert_eq!(host.faults().pending(), []);
    let before = host.invocations().len();
    put(host, work, json!({"do": "ack", "last": true})).await;
    host.quiet(LIMIT).await.unwrap();
    let all = host.invocations();
    assert!(all.len() > before);
    assert_eq!(all.last().unwrap().outcome, Outcome::Succeeded);
}

fn work() -> Work {
    Work::new(QueueService::InProcess, 1, 1)
}

#[tokio::test]
async fn a_duplicate_is_delivered_twice_under_the_same_id() {
    let work = work();
    let host = work.start().await;
    let mut lines = host.lines();
    host.faults().set(Fault::Duplicate, Times::Next(1));
    send(&host, &work, &json!({"do": "record"})).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let record = format!("{{{}", line(&mut lines, "{").await);
        let record: Value = serde_json::from_str(&record).unwrap();
        ids.push(record["messageId"].clone());
    }
    assert_eq!(ids[0], ids[1]);
    works(&host, &work).await;
}

#[tokio::test]
async fn a_lost_message_was_answered_for_and_never_arrives() {
    let work = work();
    let host = work.start().await;
    host.faults().set(Fault::Lose, Times::Next(1));
    send(&host, &work, &json!({})).await.unwrap();
    assert_eq!(counts(&host, &work).await, Counts::default());
    works(&host, &work).await;
    assert_eq!(host.invocations().len(), 1);
}

#[tokio::test]
async fn a_lost_answer_stores_the_message_and_fails_the_sender() {
    let work = work();
    let host = work.start().await;
    host.faults().set(Fault::LoseAnswer, Times::Next(1));
    send(&host, &work, &json!({})).await.unwrap_err();
    works(&host, &work).await;
    assert_eq!(host.invocations().len(), 2);
}

#[tokio::test]
async fn a_delayed_delivery_comes_later() {
    let work = work();
    let host = work.start().await;
    let later = Duration::from_secs(1);
    host.faults()
        .set(Fault::DelayDelivery(later), Times::Next(1));
    let begun = Instant::now();
    send(&host, &work, &json!({})).await.unwrap();
    assert_eq!(counts(&host, &work).await.delayed, 1);
    host.quiet(LIMIT).await.unwrap();
    assert!(begun.elapsed() >= later);
    works(&host, &work).await;
}

#[tokio::test]
async fn reversed_messages_arrive_newest_first() {
    let work = work();
    let host = work.start().await;
    let mut lines = host.lines();
    put(&host, &work, json!({"do": "wait", "ms": 500})).await;
    line(&mut lines, "waiting").await;
    for at in ["first", "second", "third"] {
        put(&host, &work, json!({"do": at})).await;
    }
    host.faults().set(Fault::Reverse, Times::Always);
    for at in ["third", "second", "first"] {
        let line = line(&mut lines, "message").await;
        assert!(line.contains(at), "{line}");
    }
    host.faults().clear();
    works(&host, &work).await;
}

#[tokio::test]
async fn a_malformed_message_arrives_along_with_a_good_one() {
    let work = work();
    let host = work.start().await;
    let mut lines = host.lines();
    host.faults().set(Fault::Malformed, Times::Next(1));
    send(&host, &work, &json!({"good": 1})).await.unwrap();
    let malformed = line(&mut lines, "message \"1\"").await;
    assert!(
        serde_json::from_str::<Value>(&malformed).is_err(),
        "{malformed}"
    );
    assert_eq!(line(&mut lines, "message \"1\"").await, r#"{"good":1}"#);
    works(&host, &work).await;
}

#[tokio::test]
async fn a_queue_that_is_down_fails_its_callers_and_works_again_afterwards() {
    let work = work();
    let host = work.start().await;
    for fault in [Fault::QueueRefused, Fault::QueueUnavailable] {
        host.faults().set(fault, Times::Always);
        let error = client(host.queue_endpoint())
            .send_message()
            .queue_url(host.queue(&work.queue).unwrap().url())
            .message_body("{}")
            .send()
            .await
            .unwrap_err();
        match fault {
            Fault::QueueRefused => assert!(
                matches!(error, aws_sdk_sqs::error::SdkError::DispatchFailure(_)),
                "{error:?}"
            ),
            _ => assert_eq!(error.raw_response().unwrap().status().as_u16(), 503),
        }
        // The host looks on by itself: what is put meanwhile waits for the queue to come back.
        put(&host, &work, json!({})).await;
        host.faults().clear();
        works(&host, &work).await;
    }
}

#[tokio::test]
async fn a_dropped_response_brings_the_message_back_though_the_function_answered() {
    for service in services() {
        let work = Work::new(service, 1, 1).short();
        let host = work.start().await;
        let (mut lines, mut ended) = (host.lines(), host.watch());
        host.faults().set(Fault::DropResponse, Times::Next(1));
        put(&host, &work, json!({"do": "ack"})).await;
        let lost = next(&mut ended).await;
        assert_eq!(lost.outcome, Outcome::Lost);
        let again = next(&mut ended).await;
        assert_eq!(again.outcome, Outcome::Succeeded);
        // The process knows nothing of it.
        assert_eq!(lost.process, again.process);
        for receive in ["\"1\"", "\"2\""] {
            assert!(line(&mut lines, "message").await.starts_with(receive));
        }
        works(&host, &work).await;
    }
}

#[tokio::test]
async fn a_skipped_or_late_delete_brings_the_message_back_after_its_success() {
    for service in services() {
        let late = Fault::DelayDelete(Duration::from_secs(5));
        for fault in [Fault::SkipDelete, late] {
            // Two at once: the second one sees the message while the first one waits to delete it.
            let work = Work::new(service.clone(), 1, 2).short();
            let host = work.start().await;
            let mut ended = host.watch();
            host.faults().set(fault, Times::Next(1));
            put(&host, &work, json!({"do": "ack"})).await;
            for _ in 0..2 {
                assert_eq!(next(&mut ended).await.outcome, Outcome::Succeeded);
            }
            works(&host, &work).await;
        }
    }
}

#[tokio::test]
async fn a_process_that_is_stopped_for_a_while_goes_on_where_it_was() {
    let work = work();
    let host = work.start().await;
    let mut lines = host.lines();
    put(&host, &work, json!({"do": "wait", "ms": 300})).await;
    line(&mut lines, "waiting").await;
    let process = host.processes("worker")[0].id;
    assert!(host.pause(process, Duration::from_secs(600)));
    until(async || state(process) == Some('T')).await;
    assert_eq!(counts(&host, &work).await.in_flight, 1);
    assert!(host.resume(process));
    host.quiet(LIMIT).await.unwrap();
    assert_eq!(host.invocations()[0].outcome, Outcome::Succeeded);
    // And by itself, without thawing a process that waits for its next event.
    assert!(host.pause(process, Duration::from_millis(50)));
    until(async || state(process) == Some('T')).await;
    works(&host, &work).await;
    assert!(!host.kill(1) && !host.pause(1, Duration::ZERO) && !host.resume(1));
}

/// A worker is killed while its send is held at a point; how many messages of its own were stored.
async fn killed_at(point: Point) -> u64 {
    let work = work();
    let host = work.start().await;
    let mut ended = host.watch();
    let gate = host.hold(point);
    put(
        &host,
        &work,
        json!({"do": "send", "text": "{\"do\":\"error\"}"}),
    )
    .await;
    let process = within(gate.reached()).await;
    assert_eq!(process, host.processes("worker")[0].id);
    // Only this process would take it.
    let sent = counts(&host, &work).await.visible;
    assert!(host.kill(process));
    assert_eq!(next(&mut ended).await.outcome, Outcome::Lost);
    gate.release();
    put(&host, &work, json!({"do": "ack"})).await;
    until(async || counts(&host, &work).await.visible == 0).await;
    until(async || counts(&host, &work).await.in_flight == 1 + sent).await;
    assert_eq!(state(process), None);
    sent
}

#[tokio::test]
async fn a_process_killed_before_its_message_is_stored_has_sent_nothing() {
    assert_eq!(killed_at(Point::BeforeSend).await, 0);
}

#[tokio::test]
async fn a_process_killed_after_its_message_is_stored_has_sent_it() {
    assert_eq!(killed_at(Point::AfterSend).await, 1);
}

#[tokio::test]
async fn the_host_is_held_before_and_after_it_deletes() {
    for service in services() {
        let work = Work::new(service, 1, 1);
        let host = work.start().await;
        let (before, after) = (
            host.hold(Point::BeforeDelete),
            host.hold(Point::AfterDelete),
        );
        put(&host, &work, json!({})).await;
        let process = within(before.reached()).await;
        assert_eq!(host.invocations()[0].process, Some(process));
        assert_eq!(counts(&host, &work).await.in_flight, 1);
        before.release();
        within(after.reached()).await;
        assert_eq!(counts(&host, &work).await, Counts::default());
        assert!(host.quiet(Duration::ZERO).await.is_err());
        after.release();
        host.quiet(LIMIT).await.unwrap();
    }
}

#[tokio::test]
async fn a_gate_that_is_dropped_holds_nothing() {
    let work = work();
    let host = work.start().await;
    drop(host.hold(Point::BeforeDelete));
    works(&host, &work).await;
}
