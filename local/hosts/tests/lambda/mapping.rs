//! Event source mappings, each against the queue of this process and against moto.

use std::time::{Duration, Instant};

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::MessageAttributeValue;
use local_hosts::lambda::{Counts, Host, Outcome, QueueService, Trigger, Watched};
use serde_json::{Value, json};

use super::support::{LIMIT, Work, client, line, next, services, state, until, within};

async fn put(host: &Host, work: &Work, body: Value) {
    let queue = host.queue(&work.queue).unwrap();
    queue.put(&body.to_string()).await.unwrap();
}

async fn counts(host: &Host, queue: &str) -> Counts {
    host.queue(queue).unwrap().counts().await.unwrap()
}

#[tokio::test]
async fn a_record_has_every_member_that_lambda_gives_it() {
    for service in services() {
        let work = Work::new(service, 1, 1);
        let host = work.start().await;
        let mut lines = host.lines();
        let text = MessageAttributeValue::builder()
            .data_type("String")
            .string_value("yes")
            .build()
            .unwrap();
        let bytes = MessageAttributeValue::builder()
            .data_type("Binary")
            .binary_value(Blob::new([1, 2, 3]))
            .build()
            .unwrap();
        client(host.queue_endpoint())
            .send_message()
            .queue_url(host.queue(&work.queue).unwrap().url())
            .message_body(r#"{"do":"record"}"#)
            .message_attributes("text", text)
            .message_attributes("bytes", bytes)
            .send()
            .await
            .unwrap();
        let record: Value =
            serde_json::from_str(&format!("{{{}", line(&mut lines, "{").await)).unwrap();

        let members: Vec<&str> = record
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            members,
            [
                "attributes",
                "awsRegion",
                "body",
                "eventSource",
                "eventSourceARN",
                "md5OfBody",
                "messageAttributes",
                "messageId",
                "receiptHandle"
            ]
        );
        assert_eq!(record["body"], r#"{"do":"record"}"#);
        assert_eq!(record["md5OfBody"], "7d214dc0939a173e170f38686e1eaa14");
        assert_eq!(record["eventSource"], "aws:sqs");
        assert_eq!(record["awsRegion"], "eu-west-1");
        let arn = record["eventSourceARN"].as_str().unwrap();
        assert!(
            arn.starts_with("arn:aws:sqs:eu-west-1:") && arn.ends_with(&work.queue),
            "{arn}"
        );
        let attributes = &record["attributes"];
        assert_eq!(attributes["ApproximateReceiveCount"], "1");
        for time in ["SentTimestamp", "ApproximateFirstReceiveTimestamp"] {
            let time: i64 = attributes[time].as_str().unwrap().parse().unwrap();
            assert!(time > 1_700_000_000_000);
        }
        assert!(attributes["SenderId"].is_string());
        assert_eq!(record["messageAttributes"]["text"]["stringValue"], "yes");
        assert_eq!(record["messageAttributes"]["text"]["dataType"], "String");
        assert_eq!(record["messageAttributes"]["bytes"]["binaryValue"], "AQID");
        // What AWS' own types make of it.
        let event = json!({"Records": [record]});
        let event: aws_lambda_events::sqs::SqsEvent = serde_json::from_value(event).unwrap();
        assert_eq!(event.records[0].body.as_deref(), Some(r#"{"do":"record"}"#));
        host.quiet(LIMIT).await.unwrap();
    }
}

#[tokio::test]
async fn a_message_that_succeeded_is_deleted() {
    for service in services() {
        let work = Work::new(service, 1, 2);
        let host = work.start().await;
        let mut ended = host.watch();
        for _ in 0..5 {
            put(&host, &work, json!({"do": "ack"})).await;
        }
        for _ in 0..5 {
            assert_eq!(next(&mut ended).await.outcome, Outcome::Succeeded);
        }
        host.quiet(LIMIT).await.unwrap();
        assert_eq!(host.invocations().len(), 5);
    }
}

#[tokio::test]
async fn a_message_that_failed_comes_back_and_is_set_aside_after_too_many_receives() {
    for service in services() {
        let work = Work::new(service, 1, 1).short();
        let host = work.start().await;
        let mut lines = host.lines();
        put(&host, &work, json!({"do": "error"})).await;
        let receives = line(&mut lines, "message").await;
        assert!(receives.starts_with(r#""1""#), "{receives}");
        let receives = line(&mut lines, "message").await;
        assert!(receives.starts_with(r#""2""#), "{receives}");
        until(async || counts(&host, &work.dead).await.visible == 1).await;
        assert_eq!(counts(&host, &work.queue).await, Counts::default());
    }
}

#[tokio::test]
async fn a_second_mapping_of_the_same_function_takes_what_was_set_aside() {
    for service in services() {
        let mut work = Work::new(service, 1, 1).short();
        work.options.functions[0].triggers.push(Trigger::Queue {
            name: work.dead.clone(),
            batch_size: 1,
        });
        let host = work.start().await;
        let mut lines = host.lines();
        // Fails twice, and is then told apart by its third receive.
        put(&host, &work, json!({"do": "error"})).await;
        for receive in ["\"1\"", "\"2\"", "\"3\""] {
            let line = line(&mut lines, "message").await;
            assert!(line.starts_with(receive), "{line}");
        }
        until(async || counts(&host, &work.queue).await == Counts::default()).await;
    }
}

#[tokio::test]
async fn only_the_messages_that_the_function_names_come_back() {
    for service in services() {
        let work = Work::new(service, 10, 1);
        let host = work.start().await;
        let mut ended = host.watch();
        hold_back(&host, &work).await;
        for what in ["ack", "fail", "ack"] {
            put(&host, &work, json!({"do": what})).await;
        }
        assert_eq!(next(&mut ended).await.outcome, Outcome::Succeeded);
        let batch = next(&mut ended).await;
        assert_eq!(
            batch.outcome,
            Outcome::Returned("1 of 3 messages failed".to_owned())
        );
        until(async || counts(&host, &work.queue).await.in_flight == 1).await;
        assert_eq!(counts(&host, &work.queue).await.visible, 0);
    }
}

/// Keeps the only process busy, so that what is put meanwhile arrives in one batch.
async fn hold_back(host: &Host, work: &Work) {
    let mut lines = host.lines();
    put(host, work, json!({"do": "wait", "ms": 1000})).await;
    line(&mut lines, "waiting").await;
}

#[tokio::test]
async fn an_answer_of_any_right_form_deletes_all_and_of_any_wrong_form_none() {
    let right = [
        json!(null),
        json!({}),
        json!({"batchItemFailures": null}),
        json!({"batchItemFailures": []}),
        json!({"other": 1}),
    ];
    let wrong = [
        json!("done"),
        json!(true),
        json!([]),
        json!({"batchItemFailures": "none"}),
        json!({"batchItemFailures": {}}),
        json!({"batchItemFailures": [{}]}),
        json!({"batchItemFailures": [{"itemIdentifier": null}]}),
        json!({"batchItemFailures": [{"itemIdentifier": ""}]}),
        json!({"batchItemFailures": [{"itemIdentifier": "unknown"}]}),
        json!({"batchItemFailures": [{"itemIdentifier": 7}]}),
        json!({"batchItemFailures": [{"id": "unknown"}]}),
        json!({"batchItemFailures": ["unknown"]}),
    ];
    let work = Work::new(QueueService::InProcess, 10, 1);
    let host = work.start().await;
    let mut ended = host.watch();
    for answer in right {
        put(&host, &work, json!({"do": "answer", "answer": answer})).await;
        assert_eq!(
            next(&mut ended).await.outcome,
            Outcome::Succeeded,
            "{answer}"
        );
        host.quiet(LIMIT).await.unwrap();
    }
    let mut left = 0;
    for answer in wrong {
        put(&host, &work, json!({"do": "answer", "answer": answer})).await;
        let Outcome::Returned(why) = next(&mut ended).await.outcome else {
            panic!("{answer} was taken for a success");
        };
        assert!(why.ends_with("all messages failed"), "{why}");
        left += 1;
        assert_eq!(counts(&host, &work.queue).await.in_flight, left, "{answer}");
    }
}

#[tokio::test]
async fn no_more_events_run_at_once_than_the_mapping_allows() {
    for service in services() {
        let work = Work::new(service, 1, 2);
        let host = work.start().await;
        let mut lines = host.lines();
        for _ in 0..6 {
            put(&host, &work, json!({"do": "wait", "ms": 300})).await;
        }
        line(&mut lines, "waiting").await;
        host.quiet(LIMIT).await.unwrap();
        let all = host.invocations();
        assert_eq!(all.len(), 6);
        // Two at once: each begins after all but one of those before it have ended.
        for one in &all {
            let during = |other: &&local_hosts::lambda::Invocation| {
                other.started <= one.started && one.started < other.ended
            };
            assert!(all.iter().filter(during).count() <= 2);
        }
        assert!(host.processes("worker").len() <= 2);
    }
}

#[tokio::test]
async fn the_message_of_a_killed_process_comes_back_when_its_visibility_ends() {
    for service in services() {
        let work = Work::new(service, 1, 1).short();
        let host = work.start().await;
        let (mut lines, mut ended) = (host.lines(), host.watch());
        put(&host, &work, json!({"do": "hang"})).await;
        line(&mut lines, "hanging").await;
        let process = host.processes("worker")[0];
        assert!(!process.idle);
        assert!(host.kill(process.id));
        assert_eq!(next(&mut ended).await.outcome, Outcome::Lost);
        assert_eq!(counts(&host, &work.queue).await.in_flight, 1);
        // The second time it runs into its time limit, and is then set aside.
        line(&mut lines, "hanging").await;
        assert_eq!(next(&mut ended).await.outcome, Outcome::TimedOut);
        until(async || counts(&host, &work.dead).await.visible == 1).await;
        assert_eq!(state(process.id), None);
    }
}

#[tokio::test]
async fn quiet_waits_for_messages_that_are_delayed_and_says_what_is_left() {
    let work = Work::new(QueueService::InProcess, 1, 1);
    let host = work.start().await;
    client(host.queue_endpoint())
        .send_message()
        .queue_url(host.queue(&work.queue).unwrap().url())
        .message_body("{}")
        .delay_seconds(2)
        .send()
        .await
        .unwrap();
    let error = host.quiet(Duration::from_millis(50)).await.unwrap_err();
    assert!(error.to_string().contains("1 delayed"), "{error}");
    host.quiet(LIMIT).await.unwrap();
    assert_eq!(host.invocations().len(), 1);
}

#[tokio::test]
async fn a_function_finds_the_queue_by_its_environment_and_sends_to_it() {
    for service in services() {
        let work = Work::new(service, 1, 1);
        let host = work.start().await;
        let mut ended = host.watch();
        put(
            &host,
            &work,
            json!({"do": "send", "text": "{\"do\":\"ack\"}"}),
        )
        .await;
        for _ in 0..2 {
            assert_eq!(next(&mut ended).await.outcome, Outcome::Succeeded);
        }
        within(host.quiet(LIMIT)).await.unwrap();
    }
}

#[tokio::test]
async fn short_seconds_are_kept_for_visibility_and_a_queue_shows_what_cloudwatch_would() {
    let mut work = Work::new(QueueService::InProcess, 1, 1);
    // A message that failed comes back after 60 of them.
    work.options.pace.second = Duration::from_millis(5);
    let host = work.start().await;
    let watched = |queue: &str| host.queue(queue).unwrap().watched().unwrap();
    assert_eq!(watched(&work.queue), Watched::default());
    let begun = Instant::now();
    put(&host, &work, json!({"do": "fail"})).await;
    until(async || watched(&work.queue).oldest > Duration::from_millis(50)).await;
    until(async || counts(&host, &work.dead).await.visible == 1).await;
    assert!(begun.elapsed() < Duration::from_secs(60), "real seconds");
    let (left, dead) = (watched(&work.queue), watched(&work.dead));
    assert_eq!((left.received, dead.received), (2, 0));
    assert_eq!(left.oldest, Duration::ZERO, "it is in the other queue");
    assert!(dead.oldest < begun.elapsed(), "since it came there");
    until(async || watched(&work.dead).oldest > Duration::from_millis(50)).await;
}
