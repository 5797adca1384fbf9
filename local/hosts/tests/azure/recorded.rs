//! Our host sends what Microsoft's own was recorded to send: the same request up to ids, times and ports, case by case. The
//! shipped handler is sent the same file in `functions/azure/tests/recorded.rs`.
//!
//! | recorded | how it is brought about here |
//! | --- | --- |
//! | ticks | fired; for what a host finds when it starts, a status file of the one before |
//! | retries, time-outs | the handler fails, or hangs |
//! | messages | put as they were, the clock of the queue put forward |
//! | HTTP | called as `curl` called |

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use local_hosts::azure::{Host, Outcome, QueueService};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::app::{App, LIMIT, command, http, within};

const RECORDED: &str = include_str!("../../../../functions/azure/tests/recorded/requests.jsonl");

const TICKS: [&str; 14] = [
    "timer-first-tick",
    "timer-by-hand",
    "timer-tick-after-by-hand",
    "timer-tick",
    "timer-tick-utcnow-before-next",
    "timer-retry-1",
    "timer-retry-2",
    "timer-past-due",
    "timer-after-changed-schedule",
    "timer-instance-dies-1",
    "timer-instance-dies-2",
    "timer-instance-dies-3",
    "timer-instance-dies-4",
    "timer-no-monitor",
];
const MESSAGES: [&str; 10] = [
    "queue-by-hand",
    "queue-first",
    "queue-plain-text",
    "queue-array",
    "queue-promoted-fields",
    "queue-empty",
    "queue-second",
    "queue-fifth",
    "poison-first",
    "poison-second",
];
const CALLS: [(&str, &str, &str, &str); 9] = [
    (
        "http-forwarded-get",
        "GET",
        "/api/watermark?format=prometheus&x=a%2Fb%20c",
        "",
    ),
    ("http-forwarded-post", "POST", "/api/exports", BODY),
    (
        "http-forwarded-delete",
        "DELETE",
        "/api/exports/abc%2Fd",
        "",
    ),
    (
        "http-forwarded-repeated-query",
        "GET",
        "/api/exports/zz?a=1&a=2",
        "",
    ),
    ("http-forwarded-case", "GET", "/API/Exports/x", ""),
    ("http-forwarded-slash", "GET", "/api/exports/", ""),
    (
        "http-envelope-post",
        "POST",
        "/api/exports?wait=1&a=1&a=2",
        BODY,
    ),
    ("http-envelope-delete", "DELETE", "/api/exports/abc%2Fd", ""),
    (
        "http-envelope-get",
        "GET",
        "/api/watermark?format=prometheus",
        "",
    ),
];
const BODY: &str = r#"{"templates":["a"]}"#;

/// The recorded request of a case, in the form in which two requests are compared.
fn recorded(case: &str) -> Value {
    let line = RECORDED
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .find(|line| line["case"] == case)
        .unwrap();
    let mut headers = Map::new();
    for pair in line["headers"].as_array().unwrap() {
        headers.insert(pair[0].as_str().unwrap().to_lowercase(), pair[1].clone());
    }
    let body = line["body"].as_str().unwrap();
    comparable(&json!({
        "method": line["method"],
        "uri": line["path"],
        "headers": headers,
        "body": serde_json::from_str(body).unwrap_or(Value::Null),
    }))
}

/// A request as the handler wrote it down, in the same form.
fn sent(request: &Value) -> Value {
    let mut request = request.clone();
    request.as_object_mut().unwrap().remove("process");
    comparable(&request)
}

/// Without the values of ids, times and ports. A time of the first or the last year stands for none, and stays.
fn comparable(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let named = members.iter().map(|(name, value)| {
                let value = match name.as_str() {
                    "PopReceipt" => json!("<id>"),
                    "Timeout" => json!("<time>"),
                    "x-functions-key" => match value {
                        Value::Array(_) => json!(["<key>"]),
                        _ => json!("<key>"),
                    },
                    _ => comparable(value),
                };
                (name.clone(), value)
            });
            Value::Object(named.collect())
        }
        Value::Array(items) => items.iter().map(comparable).collect(),
        Value::String(text) => Value::String(comparable_text(text)),
        other => other.clone(),
    }
}

fn comparable_text(text: &str) -> String {
    let bare = text.trim_matches('"');
    if Uuid::try_parse(bare).is_ok() {
        return "<id>".to_owned();
    }
    if let Ok(time) = bare.parse::<Timestamp>()
        && (2000..9000).contains(&time.to_zoned(jiff::tz::TimeZone::UTC).year())
    {
        // Steps of 100 ns, without zeros at the end, and the zone as it is written.
        let digits = bare.split_once('.').map_or(0, |(_, fraction)| {
            fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(0)
        });
        assert!(digits <= 7, "{text}");
        return format!("<time>{}", if bare.ends_with('Z') { "Z" } else { "+" });
    }
    let mut made = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("127.0.0.1:") {
        made += before;
        made += "127.0.0.1:<port>";
        rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    made += rest;
    // The one time that stands in a sentence.
    match made.strip_prefix("Timeout value of ") {
        Some(late) => format!("Timeout value of <time> {}", &late[9..]),
        None => made,
    }
}

/// The app of the suite, with the echo handler in the place of the shipped one.
fn suite(flags: &[&str], schedule: &str) -> App {
    let mut handler = json!({ "description": { "defaultExecutablePath": "handler" } });
    for flag in flags {
        handler[flag] = json!(true);
    }
    let app = App::bare(json!({
        "customHandler": handler,
        "extensions": { "queues": { "batchSize": 1, "newBatchThreshold": 0, "maxDequeueCount": 5 } },
    }));
    for name in ["planner", "report"] {
        app.function_json(
            name,
            &json!({
                "bindings": [{ "type": "timerTrigger", "direction": "in", "name": "timer", "schedule": schedule }],
                "retry": { "strategy": "fixedDelay", "maxRetryCount": 2, "delayInterval": "00:00:00.05" },
            }),
        );
    }
    for (name, queue) in [("worker", "work"), ("deadletter", "work-poison")] {
        let mut trigger = crate::app::queue_trigger(queue);
        trigger["name"] = json!("message");
        app.function(name, &[trigger]);
    }
    for (name, route, methods) in [
        (
            "export",
            "exports/{run?}",
            ["get", "post", "delete"].as_slice(),
        ),
        ("watermark", "watermark", ["get"].as_slice()),
    ] {
        let mut bindings = http(route, "function", methods);
        bindings[0]["name"] = json!("request");
        bindings[1]["name"] = json!("response");
        app.function(name, &bindings);
    }
    app
}

const YEARLY: &str = "0 0 0 1 1 *";

fn is_recorded(app: &App, place: usize, case: &str) {
    assert_eq!(sent(&app.requests()[place]), recorded(case), "{case}");
}

/// Starts a function by the admin interface and waits until its handler was asked.
async fn by_hand(app: &App, host: &Host, function: &str, input: &str) {
    let before = app.requests().len();
    let asked = reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .post(format!("{}/admin/functions/{function}", host.url()))
        .header("x-functions-key", host.master_key())
        .body(json!({ "input": input }).to_string());
    assert_eq!(asked.send().await.unwrap().status(), 202);
    app.asked(before + 1).await;
    host.quiet(LIMIT).await.unwrap();
}

#[test]
fn every_recorded_case_is_one_of_these() {
    let all: BTreeSet<String> = RECORDED
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|line| line["case"].as_str().unwrap().to_owned())
        .collect();
    let mut here: BTreeSet<String> = BTreeSet::from(["ready".to_owned()]);
    let calls = CALLS.iter().map(|(case, ..)| *case);
    here.extend(
        TICKS
            .into_iter()
            .chain(MESSAGES)
            .chain(calls)
            .map(str::to_owned),
    );
    assert_eq!(here, all);
}

#[tokio::test]
async fn ticks_and_calls_by_hand_are_the_recorded_ones() {
    let app = suite(&[], YEARLY);
    let host = app.start().await;
    assert_eq!(sent(&app.probes()[0]), recorded("ready"));
    host.fire("report").await.unwrap();
    is_recorded(&app, 0, "timer-first-tick");
    by_hand(&app, &host, "planner", "").await;
    is_recorded(&app, 1, "timer-by-hand");
    let next = &app.requests()[1]["body"]["Data"]["timer"]["ScheduleStatus"]["Next"];
    let next: Timestamp = next.as_str().unwrap().parse().unwrap();
    assert!(next > Timestamp::now());
    host.fire("planner").await.unwrap();
    is_recorded(&app, 2, "timer-tick-after-by-hand");
    host.fire("report").await.unwrap();
    is_recorded(&app, 3, "timer-tick");
    host.fire("planner").await.unwrap();
    is_recorded(&app, 4, "timer-tick-utcnow-before-next");
    is_recorded(&app, 4, "timer-instance-dies-1");

    let app = suite(&[], "*/20 * * * * *");
    let host = app.start().await;
    host.fire("planner").await.unwrap();
    is_recorded(&app, 0, "timer-no-monitor");
}

#[tokio::test]
async fn the_retries_of_a_tick_are_the_recorded_ones() {
    let mut app = suite(&[], YEARLY);
    app.set(
        "ECHO_TIMER",
        &json!({ "do": "status", "code": 500 }).to_string(),
    );
    let host = app.start().await;
    // The recorded one was not the first tick of its app.
    host.fire("planner").await.unwrap();
    host.fire("planner").await.unwrap();
    is_recorded(&app, 4, "timer-retry-1");
    is_recorded(&app, 5, "timer-retry-2");
}

#[tokio::test]
async fn what_a_host_finds_when_it_starts_is_sent_as_recorded() {
    let mut app = suite(&[], "0 * * * * *");
    std::fs::remove_dir_all(app.options.app.join("report")).unwrap();
    app.options.schedules = true;
    app.options.state = Some(app.folder().join("state"));
    app.options.pace.function_timeout = Some(Duration::from_secs(1));
    app.set("ECHO_TIMER", &command("hang", 0));
    let file = app.folder().join("state/timers/planner/status");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let written = |last: &str, next: &str| {
        let status = json!({ "Last": last, "Next": next, "LastUpdated": last });
        std::fs::write(&file, status.to_string()).unwrap();
    };
    written(
        "2026-11-27T17:32:00.0007017+00:00",
        "2026-11-27T17:33:00+00:00",
    );
    let host = app.start().await;
    // The first try, and two more after functionTimeout.
    app.asked(3).await;
    host.stop().await;
    is_recorded(&app, 0, "timer-instance-dies-2");
    is_recorded(&app, 0, "timer-past-due");
    is_recorded(&app, 1, "timer-instance-dies-3");
    is_recorded(&app, 2, "timer-instance-dies-4");
    let status = &app.requests()[2]["body"]["Data"]["timer"]["ScheduleStatus"];
    assert_eq!(status["Next"], "2026-11-27T17:33:00+00:00");

    // A status of another schedule: nothing is made up for, and the first tick knows of no last one.
    app.options.schedules = false;
    app.options.environment.remove("ECHO_TIMER");
    written(
        "2026-11-27T17:32:30.0007017+00:00",
        "2026-11-27T17:33:30+00:00",
    );
    let host = app.start().await;
    let before = app.requests().len();
    host.fire("planner").await.unwrap();
    is_recorded(&app, before, "timer-after-changed-schedule");
}

#[tokio::test]
async fn messages_are_sent_as_recorded_to_the_worker_and_from_the_poison_queue() {
    let mut app = suite(&[], YEARLY);
    let host = app.start().await;
    by_hand(&app, &host, "worker", "by hand").await;
    is_recorded(&app, 0, "queue-by-hand");
    for (place, case) in MESSAGES[1..6].iter().enumerate() {
        let text = recorded(case)["body"]["Data"]["message"].clone();
        let text: String = serde_json::from_str(text.as_str().unwrap()).unwrap();
        host.queue("work").put(&text).await.unwrap();
        app.asked(place + 2).await;
        is_recorded(&app, place + 1, case);
    }
    host.stop().await;

    // Every delivery fails. The poison queue has the real host's ten minutes.
    app.set(
        "ECHO_TIMER",
        &json!({ "do": "status", "code": 500 }).to_string(),
    );
    app.options.pace.visibility = Duration::from_secs(600);
    let host = app.start().await;
    let text = recorded("queue-fifth")["body"]["Data"]["message"].clone();
    let text: String = serde_json::from_str(text.as_str().unwrap()).unwrap();
    let first = app.requests().len();
    host.queue("work").put(&text).await.unwrap();
    app.asked(first + 6).await;
    is_recorded(&app, first + 1, "queue-second");
    is_recorded(&app, first + 4, "queue-fifth");
    is_recorded(&app, first + 5, "poison-first");
    let id = |place: usize| app.requests()[place]["body"]["Metadata"]["Id"].clone();
    assert_ne!(id(first), id(first + 5));
    // Without an end: the sixth delivery comes, too, which `maxDequeueCount` would not allow elsewhere.
    for count in 2..=6 {
        while host.invocations().len() < first_ended(count) {
            tokio::task::yield_now().await;
        }
        host.faults().advance_queue_clock(Duration::from_secs(590));
        assert_eq!(
            host.queue("work-poison").contents().await.unwrap().visible,
            0
        );
        host.faults().advance_queue_clock(Duration::from_secs(11));
        app.asked(first + 5 + count).await;
    }
    is_recorded(&app, first + 6, "poison-second");
    let last = &app.requests()[first + 10]["body"]["Metadata"];
    assert_eq!(
        (&last["DequeueCount"], &last["sys"]["MethodName"]),
        (&json!("6"), &json!("deadletter"))
    );
}

/// Invocations that have ended before the delivery of this number from the poison queue: five of the worker come first.
fn first_ended(count: usize) -> usize {
    5 + count - 1
}

#[tokio::test]
async fn http_is_handed_on_and_wrapped_as_recorded() {
    for (flags, kind) in [
        (["enableForwardingHttpRequest"].as_slice(), "http-forwarded"),
        (
            &["enableForwardingHttpRequest", "enableProxyingHttpRequest"],
            "http-forwarded",
        ),
        (&[], "http-envelope"),
    ] {
        let app = suite(flags, YEARLY);
        let host = app.start().await;
        let client = reqwest::Client::builder()
            .no_proxy()
            .no_gzip()
            .user_agent("curl/7.88.1");
        let client = client.build().unwrap();
        let calls = CALLS.iter().filter(|(case, ..)| case.starts_with(kind));
        for (place, (case, method, path, body)) in calls.enumerate() {
            let method = method.parse().unwrap();
            let mut call = client
                .request(method, format!("{}{path}", host.url()))
                .header("x-functions-key", host.master_key());
            if !body.is_empty() {
                call = call.header("content-type", "application/json").body(*body);
            }
            assert_eq!(within(call.send()).await.unwrap().status(), 200, "{case}");
            is_recorded(&app, place, case);
        }
    }
}

#[tokio::test]
async fn an_http_call_longer_than_the_function_timeout_is_a_500_and_kills_what_runs_beside_it() {
    for flags in [["enableForwardingHttpRequest"].as_slice(), &[]] {
        let mut app = suite(flags, YEARLY);
        app.options.pace.function_timeout = Some(Duration::from_secs(1));
        app.set("ECHO_TIMER", &command("sleep", 60_000));
        let host = app.start().await;
        let before = host.processes()[0].id();
        let call = reqwest::Client::builder()
            .no_proxy()
            .build()
            .unwrap()
            .post(format!("{}/api/exports", host.url()))
            .header("x-functions-key", host.key())
            .body(command("hang", 0));
        let call = tokio::spawn(call.send());
        app.asked(1).await;
        let mut events = host.events();
        host.queue("work").put("beside it").await.unwrap();
        assert_eq!(within(call).await.unwrap().unwrap().status(), 500);
        let ended = [
            crate::app::ended(&mut events).await,
            crate::app::ended(&mut events).await,
        ];
        let outcome = |name: &str| {
            let found = ended.iter().find(|one| one.function == name);
            found.map(|one| one.outcome.clone())
        };
        assert_eq!(outcome("export"), Some(Outcome::TimedOut));
        assert_eq!(outcome("worker"), Some(Outcome::Lost));
        assert!(
            host.processes()
                .first()
                .is_none_or(|now| now.id() != before)
        );
    }
}

#[tokio::test]
async fn an_answer_comes_back_as_it_was_sent_and_is_not_followed() {
    let app = suite(&["enableForwardingHttpRequest"], YEARLY);
    let host = app.start().await;
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none());
    let call = client.build().unwrap();
    let call = call
        .post(format!("{}/api/exports", host.url()))
        .header("x-functions-key", host.key())
        .body(command("moved", 0));
    let answer = within(call.send()).await.unwrap();
    assert_eq!(answer.status(), 302);
    for (name, value) in [
        ("location", "/api/exports/7"),
        ("retry-after", "25"),
        ("etag", "\"tag\""),
    ] {
        assert_eq!(answer.headers()[name], value);
    }
    assert_eq!(answer.text().await.unwrap(), "elsewhere");
    assert_eq!(app.requests().len(), 1);
}

#[tokio::test]
async fn what_is_not_base64_lies_in_the_poison_queue_and_reaches_no_function() {
    let mut app = suite(&[], YEARLY);
    app.options.pace.visibility = Duration::from_secs(600);
    let host = app.start().await;
    host.queue("work").put_raw("{\"m\":").await.unwrap();
    for _ in 0..3 {
        let is_taken = async {
            // Taken is hidden: that is all that is ever done with it.
            while host
                .queue("work-poison")
                .contents()
                .await
                .unwrap()
                .invisible
                == 0
            {
                tokio::task::yield_now().await;
            }
        };
        within(is_taken).await;
        host.faults().advance_queue_clock(Duration::from_secs(601));
    }
    assert!(host.invocations().is_empty());
}

#[tokio::test]
async fn a_host_that_leaves_tells_its_handler_nothing_and_the_message_comes_back_after_ten_minutes()
{
    // The queue is elsewhere, as it is for the real host.
    let mut queues = suite(&[], YEARLY);
    queues.options.instances = 0;
    let queues = queues.start().await;
    let mut app = App::new();
    app.options.queue = QueueService::Account {
        endpoint: queues.queue_endpoint().to_owned(),
        account: String::new(),
        key: String::new(),
    };
    app.options.pace.visibility = Duration::from_secs(600);
    let host = app.start().await;
    queues
        .queue("work")
        .put(&command("sleep", 60_000))
        .await
        .unwrap();
    app.asked(1).await;
    let orphans = within(host.leave(Duration::from_millis(100))).await;
    let orphan = Pid::from_raw(orphans[0]).unwrap();
    assert!(test_kill_process(orphan).is_ok());
    assert_eq!(app.requests().len(), 1, "no SIGTERM");
    let visible = async || queues.queue("work").contents().await.unwrap().visible;
    queues
        .faults()
        .advance_queue_clock(Duration::from_secs(590));
    assert_eq!(visible().await, 0);
    queues.faults().advance_queue_clock(Duration::from_secs(11));
    assert_eq!(visible().await, 1);
    kill_process(orphan, Signal::KILL).unwrap();
}
