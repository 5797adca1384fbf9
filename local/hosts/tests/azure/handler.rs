//! The process, the request, the answer.

use std::time::Duration;

use local_hosts::azure::{Down, Encoding, End, Event, HostError, Level, Outcome, Reason};
use serde_json::{Value, json};

use crate::app::{App, command, ended, http, outcome, queue_output, queue_trigger, timer, within};

#[tokio::test]
async fn app_folders_are_read_and_refused_as_the_real_host_does() {
    let app = App::new();
    app.function("status", &http("status/{id?}", "anonymous", &["get"]));
    app.function("other", &http("status/{name?}", "anonymous", &["post"]));
    app.function("plan", &[timer("0 */15 * * * *")]);
    let host = app.start().await;
    assert_eq!(host.functions().len(), 4);
    host.stop().await;

    let refused = async |name: &str, content: Value| {
        let app = App::new();
        app.function("status", &http("status/{id?}", "anonymous", &["get"]));
        app.function_json(name, &content);
        app.try_start().await.unwrap_err()
    };
    let unknown =
        json!({ "bindings": [{ "type": "blobTrigger", "direction": "in", "name": "b" }] });
    assert!(matches!(
        refused("x", unknown).await,
        HostError::Json { .. }
    ));
    for content in [
        json!({ "bindings": http("status/{other?}", "anonymous", &[]) }),
        json!({ "bindings": http("admin/x", "anonymous", &[]) }),
        json!({ "bindings": http("Runtime", "anonymous", &[]) }),
        json!({ "bindings": [timer("*/15 * * * *")] }),
        json!({ "bindings": [] }),
        json!({ "bindings": [queue_trigger("a"), queue_trigger("b")] }),
    ] {
        let error = refused("x", content.clone()).await;
        assert!(matches!(error, HostError::App { .. }), "{content}: {error}");
    }
    let unset = json!({ "bindings": [queue_trigger("%NOT_SET_ANYWHERE%")] });
    assert!(matches!(
        refused("x", unset).await,
        HostError::Setting { .. }
    ));
}

#[tokio::test]
async fn the_handler_finds_its_variables_arguments_and_folder_and_its_lines_are_ranked() {
    let app = App::new();
    let host = app.start().await;
    let mut events = host.events();
    host.queue("work").put(&command("say", 0)).await.unwrap();
    let mut ranked = Vec::new();
    // Three written lines and one of `Logs`.
    while ranked.len() < 4 {
        if let Event::Line { level, text, .. } = within(events.recv()).await.unwrap() {
            ranked.push((text, level));
        }
    }
    for expected in [
        ("a line on standard output", Level::Information),
        ("a line on standard error", Level::Error),
        ("a Warning on standard error", Level::Warning),
        ("handled", Level::Information),
    ] {
        assert!(
            ranked.contains(&(expected.0.to_owned(), expected.1)),
            "{ranked:?}"
        );
    }
    let start = &app.starts()[0];
    let variables = &start["environment"];
    let port = variables["FUNCTIONS_CUSTOMHANDLER_PORT"].as_str().unwrap();
    assert!(port.parse::<u16>().is_ok());
    assert_eq!(variables["FUNCTIONS_HTTPWORKER_PORT"], port);
    assert_eq!(
        variables["FUNCTIONS_CUSTOMHANDLER_WORKER_ID"],
        variables["FUNCTIONS_HTTPWORKER_ID"]
    );
    let root = app.options.app.canonicalize().unwrap();
    assert_eq!(variables["FUNCTIONS_APP_ROOT_PATH"], root.to_str().unwrap());
    assert_eq!(start["folder"], root.to_str().unwrap());
    assert_eq!(start["arguments"], json!(["--for", "tests"]));
    let url = variables["ECHO_QUEUE_URL"].as_str().unwrap();
    assert_eq!(url, format!("{}/work", host.queue_endpoint()));
}

#[tokio::test]
async fn any_answer_makes_a_handler_ready_and_none_in_time_is_an_error() {
    let mut app = App::new();
    app.set("ECHO_START", "deaf");
    app.options.pace.readiness = Duration::from_millis(200);
    let error = app.try_start().await.unwrap_err();
    let reason = Down::Failed {
        errors: 3,
        last: End::NeverReady,
    };
    assert!(matches!(error, HostError::NotReady { reason: given, .. } if given == reason));
    assert_eq!(app.starts().len(), 3);
}

#[tokio::test]
async fn exit_code_0_is_the_end() {
    let mut app = App::new();
    app.options.pace.retry_visibility = Some(Duration::from_secs(60));
    let host = app.start().await;
    assert_eq!(outcome(&host, &command("exit", 0)).await, Outcome::Lost);
    let closed = Outcome::Failed(Reason::Closed);
    assert_eq!(outcome(&host, &command("", 0)).await, closed);
    assert_eq!(app.starts().len(), 1);
    assert!(host.processes().is_empty());
}

#[tokio::test]
async fn exit_code_200_is_a_restart_that_counts_for_nothing() {
    let app = App::new();
    let host = app.start().await;
    for _ in 0..4 {
        let message = json!({ "do": "exit", "code": 200, "until": 2 }).to_string();
        assert_eq!(outcome(&host, &message).await, Outcome::Lost);
        // The message comes back at once; it waits for the new process and succeeds there.
        host.quiet(crate::app::LIMIT).await.unwrap();
    }
    assert_eq!(app.starts().len(), 5);
}

#[tokio::test]
async fn the_third_failure_stops_the_instance() {
    let mut app = App::new();
    app.options.pace.retry_visibility = Some(Duration::from_secs(60));
    let host = app.start().await;
    for what in ["crash", "exit", "exit"] {
        assert_eq!(outcome(&host, &command(what, 3)).await, Outcome::Lost);
    }
    let mut events = host.events();
    let is_stop =
        |event: &Event| matches!(event, Event::Note(text) if text.contains("nothing more"));
    while !host.processes().is_empty() && !is_stop(&within(events.recv()).await.unwrap()) {}
    assert_eq!(app.starts().len(), 3);

    // A failure that is long ago does not count.
    let mut app = App::new();
    app.options.pace.error_memory = Duration::ZERO;
    app.options.pace.retry_visibility = Some(Duration::from_secs(60));
    let host = app.start().await;
    for _ in 0..4 {
        assert_eq!(outcome(&host, &command("exit", 3)).await, Outcome::Lost);
    }
    assert_eq!(outcome(&host, &command("", 0)).await, Outcome::Succeeded);
}

#[tokio::test]
async fn a_request_is_chunked_with_three_headers_and_no_deadline() {
    let app = App::new();
    let host = app.start().await;
    assert_eq!(outcome(&host, "plain text").await, Outcome::Succeeded);
    let request = &app.requests()[0];
    assert_eq!(
        (&request["method"], &request["uri"]),
        (&json!("POST"), &json!("/worker"))
    );
    let headers = request["headers"].as_object().unwrap();
    let mut names: Vec<&str> = headers.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "content-type",
            "host",
            "transfer-encoding",
            "user-agent",
            "x-azure-functions-hostversion",
            "x-azure-functions-invocationid"
        ]
    );
    assert_eq!(headers["transfer-encoding"], "chunked");
    assert_eq!(headers["content-type"], "application/json; charset=utf-8");
    let id = host.invocations()[0].id.to_string();
    assert_eq!(headers["x-azure-functions-invocationid"], id);
    assert!(
        headers["user-agent"]
            .as_str()
            .unwrap()
            .starts_with("Azure-Functions-Host/4.")
    );
}

const MESSAGE: &str = r#"{"m":{"v":1},"id":"mine","n":7,"yes":true,"list":[1],"myTrigger":"x"}"#;

#[tokio::test]
async fn values_are_encoded_twice_and_members_of_a_message_overwrite_metadata() {
    let app = App::new();
    let host = app.start().await;
    assert_eq!(outcome(&host, MESSAGE).await, Outcome::Succeeded);
    let body = &app.requests()[0]["body"];
    assert_eq!(
        body["Data"]["msg"],
        Value::String(json!(MESSAGE).to_string())
    );
    let metadata = &body["Metadata"];
    assert_eq!(metadata["DequeueCount"], "1");
    assert_eq!(metadata["Id"], r#""mine""#);
    assert!(metadata.get("id").is_none());
    assert_eq!(metadata["m"], json!({ "v": 1 }));
    assert_eq!(metadata["n"], r#""7""#);
    assert_eq!(metadata["yes"], r#""True""#);
    assert!(metadata.get("list").is_none());
    assert!(metadata.get("myTrigger").is_none());
    assert!(metadata["PopReceipt"].as_str().unwrap().starts_with('"'));
    assert!(
        metadata["InsertionTime"]
            .as_str()
            .unwrap()
            .ends_with("+00:00")
    );
    assert_eq!(metadata["sys"]["MethodName"], "worker");
}

#[tokio::test]
async fn the_documented_encoding_is_there_too() {
    let mut app = App::new();
    app.options.encoding = Encoding::Docs;
    let host = app.start().await;
    assert_eq!(outcome(&host, MESSAGE).await, Outcome::Succeeded);
    let body = &app.requests()[0]["body"];
    assert_eq!(body["Data"]["msg"], MESSAGE);
    assert_eq!(body["Metadata"]["DequeueCount"], 1);
    assert_eq!(body["Metadata"]["Id"], "mine");
}

#[tokio::test]
async fn what_is_no_answer_fails_or_hangs() {
    let mut app = App::new();
    app.options.pace.retry_visibility = Some(Duration::from_secs(60));
    app.options.pace.function_timeout = Some(Duration::from_millis(500));
    let host = app.start().await;
    for (what, expected) in [
        ("text", Outcome::Failed(Reason::MediaType)),
        ("invalid", Outcome::Failed(Reason::InvalidJson)),
        ("status", Outcome::Failed(Reason::Status(418))),
        ("empty", Outcome::TimedOut),
        ("null", Outcome::TimedOut),
        ("", Outcome::Succeeded),
    ] {
        assert_eq!(
            outcome(&host, &command(what, 418)).await,
            expected,
            "{what}"
        );
    }
}

#[tokio::test]
async fn outputs_are_read_as_the_real_host_reads_them() {
    let app = App::bare(json!({}));
    let mut binary = queue_output("binary", "out");
    binary["dataType"] = json!("binary");
    app.function(
        "worker",
        &[queue_trigger("work"), queue_output("out", "out"), binary],
    );
    let host = app.start().await;
    for (binding, value, expected) in [
        // An array of strings is left alone, whatever the strings look like.
        (
            "out",
            json!(["done", "{\"a\":1}"]),
            vec!["done", "{\"a\":1}"],
        ),
        // A string that could be base64 is taken for it.
        ("out", json!("aGVsbG8="), vec!["hello"]),
        ("out", json!("not base64"), vec!["not base64"]),
        ("out", json!("[\"a\",\"b\"]"), vec!["a", "b"]),
        ("out", json!("{\"a\":1}"), vec!["{\n  \"a\": 1\n}"]),
        // Unless the binding says that it is binary.
        ("binary", json!("aGVsbG8="), vec!["aGVsbG8="]),
        ("out", Value::Null, vec![]),
    ] {
        let message = json!({ "do": "outputs", "outputs": { binding: value, "unknown": 1 } });
        assert_eq!(
            outcome(&host, &message.to_string()).await,
            Outcome::Succeeded
        );
        host.quiet(crate::app::LIMIT).await.unwrap();
        let sent = host.queue("out").messages().await.unwrap();
        assert_eq!(sent, expected, "{message}");
        let emptied = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("{}/out/messages", host.queue_endpoint());
        emptied.delete(url).send().await.unwrap();
    }
}

#[tokio::test]
async fn the_timeout_kills_the_process_and_all_that_runs_in_it() {
    let mut app = App::bare(
        json!({ "extensions": { "queues": { "batchSize": 2, "newBatchThreshold": 0 } } }),
    );
    app.function("worker", &[queue_trigger("work")]);
    app.function("plan", &[timer("0 0 0 1 1 *")]);
    app.set("ECHO_TIMER", &command("sleep", 60_000));
    app.options.pace.retry_visibility = Some(Duration::from_secs(60));
    app.options.pace.function_timeout = Some(Duration::from_secs(1));
    let host = app.start().await;
    let before = host.processes()[0].id();
    let mut events = host.events();
    host.queue("work").put(&command("hang", 0)).await.unwrap();
    app.asked(1).await;
    // Began later, so it has time left when the first one runs out of it.
    host.fire("plan").await.unwrap();
    let mut outcomes = [ended(&mut events).await, ended(&mut events).await].map(|one| one.outcome);
    outcomes.sort_by_key(|outcome| *outcome == Outcome::Lost);
    assert_eq!(outcomes, [Outcome::TimedOut, Outcome::Lost]);
    assert_eq!(outcome(&host, &command("", 0)).await, Outcome::Succeeded);
    assert_ne!(host.processes()[0].id(), before);
}
