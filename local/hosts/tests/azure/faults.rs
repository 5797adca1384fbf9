//! Several instances, what goes wrong between them and the queue, and the gates.

use std::time::Duration;

use local_hosts::azure::{Event, Fault, Outcome, Point, Reason, Times};
use serde_json::json;

use crate::app::{App, LIMIT, command, ended, outcome, within};

#[tokio::test]
async fn instances_share_a_queue_and_survive_kills_and_freezes() {
    let mut app = App::new();
    app.options.instances = 2;
    app.options.pace.errors_to_stop = 100;
    let host = app.start().await;
    for _ in 0..4 {
        host.queue("work")
            .put(&command("sleep", 300))
            .await
            .unwrap();
    }
    app.asked(2).await;
    let processes: std::collections::HashSet<u64> = app
        .requests()
        .iter()
        .filter_map(|request| request["process"].as_u64())
        .collect();
    assert_eq!(processes.len(), 2);
    assert!(host.faults().kill(0));
    assert!(
        host.faults()
            .freeze_for(1, Duration::from_millis(200))
            .await
    );
    assert!(!host.faults().kill(7));
    host.quiet(LIMIT).await.unwrap();
    let all = host.invocations();
    assert_eq!(
        all.iter()
            .filter(|one| one.outcome == Outcome::Succeeded)
            .count(),
        4
    );
    assert!(
        all.iter()
            .any(|one| one.outcome == Outcome::Lost && one.instance == 0)
    );
    assert_eq!(host.processes().len(), 2);
}

#[tokio::test]
async fn each_fault_brings_the_message_back_or_loses_it_as_it_should() {
    for (fault, runs) in [
        (Fault::Duplicate, 2),
        (Fault::Lose, 0),
        (Fault::DropResponse, 2),
        (Fault::SkipDelete, 2),
        (Fault::StaleReceipt, 2),
        (Fault::DelayDelete(Duration::from_millis(100)), 1),
        (Fault::Delay(Duration::from_millis(300)), 1),
        (Fault::Unavailable, 1),
    ] {
        let app = App::new();
        let host = app.start().await;
        if fault != Fault::Unavailable {
            host.faults().set(fault, Times::Next(1));
            host.queue("work").put("a").await.unwrap();
        } else {
            // The service must refuse the host's next look, not what follows a message that it has already.
            host.scale(0).await.unwrap();
            host.queue("work").put("a").await.unwrap();
            host.faults().set(fault, Times::Next(1));
            host.scale(1).await.unwrap();
        }
        let mut told = host.events();
        host.quiet(LIMIT).await.unwrap();
        while fault == Fault::Unavailable && host.faults().fired(fault) == 0 {
            within(told.recv()).await.unwrap();
        }
        assert_eq!(app.requests().len(), runs, "{fault:?}");
        assert_eq!(host.faults().fired(fault), 1, "{fault:?}");
        // The host goes on as if nothing had been.
        assert_eq!(outcome(&host, "b").await, Outcome::Succeeded, "{fault:?}");
    }
}

#[tokio::test]
async fn the_order_can_be_reversed_and_bad_texts_come_in_between() {
    let app = App::new();
    let host = app.start().await;
    host.scale(0).await.unwrap();
    for text in ["1", "2", "3"] {
        host.queue("work").put(text).await.unwrap();
    }
    host.faults().set(Fault::Reverse, Times::Always);
    host.scale(1).await.unwrap();
    host.quiet(LIMIT).await.unwrap();
    let order: Vec<_> = app
        .requests()
        .iter()
        .map(|request| request["body"]["Data"]["msg"].clone())
        .collect();
    assert_eq!(order, [r#""3""#, r#""2""#, r#""1""#]);
    host.faults().clear_all();
    host.faults().set(Fault::Malformed, Times::Next(1));
    host.queue("work").put("4").await.unwrap();
    host.quiet(LIMIT).await.unwrap();
    assert_eq!(app.requests().len(), 5);
}

#[tokio::test]
async fn a_queue_service_that_is_down_refuses_host_and_handler_and_comes_back_on_its_port() {
    let app = App::new();
    let host = app.start().await;
    let mut events = host.events();
    host.faults().set(Fault::Refuse, Times::Always);
    let is_refused =
        |event: Event| matches!(event, Event::Note(text) if text.contains("does not answer"));
    while !is_refused(within(events.recv()).await.unwrap()) {}
    assert!(host.queue("work").put("x").await.is_err());
    host.faults().clear(Fault::Refuse);
    let put = async {
        while host.queue("work").put("x").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(put).await;
    host.quiet(LIMIT).await.unwrap();
    assert_eq!(host.invocations().len(), 1);
}

fn sender() -> String {
    json!({ "do": "send", "text": "bmV4dA==", "until": 2 }).to_string()
}

#[tokio::test]
async fn a_handler_killed_before_its_send_has_sent_nothing() {
    let app = App::new();
    let host = app.start().await;
    let gate = host.hold(Point::BeforeSend);
    host.queue("work").put(&sender()).await.unwrap();
    within(gate.reached()).await;
    assert!(host.faults().kill(0));
    within(gate.gone()).await;
    host.quiet(LIMIT).await.unwrap();
    let outcomes: Vec<_> = host
        .invocations()
        .into_iter()
        .map(|one| one.outcome)
        .collect();
    assert_eq!(outcomes, [Outcome::Lost, Outcome::Succeeded]);
}

#[tokio::test]
async fn a_handler_killed_after_its_send_has_sent_although_it_never_knew() {
    let app = App::new();
    let host = app.start().await;
    let gate = host.hold(Point::AfterSend);
    host.queue("work").put(&sender()).await.unwrap();
    within(gate.reached()).await;
    assert!(host.faults().kill(0));
    host.quiet(LIMIT).await.unwrap();
    let mut texts: Vec<_> = app
        .requests()
        .iter()
        .map(|request| request["body"]["Data"]["msg"].as_str().unwrap().to_owned())
        .collect();
    texts.sort();
    assert_eq!(texts.len(), 3);
    assert_eq!(texts[0], r#""next""#);
}

#[tokio::test]
async fn a_gate_holds_the_delete_of_a_message() {
    let app = App::new();
    let host = app.start().await;
    let (before, after) = (
        host.hold(Point::BeforeDelete),
        host.hold(Point::AfterDelete),
    );
    let mut events = host.events();
    host.queue("work").put("x").await.unwrap();
    within(before.reached()).await;
    assert_eq!(ended(&mut events).await.outcome, Outcome::Succeeded);
    assert_eq!(host.queue("work").contents().await.unwrap().invisible, 1);
    before.release();
    within(after.reached()).await;
    assert_eq!(host.queue("work").contents().await.unwrap().invisible, 0);
    assert!(host.quiet(Duration::from_millis(100)).await.is_err());
    // Nor does a gate that is held keep the host from ending.
    within(host.stop()).await;
    drop(after);
}

#[tokio::test]
async fn scale_in_waits_and_then_kills_without_a_word() {
    let mut app = App::new();
    app.options.instances = 2;
    app.options.pace.grace = LIMIT;
    let host = app.start().await;
    for _ in 0..2 {
        host.queue("work")
            .put(&command("sleep", 500))
            .await
            .unwrap();
    }
    app.asked(2).await;
    // What runs may end.
    within(host.scale(1)).await.unwrap();
    assert_eq!(host.processes().len(), 1);
    host.quiet(LIMIT).await.unwrap();
    let all = host.invocations();
    assert!(
        all.iter().all(|one| one.outcome == Outcome::Succeeded),
        "{all:?}"
    );

    // What does not end in time is killed, and its message comes back when its visibility ends.
    let mut app = App::new();
    app.options.pace.grace = Duration::from_millis(100);
    let host = app.start().await;
    host.queue("work")
        .put(&json!({ "do": "hang", "until": 2 }).to_string())
        .await
        .unwrap();
    app.asked(1).await;
    within(host.scale(0)).await.unwrap();
    assert!(
        app.requests()
            .iter()
            .all(|request| request.get("signal").is_none())
    );
    assert_eq!(host.queue("work").contents().await.unwrap().invisible, 1);
    within(host.scale(1)).await.unwrap();
    host.quiet(LIMIT).await.unwrap();
    let outcomes: Vec<_> = host
        .invocations()
        .into_iter()
        .map(|one| one.outcome)
        .collect();
    assert_eq!(outcomes, [Outcome::Lost, Outcome::Succeeded]);
}

#[tokio::test]
async fn a_terminating_signal_is_an_option() {
    let mut app = App::new();
    app.options.pace.terminate_first = Some(Duration::from_millis(500));
    let host = app.start().await;
    assert_eq!(
        outcome(&host, &command("status", 500)).await,
        Outcome::Failed(Reason::Status(500))
    );
    within(host.stop()).await;
    assert_eq!(app.requests().last().unwrap()["signal"], "TERM");
}
