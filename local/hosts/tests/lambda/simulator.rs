//! A second opinion on the Runtime API: the same program under `lambda-simulator` 0.2.0 behaves the same.
//!
//! Not compared, because the simulator differs from Lambda: it answers 404 to an unknown invocation and 400 to one that
//! ended, where Lambda answers 400 and 403, and it kills nothing at a deadline.

use std::time::Duration;

use lambda_simulator::process::{ProcessConfig, ProcessRole};
use lambda_simulator::{FreezeMode, InvocationBuilder, InvocationStatus, Simulator};
use local_hosts::lambda::{Host, Outcome};
use serde_json::{Value, json};

use super::support::{LIMIT, answer, echo, function, host, starting, within};

/// What the function answered, or the message of its error.
async fn by_host(host: &Host, function: &str, event: &Value) -> Result<Value, String> {
    let invocation = within(host.invoke(function, event.to_string()))
        .await
        .unwrap();
    match &invocation.outcome {
        Outcome::Failed(reason) => Err(reason.clone()),
        outcome => {
            assert_eq!(outcome, &Outcome::Succeeded);
            Ok(answer(&invocation))
        }
    }
}

async fn by_simulator(simulator: &Simulator, event: &Value) -> Result<Value, String> {
    let invocation = InvocationBuilder::new()
        .payload(event.clone())
        .timeout_ms(60_000)
        .build()
        .unwrap();
    let id = simulator.enqueue(invocation).await;
    let state = simulator
        .wait_for_invocation_complete(&id, LIMIT)
        .await
        .unwrap();
    match state.status {
        InvocationStatus::Success => Ok(state.response.unwrap().payload),
        _ => {
            let error = state.error.unwrap();
            Err(format!("{}: {}", error.error_type, error.error_message))
        }
    }
}

async fn simulator(init: &str) -> (Simulator, impl Sized) {
    let simulator = Simulator::builder()
        .function_name("echo")
        .freeze_mode(FreezeMode::None)
        .extension_ready_timeout(Duration::from_secs(1))
        .build()
        .await
        .unwrap();
    let config = ProcessConfig::new(echo(), ProcessRole::Runtime).env("ECHO_INIT", init);
    let process = simulator.spawn_process_with_config(config).unwrap();
    (simulator, process)
}

#[tokio::test]
async fn answers_errors_and_panics_are_the_same_under_the_simulator() {
    let host = host(vec![function("echo")]).await;
    let (simulator, _process) = simulator("").await;
    for event in [
        json!({"text": "ä"}),
        json!({"do": "error"}),
        json!({"do": "panic"}),
        json!([1, null]),
        json!({"Records": [{"messageId": "m1", "body": "{\"do\":\"fail\"}"}]}),
    ] {
        let ours = by_host(&host, "echo", &event).await;
        assert_eq!(ours, by_simulator(&simulator, &event).await, "{event}");
    }
}

#[tokio::test]
async fn raw_requests_are_answered_the_same_under_the_simulator() {
    let host = host(vec![starting("raw", "raw")]).await;
    let (simulator, _process) = simulator("raw").await;
    for event in [json!({"do": "echo"}), json!({"do": "chunked"})] {
        let ours = by_host(&host, "raw", &event).await;
        assert_eq!(ours, by_simulator(&simulator, &event).await, "{event}");
    }
    let headers = json!({"do": "headers"});
    let ours = by_host(&host, "raw", &headers).await.unwrap();
    let theirs = by_simulator(&simulator, &headers).await.unwrap();
    let names = |headers: &Value| -> Vec<String> {
        let names = headers.as_object().unwrap().keys();
        names
            .filter(|name| name.starts_with("lambda-"))
            .cloned()
            .collect()
    };
    assert_eq!(names(&ours), names(&theirs));
}
