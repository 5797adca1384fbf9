//! The queue trigger.

use std::time::Duration;

use local_hosts::azure::{Outcome, Reason};
use serde_json::json;

use crate::app::{App, LIMIT, command, ended, outcome, queue_output, queue_trigger};

#[tokio::test]
async fn a_message_is_hidden_as_long_as_it_is_in_work() {
    let mut app = App::new();
    app.options.instances = 2;
    let host = app.start().await;
    // Longer than the message is hidden at first (2 s): without renewals the other instance would get it.
    assert_eq!(
        outcome(&host, &command("sleep", 4_000)).await,
        Outcome::Succeeded
    );
    host.quiet(LIMIT).await.unwrap();
    assert_eq!(app.requests().len(), 1);
}

#[tokio::test]
async fn a_message_that_failed_too_often_is_set_aside() {
    let app = App::new();
    let host = app.start().await;
    host.queue("work")
        .put(&command("status", 500))
        .await
        .unwrap();
    host.quiet(LIMIT).await.unwrap();
    let counts: Vec<_> = app
        .requests()
        .iter()
        .map(|request| request["body"]["Metadata"]["DequeueCount"].clone())
        .collect();
    assert_eq!(counts, ["1", "2", "3"]);
    let poison = host.queue("work-poison").messages().await.unwrap();
    assert_eq!(poison, [command("status", 500)]);
}

#[tokio::test]
async fn a_message_taken_too_often_is_never_run() {
    let app = App::new();
    let host = app.start().await;
    host.scale(0).await.unwrap();
    host.queue("work").put("tired").await.unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for _ in 0..3 {
        let url = format!(
            "{}/work/messages?visibilitytimeout=1",
            host.queue_endpoint()
        );
        assert!(
            client
                .get(url)
                .send()
                .await
                .unwrap()
                .text()
                .await
                .unwrap()
                .contains("DequeueCount")
        );
        host.faults().advance_queue_clock(Duration::from_secs(1));
    }
    host.scale(1).await.unwrap();
    host.quiet(LIMIT).await.unwrap();
    assert_eq!(
        host.queue("work-poison").messages().await.unwrap(),
        ["tired"]
    );
    assert!(host.invocations().is_empty());
}

#[tokio::test]
async fn a_failed_message_waits_for_the_visibility_timeout() {
    let mut app = App::bare(json!({ "extensions": { "queues":
        { "batchSize": 1, "newBatchThreshold": 0, "visibilityTimeout": "00:01:00" } } }));
    app.function("worker", &[queue_trigger("work")]);
    app.options.pace.retry_visibility = None;
    let host = app.start().await;
    let message = json!({ "do": "status", "code": 500, "until": 2 }).to_string();
    let failed = Outcome::Failed(Reason::Status(500));
    assert_eq!(outcome(&host, &message).await, failed);
    // Handled to its end when nothing is under way any more.
    assert!(host.quiet(Duration::from_secs(3)).await.is_err());
    let mut events = host.events();
    assert_eq!(host.invocations().len(), 1);
    assert_eq!(host.queue("work").contents().await.unwrap().invisible, 1);
    host.faults().advance_queue_clock(Duration::from_secs(60));
    assert_eq!(ended(&mut events).await.outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn a_failed_poison_message_stays_hidden() {
    let mut app = App::bare(json!({}));
    app.function("deadletter", &[queue_trigger("work-poison")]);
    app.options.pace.visibility = Duration::from_secs(600);
    let host = app.start().await;
    let mut events = host.events();
    host.queue("work-poison")
        .put(&command("status", 500))
        .await
        .unwrap();
    let failed = Outcome::Failed(Reason::Status(500));
    assert_eq!(ended(&mut events).await.outcome, failed);
    assert!(host.quiet(Duration::from_millis(500)).await.is_err());
    assert_eq!(
        host.queue("work-poison")
            .contents()
            .await
            .unwrap()
            .invisible,
        1
    );
    assert_eq!(
        host.queue("work-poison-poison")
            .contents()
            .await
            .unwrap()
            .invisible,
        0
    );
}

#[tokio::test]
async fn a_missing_queue_is_an_empty_one() {
    let app = App::new();
    let host = app.start().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/work", host.queue_endpoint());
    assert_eq!(client.delete(url).send().await.unwrap().status(), 204);
    host.quiet(LIMIT).await.unwrap();
    // Putting makes it again, and the host finds it.
    assert_eq!(outcome(&host, "there").await, Outcome::Succeeded);
}

#[tokio::test]
async fn text_that_is_not_base64_is_set_aside_and_none_takes_it_as_it_is() {
    let app = App::new();
    let host = app.start().await;
    host.queue("work").put_raw("{\"m\":").await.unwrap();
    host.quiet(LIMIT).await.unwrap();
    assert!(host.invocations().is_empty());
    assert_eq!(
        host.queue("work-poison").contents().await.unwrap().texts,
        ["{\"m\":"]
    );

    let app = App::bare(json!({ "extensions": { "queues": { "messageEncoding": "none" } } }));
    app.function("worker", &[queue_trigger("work")]);
    let host = app.start().await;
    let mut events = host.events();
    host.queue("work").put_raw("{\"m\":").await.unwrap();
    assert_eq!(ended(&mut events).await.outcome, Outcome::Succeeded);
    let data = &app.requests()[0]["body"]["Data"]["msg"];
    assert_eq!(*data, json!("{\"m\":").to_string());
}

#[tokio::test]
async fn batch_and_threshold_bound_what_runs_at_once() {
    for (batch, threshold, most) in [(1, 0, 1), (2, 1, 3)] {
        let app = App::bare(json!({ "extensions": { "queues":
            { "batchSize": batch, "newBatchThreshold": threshold } } }));
        app.function("worker", &[queue_trigger("work")]);
        let host = app.start().await;
        for _ in 0..6 {
            host.queue("work")
                .put(&command("sleep", 200))
                .await
                .unwrap();
        }
        host.quiet(LIMIT).await.unwrap();
        let all = host.invocations();
        assert_eq!(all.len(), 6);
        let at_once = all
            .iter()
            .map(|one| {
                all.iter()
                    .filter(|other| other.started <= one.started && one.started < other.ended)
                    .count()
            })
            .max();
        assert!(at_once.unwrap() <= most, "{all:?}");
    }
}

#[tokio::test]
async fn a_message_is_deleted_only_after_its_outputs_are_sent() {
    let app = App::bare(
        json!({ "extensions": { "queues": { "batchSize": 1, "newBatchThreshold": 0, "maxDequeueCount": 2 } } }),
    );
    app.function(
        "worker",
        &[
            queue_trigger("work"),
            queue_output("good", "good"),
            queue_output("zbad", "Not_A_Queue"),
        ],
    );
    let host = app.start().await;
    let message = json!({ "do": "outputs", "outputs": { "good": ["a"] } }).to_string();
    assert_eq!(outcome(&host, &message).await, Outcome::Succeeded);
    assert_eq!(host.queue("good").messages().await.unwrap(), ["a"]);
    let message = json!({ "do": "outputs", "outputs": { "zbad": ["b"] } }).to_string();
    let failed = Outcome::Failed(Reason::Output);
    assert_eq!(outcome(&host, &message).await, failed);
    host.quiet(LIMIT).await.unwrap();
    assert_eq!(
        host.queue("work-poison").messages().await.unwrap(),
        [message]
    );
}
