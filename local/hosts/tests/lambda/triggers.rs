//! Schedules and Function URLs.

use std::time::Duration;

use local_hosts::lambda::{Fault, FunctionSpec, Host, HostError, Options, Outcome, Times, Trigger};
use serde_json::{Value, json};

use super::support::{LIMIT, answer, function, line, next, starting, within};

fn scheduled(name: &str, every: u64, input: &str) -> FunctionSpec {
    function(name).on(Trigger::Schedule {
        every: Duration::from_secs(every),
        input: input.to_owned(),
    })
}

const INPUT: &str = concat!(
    r#"{"time":"<aws.scheduler.scheduled-time>","run":"<aws.scheduler.execution-id>","#,
    r#""attempt":"<aws.scheduler.attempt-number>","arn":"<aws.scheduler.schedule-arn>"}"#
);

#[tokio::test]
async fn a_schedule_replaces_what_its_input_asks_for() {
    let host = Host::start(Options::new(vec![scheduled("planner", 900, INPUT)]))
        .await
        .unwrap();
    let at = "2026-11-22T09:15:00.7Z".parse().unwrap();
    let event = answer(&host.fire_at("planner", at).await.unwrap());
    assert_eq!(event["time"], "2026-11-22T09:15:00Z");
    assert_eq!(event["attempt"], "1");
    assert_eq!(event["run"].as_str().unwrap().len(), 16);
    let arn = event["arn"].as_str().unwrap();
    assert!(arn.starts_with("arn:aws:scheduler:"), "{arn}");
    assert!(matches!(
        host.fire("other").await,
        Err(HostError::NoFunction(..))
    ));
}

#[tokio::test]
async fn a_schedule_can_fire_twice() {
    let host = Host::start(Options::new(vec![scheduled("planner", 900, INPUT)]))
        .await
        .unwrap();
    let at = "2026-11-22T09:15:00Z".parse().unwrap();
    let [one, two] = host.fire_twice("planner", at).await.unwrap();
    assert_ne!(one.process, two.process);
    assert_eq!(answer(&one)["time"], answer(&two)["time"]);

    host.faults().set(Fault::FireTwice, Times::Next(1));
    host.fire("planner").await.unwrap();
    host.fire("planner").await.unwrap();
    assert_eq!(host.invocations().len(), 5);
}

#[tokio::test]
async fn a_schedule_fires_by_the_clock() {
    let mut options = Options::new(vec![scheduled("planner", 1, INPUT)]);
    options.clock = true;
    let host = Host::start(options).await.unwrap();
    let mut ended = host.watch();
    for _ in 0..2 {
        assert_eq!(next(&mut ended).await.outcome, Outcome::Succeeded);
    }
}

#[tokio::test]
async fn a_scheduled_event_that_failed_is_delivered_again_with_the_same_id() {
    let mut options = Options::new(vec![scheduled("planner", 2, r#"{"do":"error"}"#)]);
    options.clock = true;
    options.pace.schedule_retries = 2;
    options.pace.schedule_retry_wait = Duration::from_millis(100);
    let host = Host::start(options).await.unwrap();
    let mut ended = host.watch();
    let first = next(&mut ended).await;
    let mut ids = vec![first.id.clone()];
    while ids.iter().filter(|id| **id == first.id).count() < 3 {
        let again = next(&mut ended).await;
        assert!(matches!(again.outcome, Outcome::Failed(_)));
        ids.push(again.id);
    }
}

async fn url_host(functions: Vec<FunctionSpec>) -> Host {
    let functions = functions
        .into_iter()
        .map(|function| function.on(Trigger::Url))
        .collect();
    Host::start(Options::new(functions)).await.unwrap()
}

#[tokio::test]
async fn a_request_becomes_an_event_of_version_2() {
    let host = url_host(vec![function("export")]).await;
    let url = host.url("export").unwrap();
    let client = reqwest::Client::new();
    let event: Value = client
        .post(format!("{url}/runs/7?a=1&a=2&b=%C3%A4"))
        .header("X-Two", "one")
        .header("X-Two", "two")
        .header("Cookie", "k=v; l=w")
        .header("User-Agent", "test")
        .json(&json!({"ask": "ä"}))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(event["version"], "2.0");
    assert_eq!(event["routeKey"], "$default");
    assert_eq!(event["rawPath"], "/runs/7");
    assert_eq!(event["rawQueryString"], "a=1&a=2&b=%C3%A4");
    assert_eq!(
        event["queryStringParameters"],
        json!({"a": "1,2", "b": "ä"})
    );
    assert_eq!(event["cookies"], json!(["k=v", "l=w"]));
    assert_eq!(event["headers"]["x-two"], "one,two");
    assert_eq!(event["body"], r#"{"ask":"ä"}"#);
    assert_eq!(event["isBase64Encoded"], false);
    let http = &event["requestContext"]["http"];
    assert_eq!(http["method"], "POST");
    assert_eq!(http["path"], "/runs/7");
    assert_eq!(http["sourceIp"], "127.0.0.1");
    assert_eq!(http["userAgent"], "test");
    assert_eq!(
        event["requestContext"]["requestId"],
        host.invocations()[0].id
    );
    let typed: aws_lambda_events::lambda_function_urls::LambdaFunctionUrlRequest =
        serde_json::from_value(event).unwrap();
    assert_eq!(typed.raw_path.as_deref(), Some("/runs/7"));

    let get: Value = client.get(&url).send().await.unwrap().json().await.unwrap();
    assert_eq!((&get["rawPath"], get.get("body")), (&json!("/"), None));
    let binary = client.put(&url).body(vec![0_u8, 255]).send().await.unwrap();
    let binary: Value = binary.json().await.unwrap();
    assert_eq!(
        (&binary["body"], &binary["isBase64Encoded"]),
        (&json!("AP8="), &json!(true))
    );
}

/// The response to a request whose body says how to answer.
async fn call(url: &str, body: Value) -> reqwest::Response {
    within(reqwest::Client::new().post(url).json(&body).send())
        .await
        .unwrap()
}

#[tokio::test]
async fn an_answer_with_a_status_code_becomes_that_response() {
    let host = url_host(vec![function("export")]).await;
    let url = host.url("export").unwrap();
    let answer = json!({
        "statusCode": 202,
        "headers": {"Location": "/runs/7", "X-Number": 1},
        "cookies": ["a=1", "b=2"],
        "body": "accepted",
    });
    let response = call(&url, json!({"do": "answer", "answer": answer})).await;
    assert_eq!(response.status(), 202);
    assert_eq!(response.headers()["location"], "/runs/7");
    assert_eq!(response.headers()["x-number"], "1");
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
    assert_eq!(response.text().await.unwrap(), "accepted");

    let answer = json!({"statusCode": 200, "body": "AP8=", "isBase64Encoded": true});
    let response = call(&url, json!({"do": "answer", "answer": answer})).await;
    assert_eq!(response.bytes().await.unwrap().as_ref(), [0, 255]);

    let response = call(&url, json!({"do": "answer", "answer": {"any": 1}})).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.json::<Value>().await.unwrap(), json!({"any": 1}));
}

#[tokio::test]
async fn a_streamed_answer_is_a_prelude_and_a_body() {
    let host = url_host(vec![starting("raw", "raw").on(Trigger::Url)]).await;
    let url = host.url("raw").unwrap();
    let response = reqwest::get(format!("{url}/?do=stream")).await.unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(response.headers()["x-kind"], "stream");
    assert_eq!(response.headers()["set-cookie"], "a=1");
    assert_eq!(response.text().await.unwrap(), "in parts");
}

#[tokio::test]
async fn a_failure_or_a_malformed_answer_is_502() {
    let host = url_host(vec![function("export")]).await;
    let url = host.url("export").unwrap();
    for body in [
        json!({"do": "error"}),
        json!({"do": "exit"}),
        json!({"do": "answer", "answer": {"statusCode": "many"}}),
        json!({"do": "answer", "answer": {"statusCode": 99}}),
        json!({"do": "answer", "answer": {"statusCode": 200, "body": {"a": 1}}}),
        json!({"do": "answer", "answer": {"statusCode": 200, "headers": {"a b": "c"}}}),
        json!({"do": "answer", "answer": {"statusCode": 200, "body": "?", "isBase64Encoded": true}}),
    ] {
        assert_eq!(call(&url, body.clone()).await.status(), 502, "{body}");
    }
    assert_eq!(call(&url, json!({})).await.status(), 200);
}

#[tokio::test]
async fn a_request_ends_at_its_limit_and_the_function_goes_on() {
    let mut options = Options::new(vec![function("export").on(Trigger::Url)]);
    options.pace.http = Duration::from_millis(500);
    let host = Host::start(options).await.unwrap();
    let mut ended = host.watch();
    let url = host.url("export").unwrap();
    let response = call(&url, json!({"do": "wait", "ms": 2500})).await;
    assert_eq!(response.status(), 503);
    assert!(host.invocations().is_empty());
    assert_eq!(next(&mut ended).await.outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_end_the_function() {
    let host = url_host(vec![function("export")]).await;
    let (mut ended, mut lines) = (host.watch(), host.lines());
    let url = host.url("export").unwrap();
    let request = tokio::spawn(async move { call(&url, json!({"do": "wait", "ms": 500})).await });
    line(&mut lines, "waiting").await;
    request.abort();
    assert_eq!(next(&mut ended).await.outcome, Outcome::Succeeded);
    host.quiet(LIMIT).await.unwrap();
}

#[tokio::test]
async fn a_path_without_a_function_is_404_and_a_long_body_413() {
    let host = url_host(vec![function("export")]).await;
    let url = host.url("export").unwrap();
    let other = url.replace("export", "other");
    let answer = reqwest::get(&other).await.unwrap();
    assert_eq!(answer.status(), 404);
    let text = answer.text().await.unwrap();
    assert!(text.contains("/export/"), "{text}");
    assert!(matches!(host.url("other"), Err(HostError::NoFunction(..))));
    let long = vec![b' '; 6 * 1024 * 1024 + 1];
    let client = reqwest::Client::new();
    let long = client.post(&url).body(long).send().await.unwrap();
    assert_eq!(long.status(), 413);
}
