//! What a queue does: one suite, run against the queue of this process and against moto.

use std::any::Any;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{
    DeleteMessageBatchRequestEntry, Message, MessageSystemAttributeName, QueueAttributeName,
    SendMessageBatchRequestEntry,
};
use local_hosts::lambda::{Host, Options, QueueService};
use serde_json::json;
use uuid::Uuid;

use super::support::{client, moto, within};

struct Queues {
    client: Client,
    /// What serves it lives as long as this.
    _server: Box<dyn Any>,
}

/// Both services.
async fn both() -> [Queues; 2] {
    let mut options = Options::new(Vec::new());
    options.queue = QueueService::InProcess;
    let host = Host::start(options).await.unwrap();
    let moto = moto();
    let QueueService::Endpoint(address) = moto.queue.clone() else {
        panic!("moto is at an address");
    };
    [
        Queues {
            client: client(host.queue_endpoint()),
            _server: Box::new(host),
        },
        Queues {
            client: client(&address),
            _server: Box::new(moto),
        },
    ]
}

impl Queues {
    async fn make(&self, attributes: &[(QueueAttributeName, &str)]) -> String {
        let attributes = attributes
            .iter()
            .map(|(name, value)| (name.clone(), (*value).to_owned()));
        let made = self
            .client
            .create_queue()
            .queue_name(format!("queue-{}", Uuid::new_v4().simple()))
            .set_attributes(Some(attributes.collect()))
            .send()
            .await;
        made.unwrap().queue_url.unwrap()
    }

    async fn send(&self, url: &str, body: &str) {
        let sent = self.client.send_message().queue_url(url).message_body(body);
        sent.send().await.unwrap();
    }

    async fn receive(&self, url: &str, most: i32, wait: i32) -> Vec<Message> {
        let received = self
            .client
            .receive_message()
            .queue_url(url)
            .max_number_of_messages(most)
            .wait_time_seconds(wait)
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .send();
        within(received).await.unwrap().messages.unwrap_or_default()
    }

    async fn show(&self, url: &str, message: &Message, seconds: i32) {
        self.client
            .change_message_visibility()
            .queue_url(url)
            .receipt_handle(message.receipt_handle().unwrap())
            .visibility_timeout(seconds)
            .send()
            .await
            .unwrap();
    }

    async fn attributes(&self, url: &str) -> HashMap<QueueAttributeName, String> {
        let answer = self
            .client
            .get_queue_attributes()
            .queue_url(url)
            .attribute_names(QueueAttributeName::All)
            .send()
            .await;
        answer.unwrap().attributes.unwrap()
    }

    /// Visible, in flight, delayed.
    async fn counts(&self, url: &str) -> [String; 3] {
        let all = self.attributes(url).await;
        [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::ApproximateNumberOfMessagesDelayed,
        ]
        .map(|name| all[&name].clone())
    }
}

fn receives(message: &Message) -> &str {
    &message.attributes().unwrap()[&MessageSystemAttributeName::ApproximateReceiveCount]
}

fn entry(id: &str, body: &str) -> SendMessageBatchRequestEntry {
    let entry = SendMessageBatchRequestEntry::builder()
        .id(id)
        .message_body(body);
    entry.build().unwrap()
}

fn code<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> &str {
    match error {
        SdkError::ServiceError(error) => error.err().code().unwrap_or_default(),
        _ => "",
    }
}

#[tokio::test]
async fn a_batch_arrives_with_its_sums_and_attributes() {
    for queues in both().await {
        let url = queues.make(&[]).await;
        let bodies = ["one", "zwölf €", "{\"a\":\"<&>\"}"];
        let entries = bodies
            .iter()
            .enumerate()
            .map(|(at, body)| entry(&at.to_string(), body));
        let sent = queues
            .client
            .send_message_batch()
            .queue_url(&url)
            .set_entries(Some(entries.collect()))
            .send()
            .await
            .unwrap();
        assert_eq!((sent.successful().len(), sent.failed().len()), (3, 0));
        let received = queues.receive(&url, 10, 1).await;
        let mut got: Vec<_> = received
            .iter()
            .map(|message| message.body().unwrap())
            .collect();
        got.sort_unstable();
        let mut sums: Vec<_> = received.iter().map(|m| m.md5_of_body().unwrap()).collect();
        sums.sort_unstable();
        let mut sent_sums: Vec<_> = sent
            .successful()
            .iter()
            .map(|sent| sent.md5_of_message_body())
            .collect();
        sent_sums.sort_unstable();
        assert_eq!(got, ["one", "zwölf €", "{\"a\":\"<&>\"}"]);
        assert_eq!(sums, sent_sums);
        for message in &received {
            let attributes = message.attributes().unwrap();
            assert_eq!(receives(message), "1");
            for name in [
                MessageSystemAttributeName::SentTimestamp,
                MessageSystemAttributeName::SenderId,
                MessageSystemAttributeName::ApproximateFirstReceiveTimestamp,
            ] {
                assert!(attributes.contains_key(&name), "{name}");
            }
        }
    }
}

#[tokio::test]
async fn a_received_message_is_hidden_until_it_is_shown_again() {
    for queues in both().await {
        let url = queues.make(&[]).await;
        queues.send(&url, "x").await;
        let first = queues.receive(&url, 1, 1).await.remove(0);
        assert!(queues.receive(&url, 1, 0).await.is_empty());
        assert_eq!(queues.counts(&url).await, ["0", "1", "0"]);
        queues.show(&url, &first, 0).await;
        let second = queues.receive(&url, 1, 1).await.remove(0);
        assert_eq!(receives(&second), "2");
        assert_eq!(second.message_id(), first.message_id());
        assert_ne!(second.receipt_handle(), first.receipt_handle());
        queues.show(&url, &second, 600).await;
        assert!(queues.receive(&url, 1, 0).await.is_empty());
    }
}

#[tokio::test]
async fn a_message_comes_back_when_its_visibility_ends() {
    for queues in both().await {
        let url = queues
            .make(&[(QueueAttributeName::VisibilityTimeout, "1")])
            .await;
        queues.send(&url, "x").await;
        queues.receive(&url, 1, 1).await.remove(0);
        let again = queues.receive(&url, 1, 20).await.remove(0);
        assert_eq!(receives(&again), "2");
    }
}

#[tokio::test]
async fn a_request_that_waits_gets_a_message_that_is_sent_meanwhile() {
    for queues in both().await {
        let url = queues.make(&[]).await;
        let (received, ()) = futures::join!(queues.receive(&url, 1, 20), async {
            // Two answers of the queue to requests that were made after it: by then it waits.
            queues.attributes(&url).await;
            queues.attributes(&url).await;
            queues.send(&url, "x").await;
        });
        assert_eq!(received.len(), 1);
        // And without one it comes back empty when its time is over, not before.
        let begun = Instant::now();
        assert!(queues.receive(&url, 1, 1).await.is_empty());
        assert!(begun.elapsed() >= Duration::from_millis(900));
    }
}

#[tokio::test]
async fn a_delayed_message_is_counted_and_arrives_later() {
    for queues in both().await {
        let url = queues.make(&[]).await;
        let sent = queues
            .client
            .send_message()
            .queue_url(&url)
            .message_body("x");
        let begun = Instant::now();
        sent.delay_seconds(1).send().await.unwrap();
        assert_eq!(queues.counts(&url).await, ["0", "0", "1"]);
        assert_eq!(queues.receive(&url, 1, 20).await.len(), 1);
        assert!(begun.elapsed() >= Duration::from_millis(900));
    }
}

#[tokio::test]
async fn deleted_messages_are_gone() {
    for queues in both().await {
        let url = queues.make(&[]).await;
        queues.send(&url, "x").await;
        queues.send(&url, "y").await;
        let mut received = queues.receive(&url, 10, 1).await;
        while received.len() < 2 {
            received.extend(queues.receive(&url, 10, 1).await);
        }
        let entries = received.iter().enumerate().map(|(at, message)| {
            DeleteMessageBatchRequestEntry::builder()
                .id(at.to_string())
                .receipt_handle(message.receipt_handle().unwrap())
                .build()
                .unwrap()
        });
        let request = queues.client.delete_message_batch().queue_url(&url);
        let deleted = request
            .set_entries(Some(entries.collect()))
            .send()
            .await
            .unwrap();
        assert_eq!((deleted.successful().len(), deleted.failed().len()), (2, 0));
        assert_eq!(queues.counts(&url).await, ["0", "0", "0"]);
        let gone = queues
            .client
            .change_message_visibility()
            .queue_url(&url)
            .receipt_handle(received[0].receipt_handle().unwrap())
            .visibility_timeout(1)
            .send()
            .await
            .unwrap_err();
        assert_eq!(code(&gone), "ReceiptHandleIsInvalid");
        let bogus = queues
            .client
            .delete_message()
            .queue_url(&url)
            .receipt_handle("bogus");
        assert_eq!(
            code(&bogus.send().await.unwrap_err()),
            "ReceiptHandleIsInvalid"
        );
    }
}

#[tokio::test]
async fn a_message_that_was_received_too_often_is_set_aside() {
    for queues in both().await {
        let dead = queues.make(&[]).await;
        let arn = queues.attributes(&dead).await[&QueueAttributeName::QueueArn].clone();
        let policy = json!({"deadLetterTargetArn": arn, "maxReceiveCount": 2}).to_string();
        let url = queues
            .make(&[(QueueAttributeName::RedrivePolicy, &policy)])
            .await;
        queues.send(&url, "x").await;
        for receive in ["1", "2"] {
            let message = queues.receive(&url, 1, 1).await.remove(0);
            assert_eq!(receives(&message), receive);
            queues.show(&url, &message, 0).await;
        }
        assert!(queues.receive(&url, 1, 1).await.is_empty());
        assert_eq!(queues.counts(&url).await, ["0", "0", "0"]);
        let aside = queues.receive(&dead, 1, 1).await.remove(0);
        assert_eq!((aside.body(), receives(&aside)), (Some("x"), "3"));
    }
}

#[tokio::test]
async fn a_missing_queue_is_an_error_of_its_own() {
    for queues in both().await {
        let client = &queues.client;
        let url = queues.make(&[]).await + "-missing";
        let name = url.rsplit('/').next().unwrap();
        let asked = client
            .get_queue_url()
            .queue_name(name)
            .send()
            .await
            .unwrap_err();
        assert!(asked.into_service_error().is_queue_does_not_exist());
        let sent = client
            .send_message()
            .queue_url(&url)
            .message_body("x")
            .send()
            .await
            .unwrap_err();
        assert_eq!(code(&sent), "AWS.SimpleQueueService.NonExistentQueue");
        assert!(sent.into_service_error().is_queue_does_not_exist());
        let received = client
            .receive_message()
            .queue_url(&url)
            .send()
            .await
            .unwrap_err();
        assert!(received.into_service_error().is_queue_does_not_exist());
    }
}

#[tokio::test]
async fn a_queue_is_found_by_its_name_and_made_only_once() {
    for queues in both().await {
        let url = queues.make(&[]).await;
        let name = url.rsplit('/').next().unwrap();
        let found = queues
            .client
            .get_queue_url()
            .queue_name(name)
            .send()
            .await
            .unwrap();
        assert_eq!(found.queue_url(), Some(url.as_str()));
        let again = queues
            .client
            .create_queue()
            .queue_name(name)
            .send()
            .await
            .unwrap();
        assert_eq!(again.queue_url(), Some(url.as_str()));
    }
}

#[tokio::test]
async fn what_is_too_long_too_many_or_out_of_range_is_refused() {
    for queues in both().await {
        let client = &queues.client;
        let url = queues.make(&[]).await;
        let longest = "x".repeat(1_048_576);
        queues.send(&url, &longest).await;
        let longer = client
            .send_message()
            .queue_url(&url)
            .message_body(longest + "x");
        assert_eq!(
            code(&longer.send().await.unwrap_err()),
            "InvalidParameterValue"
        );
        let later = client
            .send_message()
            .queue_url(&url)
            .message_body("x")
            .delay_seconds(901);
        assert_eq!(
            code(&later.send().await.unwrap_err()),
            "InvalidParameterValue"
        );

        let batch = |entries| {
            let batch = client.send_message_batch().queue_url(&url);
            batch.set_entries(Some(entries)).send()
        };
        let many = (0..11).map(|at| entry(&at.to_string(), "x")).collect();
        let many = batch(many).await.unwrap_err();
        assert_eq!(
            code(&many),
            "AWS.SimpleQueueService.TooManyEntriesInBatchRequest"
        );
        let twice = batch(vec![entry("a", "x"), entry("a", "y")])
            .await
            .unwrap_err();
        assert_eq!(
            code(&twice),
            "AWS.SimpleQueueService.BatchEntryIdsNotDistinct"
        );
        let none = batch(Vec::new()).await.unwrap_err();
        assert_eq!(code(&none), "AWS.SimpleQueueService.EmptyBatchRequest");
    }
}

#[tokio::test]
async fn an_old_receipt_deletes_nothing_in_this_process() {
    let [queues, _] = both().await;
    let url = queues.make(&[]).await;
    queues.send(&url, "x").await;
    let old = queues.receive(&url, 1, 1).await.remove(0);
    queues.show(&url, &old, 0).await;
    queues.receive(&url, 1, 1).await.remove(0);
    let delete = queues.client.delete_message().queue_url(&url);
    delete
        .receipt_handle(old.receipt_handle().unwrap())
        .send()
        .await
        .unwrap();
    assert_eq!(queues.counts(&url).await, ["0", "1", "0"]);
}
