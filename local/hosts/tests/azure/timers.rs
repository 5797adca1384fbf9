//! The timer trigger.

use std::time::Duration;

use jiff::Timestamp;
use local_hosts::azure::{Outcome, Reason};
use serde_json::json;

use crate::app::{App, LIMIT, command, ended, timer};

fn timers(content: &serde_json::Value) -> App {
    let app = App::bare(json!({}));
    app.function_json("plan", content);
    app
}

#[tokio::test]
async fn a_schedule_runs_without_overlap() {
    let mut app = timers(&json!({ "bindings": [timer("* * * * * *")] }));
    app.options.schedules = true;
    app.options.instances = 2;
    app.set("ECHO_TIMER", &command("sleep", 1_200));
    let host = app.start().await;
    let mut events = host.events();
    let mut before: Option<Timestamp> = None;
    for _ in 0..3 {
        let run = ended(&mut events).await;
        assert_eq!((run.outcome, run.instance), (Outcome::Succeeded, 0));
        assert!(before.is_none_or(|before| before <= run.started));
        before = Some(run.ended);
    }
    let requests = app.requests();
    // More often than once a minute: there is no status. A run takes longer than a second, so every other occurrence fell into
    // one and is left out.
    let times: Vec<Timestamp> = requests
        .iter()
        .map(|request| {
            assert_eq!(
                request["body"]["Data"]["timer"]["ScheduleStatus"],
                json!(null)
            );
            let time = &request["body"]["Metadata"]["sys"]["UtcNow"];
            time.as_str().unwrap().parse().unwrap()
        })
        .collect();
    assert!(
        times
            .windows(2)
            .all(|pair| pair[1].as_second() - pair[0].as_second() >= 2)
    );
}

#[tokio::test]
async fn a_missed_occurrence_is_made_up_for_once() {
    let mut app = timers(&json!({ "bindings": [timer("0 0 0 1 1 *")] }));
    app.options.schedules = true;
    let state = app.folder().join("state");
    app.options.state = Some(state.clone());
    let file = state.join("timers/plan/status");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let missed = "2020-01-01T00:00:00+00:00";
    let status = json!({ "Last": missed, "Next": missed, "LastUpdated": missed });
    std::fs::write(&file, status.to_string()).unwrap();
    let host = app.start().await;
    app.asked(1).await;
    host.quiet(LIMIT).await.unwrap();
    host.stop().await;
    let sent = &app.requests()[0]["body"]["Data"]["timer"];
    assert_eq!(sent["IsPastDue"], true);
    assert_eq!(sent["ScheduleStatus"]["Next"], missed);
    assert_eq!(sent["Schedule"]["AdjustForDST"], true);

    // Its status says so: the next host has nothing to make up for.
    let host = app.start().await;
    let now = host.fire("plan").await.unwrap();
    assert_eq!(now.outcome, Outcome::Succeeded);
    assert_eq!(app.requests().len(), 2);
    assert_eq!(
        app.requests()[1]["body"]["Data"]["timer"]["IsPastDue"],
        false
    );
}

#[tokio::test]
async fn a_failed_timer_is_retried_with_its_context() {
    let mut app = timers(&json!({
        "bindings": [timer("0 0 0 1 1 *")],
        "retry": { "strategy": "fixedDelay", "maxRetryCount": 2, "delayInterval": "00:00:00.05" },
    }));
    app.set("ECHO_TIMER", &command("status", 500));
    let host = app.start().await;
    let last = host.fire("plan").await.unwrap();
    assert_eq!(last.outcome, Outcome::Failed(Reason::Status(500)));
    let requests = app.requests();
    let contexts: Vec<_> = requests
        .iter()
        .map(|request| {
            let context = &request["body"]["Metadata"]["RetryContext"];
            (
                context["RetryCount"].as_u64().unwrap(),
                context["Exception"].is_null(),
            )
        })
        .collect();
    assert_eq!(contexts, [(0, true), (1, false), (2, false)]);
    let id = |place: usize| requests[place]["headers"]["x-azure-functions-invocationid"].clone();
    assert!(id(0) == id(1) && id(1) == id(2));
}

#[tokio::test]
async fn a_timer_that_is_fired_never_repeats_an_occurrence() {
    let app = timers(&json!({ "bindings": [
        { "type": "timerTrigger", "direction": "in", "name": "timer", "schedule": "0 0 0 1 1 *" }] }));
    app.function_json(
        "report",
        &json!({ "bindings": [{ "type": "timerTrigger", "direction": "in", "name": "timer", "schedule": "0 0 0 1 1 *", "useMonitor": false }] }),
    );
    let host = app.start().await;
    for _ in 0..3 {
        host.fire("plan").await.unwrap();
    }
    let asked: Timestamp = "2026-11-22T09:15:00Z".parse().unwrap();
    host.fire_with("plan", Some(asked), true).await.unwrap();
    host.fire("report").await.unwrap();
    assert!(host.fire("nothing").await.is_err());
    let requests = app.requests();
    let sent = |place: usize| requests[place]["body"]["Data"]["timer"].clone();
    let next = |place: usize| sent(place)["ScheduleStatus"]["Next"].clone();
    assert!(next(0) != next(1) && next(1) != next(2));
    assert_eq!(next(3), "2026-11-22T09:15:00+00:00");
    assert_eq!(sent(3)["IsPastDue"], true);
    assert_eq!(sent(4)["ScheduleStatus"], json!(null));
    tokio::time::timeout(Duration::from_secs(5), host.stop())
        .await
        .unwrap();
}
