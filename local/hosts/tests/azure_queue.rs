//! How a storage queue behaves: one suite, held by the in-process service and by Azurite, through the host's one client.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    dead_code
)]

#[path = "azure/app.rs"]
mod app;
#[path = "azure/azurite.rs"]
mod azurite;

use std::time::Duration;

use local_hosts::azure::{Outcome, QueueClient, QueueFailure, QueueService, Received};
use serde_json::json;

use app::{App, LIMIT, command};
use azurite::Azurite;

const MINUTE: Duration = Duration::from_secs(60);
const NOW: Duration = Duration::ZERO;

fn refused(status: u16, code: &str) -> QueueFailure {
    QueueFailure::Refused {
        status,
        code: code.to_owned(),
    }
}

/// Takes the one message that is visible.
async fn take(client: &QueueClient, visibility: Duration) -> Received {
    let mut taken = client.get("work", 32, visibility).await.unwrap();
    assert_eq!(taken.len(), 1);
    taken.remove(0)
}

/// Waits until a message is visible and takes it.
async fn wait(client: &QueueClient, visibility: Duration) -> Received {
    let wait = async {
        loop {
            if let Some(message) = client.get("work", 1, visibility).await.unwrap().pop() {
                return message;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap()
}

mod behaviour {
    use super::*;

    pub async fn a_queue_is_made_once_and_keeps_its_messages(client: QueueClient) {
        client.create("work").await.unwrap();
        client.put("work", "x", NOW).await.unwrap();
        client.create("work").await.unwrap();
        assert_eq!(client.count("work").await.unwrap(), 1);
        let wrong = client.create("Not_A_Queue").await.unwrap_err();
        assert!(wrong.cause().is(400), "{wrong}");
    }

    pub async fn a_queue_that_is_not_there_is_empty_and_is_made_by_a_message(client: QueueClient) {
        assert!(client.get("work", 1, MINUTE).await.unwrap().is_empty());
        assert_eq!(client.count("work").await.unwrap(), 0);
        let missing = client.delete("work", "x", "y").await.unwrap_err();
        assert_eq!(*missing.cause(), refused(404, "QueueNotFound"));
        client.put("work", "x", NOW).await.unwrap();
        assert_eq!(take(&client, MINUTE).await.text, "x");
    }

    pub async fn a_taken_message_is_hidden_and_counted(client: QueueClient) {
        client.put("work", "x", NOW).await.unwrap();
        let first = take(&client, MINUTE).await;
        assert_eq!(first.dequeue_count, 1);
        assert!(first.next_visible > first.inserted && first.expires > first.next_visible);
        assert!(client.get("work", 1, MINUTE).await.unwrap().is_empty());
        assert!(client.peek("work").await.unwrap().is_empty());
        assert_eq!(client.count("work").await.unwrap(), 1);
        client
            .delete("work", &first.id, &first.receipt)
            .await
            .unwrap();
        assert_eq!(client.count("work").await.unwrap(), 0);
        let gone = client.delete("work", &first.id, &first.receipt).await;
        assert_eq!(*gone.unwrap_err().cause(), refused(404, "MessageNotFound"));
    }

    pub async fn a_message_comes_back_and_its_old_receipt_is_stale(client: QueueClient) {
        client.put("work", "x", NOW).await.unwrap();
        let first = take(&client, Duration::from_secs(1)).await;
        let second = wait(&client, MINUTE).await;
        assert_eq!((second.dequeue_count, &second.id), (2, &first.id));
        let stale = client.delete("work", &first.id, &first.receipt).await;
        assert_eq!(
            *stale.unwrap_err().cause(),
            refused(400, "PopReceiptMismatch")
        );
        client
            .delete("work", &second.id, &second.receipt)
            .await
            .unwrap();
    }

    pub async fn an_update_gives_a_new_receipt_and_can_show_the_message(client: QueueClient) {
        client.put("work", "x", NOW).await.unwrap();
        let first = take(&client, MINUTE).await;
        let renewed = client
            .update("work", &first.id, &first.receipt, MINUTE)
            .await
            .unwrap();
        assert_ne!(renewed, first.receipt);
        let stale = client
            .update("work", &first.id, &first.receipt, MINUTE)
            .await;
        assert_eq!(
            *stale.unwrap_err().cause(),
            refused(400, "PopReceiptMismatch")
        );
        client
            .update("work", &first.id, &renewed, NOW)
            .await
            .unwrap();
        let second = take(&client, MINUTE).await;
        assert_eq!((second.dequeue_count, second.text.as_str()), (2, "x"));
    }

    pub async fn a_delayed_message_comes_later(client: QueueClient) {
        client
            .put("work", "x", Duration::from_secs(1))
            .await
            .unwrap();
        assert!(client.get("work", 1, MINUTE).await.unwrap().is_empty());
        assert_eq!(client.count("work").await.unwrap(), 1);
        assert_eq!(wait(&client, MINUTE).await.dequeue_count, 1);
    }

    pub async fn texts_come_back_as_they_were_up_to_64_kib(client: QueueClient) {
        let largest = "y".repeat(64 * 1024);
        for text in [
            "<a b=\"c\">&amp;</a> é 漢",
            " in spaces ",
            "two\nlines",
            "\"{}\"",
            &largest,
        ] {
            client.put("work", text, NOW).await.unwrap();
            assert_eq!(client.peek("work").await.unwrap(), [text]);
            let taken = take(&client, MINUTE).await;
            assert_eq!(taken.text, text);
            client
                .delete("work", &taken.id, &taken.receipt)
                .await
                .unwrap();
        }
        let larger = client
            .put("work", &format!("{largest}y"), NOW)
            .await
            .unwrap_err();
        assert_eq!(*larger.cause(), refused(413, "RequestBodyTooLarge"));
    }

    pub async fn at_most_32_are_taken_at_once(client: QueueClient) {
        for _ in 0..33 {
            client.put("work", "x", NOW).await.unwrap();
        }
        let wrong = client.get("work", 33, MINUTE).await.unwrap_err();
        assert_eq!(
            *wrong.cause(),
            refused(400, "OutOfRangeQueryParameterValue")
        );
        assert_eq!(client.get("work", 32, MINUTE).await.unwrap().len(), 32);
        assert_eq!(client.get("work", 32, MINUTE).await.unwrap().len(), 1);
    }
}

/// One test for each behaviour and service.
macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod in_process {
            $(#[tokio::test]
            async fn $name() {
                let mut app = super::App::new();
                app.options.instances = 0;
                let host = app.start().await;
                // Not there yet, in both services.
                let url = format!("{}/work", host.queue_endpoint());
                let client = reqwest::Client::builder().no_proxy().build().unwrap();
                client.delete(url).send().await.unwrap();
                let client = super::QueueClient::new(host.queue_endpoint(), "", "").unwrap();
                super::behaviour::$name(client).await;
            })*
        }
        mod azurite_too {
            $(#[tokio::test]
            async fn $name() {
                let azurite = super::Azurite::start().await;
                let super::QueueService::Account { endpoint, account, key } = azurite.service() else {
                    panic!("Azurite is an account");
                };
                let client = super::QueueClient::new(&endpoint, &account, &key).unwrap();
                super::behaviour::$name(client).await;
            })*
        }
    };
}

suite!(
    a_queue_is_made_once_and_keeps_its_messages,
    a_queue_that_is_not_there_is_empty_and_is_made_by_a_message,
    a_taken_message_is_hidden_and_counted,
    a_message_comes_back_and_its_old_receipt_is_stale,
    an_update_gives_a_new_receipt_and_can_show_the_message,
    a_delayed_message_comes_later,
    texts_come_back_as_they_were_up_to_64_kib,
    at_most_32_are_taken_at_once,
);

#[tokio::test]
async fn a_host_works_on_azurite_as_on_its_own_queues() {
    let azurite = Azurite::start().await;
    for service in [QueueService::InProcess, azurite.service()] {
        let mut app = App::new();
        app.options.queue = service;
        app.options.instances = 2;
        let host = app.start().await;
        // Longer than a message is hidden without renewals.
        host.queue("work")
            .put(&command("sleep", 3_000))
            .await
            .unwrap();
        host.queue("work")
            .put(&command("status", 500))
            .await
            .unwrap();
        host.queue("work")
            .put(&json!({ "do": "status", "code": 500, "until": 3 }).to_string())
            .await
            .unwrap();
        host.quiet(LIMIT).await.unwrap();
        let outcomes = host.invocations().into_iter().map(|one| one.outcome);
        let succeeded = outcomes.filter(|outcome| *outcome == Outcome::Succeeded);
        assert_eq!((succeeded.count(), host.invocations().len()), (2, 7));
        let poison = host.queue("work-poison").messages().await.unwrap();
        assert_eq!(poison, [command("status", 500)]);
    }
}
