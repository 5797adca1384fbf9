//! A Lambda function that behaves as it is told: the tests of the Lambda host run it as a child process.
//!
//! The behaviour is `do` of the event, of the body of a message, or of the body of a request; `ECHO_INIT` says how the start goes.

#![allow(clippy::panic, clippy::print_stdout, clippy::unwrap_used)]

use std::time::Duration;

use aws_sdk_sqs::config::BehaviorVersion;
use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<(), Error> {
    match std::env::var("ECHO_INIT").as_deref() {
        Ok("exit") => std::process::exit(3),
        Ok("hang") => std::future::pending().await,
        Ok("error") => {
            let api = std::env::var("AWS_LAMBDA_RUNTIME_API")?;
            reqwest::Client::new()
                .post(format!("http://{api}/2018-06-01/runtime/init/error"))
                .header("Lambda-Runtime-Function-Error-Type", "Echo.NoConfig")
                .body("{}")
                .send()
                .await?;
            std::future::pending().await
        }
        Ok("slow") => tokio::time::sleep(Duration::from_millis(300)).await,
        Ok("raw") => return raw().await,
        Ok("graceful") => {
            lambda_runtime::spawn_graceful_shutdown_handler(|| async {
                println!("shut down in order");
            })
            .await;
        }
        Ok("stubborn") => {
            lambda_runtime::spawn_graceful_shutdown_handler(std::future::pending).await;
        }
        _ => {}
    }
    println!("ready");
    lambda_runtime::run(service_fn(handle)).await
}

async fn handle(event: LambdaEvent<Value>) -> Result<Value, Error> {
    let (payload, context) = event.into_parts();
    if let Some(records) = payload["Records"].as_array() {
        return batch(records).await;
    }
    if payload["version"] == "2.0" {
        return request(&payload).await;
    }
    match payload["do"].as_str().unwrap_or("echo") {
        "context" => Ok(json!({
            "id": context.request_id,
            "left_ms": i64::try_from(context.deadline)? - jiff::Timestamp::now().as_millisecond(),
            "arn": context.invoked_function_arn,
            "trace": context.xray_trace_id,
        })),
        "environment" => Ok(json!(
            std::env::vars().collect::<std::collections::BTreeMap<_, _>>()
        )),
        "long" => Ok("x".repeat(6 * 1024 * 1024).into()),
        other => behave(other, &payload).await.map(|()| payload),
    }
}

/// What goes wrong, whatever the event.
async fn behave(what: &str, event: &Value) -> Result<(), Error> {
    match what {
        "error" => return Err("told to fail".into()),
        "panic" => panic!("told to panic"),
        "exit" => std::process::exit(event["code"].as_i64().unwrap_or(0) as i32),
        "hang" => {
            println!("hanging");
            std::future::pending::<()>().await;
        }
        "wait" => {
            let ms = event["ms"].as_u64().unwrap_or(100);
            println!("waiting");
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        _ => {}
    }
    Ok(())
}

async fn batch(records: &[Value]) -> Result<Value, Error> {
    let mut failed = Vec::new();
    let mut whole = None;
    for record in records {
        let text = record["body"].as_str().unwrap_or_default();
        let id = record["messageId"].clone();
        println!(
            "message {} {text}",
            record["attributes"]["ApproximateReceiveCount"]
        );
        let body: Value = serde_json::from_str(text).unwrap_or_default();
        match body["do"].as_str().unwrap_or("ack") {
            "fail" => failed.push(json!({"itemIdentifier": id})),
            "record" => println!("{record}"),
            "answer" => whole = Some(body["answer"].clone()),
            "send" => send(body["text"].as_str().unwrap_or("sent by echo")).await?,
            other => behave(other, &body).await?,
        }
    }
    Ok(whole.unwrap_or_else(|| json!({"batchItemFailures": failed})))
}

async fn send(text: &str) -> Result<(), Error> {
    let config = aws_config::defaults(BehaviorVersion::latest()).load().await;
    aws_sdk_sqs::Client::new(&config)
        .send_message()
        .queue_url(std::env::var("ECHO_QUEUE_URL")?)
        .message_body(text)
        .send()
        .await?;
    println!("sent");
    Ok(())
}

/// Speaks the Runtime API by hand, to do what `lambda_runtime` never does.
async fn raw() -> Result<(), Error> {
    let api = format!("http://{}", std::env::var("AWS_LAMBDA_RUNTIME_API")?);
    let invocations = format!("{api}/2018-06-01/runtime/invocation");
    let client = reqwest::Client::new();
    let register = |events: &[&str]| {
        client
            .post(format!("{api}/2020-01-01/extension/register"))
            .header("Lambda-Extension-Name", "echo")
            .json(&json!({"events": events}))
    };
    let events = register(&["INVOKE"]).send().await?;
    let registered = register(&[]).send().await?;
    let mut before = "none".to_owned();
    loop {
        let next = client.get(format!("{invocations}/next")).send().await?;
        let id = next.headers()["lambda-runtime-aws-request-id"]
            .to_str()?
            .to_owned();
        let headers: std::collections::BTreeMap<String, String> = next
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        let event: Value = next.json().await?;
        let post = |path: String| client.post(format!("{invocations}/{path}"));
        let answer = post(format!("{id}/response"));
        let told = &event["do"];
        let told = told
            .as_str()
            .or(event["queryStringParameters"]["do"].as_str());
        let posted = match told.unwrap_or("echo") {
            "headers" => answer.json(&headers).send().await?,
            "chunked" => {
                let parts = [r#"{"chu"#, r#"nked":"#, "true}"].map(Ok::<_, std::io::Error>);
                let body = reqwest::Body::wrap_stream(futures::stream::iter(parts));
                answer.body(body).send().await?
            }
            "kind" => {
                post(format!("{id}/error"))
                    .header("Lambda-Runtime-Function-Error-Type", "Echo.Kind")
                    .send()
                    .await?
            }
            "probe" => {
                let unknown = post("unknown/response".to_owned())
                    .body("{}")
                    .send()
                    .await?;
                let ended = post(format!("{before}/response")).body("{}").send().await?;
                let again = post(format!("{before}/error")).body("{}").send().await?;
                let late = register(&[]).send().await?;
                answer
                    .json(&json!({
                        "unknown": unknown.status().as_u16(),
                        "ended": ended.status().as_u16(),
                        "again": again.status().as_u16(),
                        "events": events.status().as_u16(),
                        "registered": registered.status().as_u16(),
                        "identifier": registered.headers().contains_key("lambda-extension-identifier"),
                        "late": late.status().as_u16(),
                    }))
                    .send()
                    .await?
            }
            "stream" => {
                let prelude =
                    r#"{"statusCode":201,"headers":{"x-kind":"stream"},"cookies":["a=1"]}"#;
                answer
                    .header(
                        "Content-Type",
                        "application/vnd.awslambda.http-integration-response",
                    )
                    .header("Lambda-Runtime-Function-Response-Mode", "streaming")
                    .body([prelude.as_bytes(), &[0; 8], b"in parts"].concat())
                    .send()
                    .await?
            }
            _ => answer.json(&event).send().await?,
        };
        println!(
            "posted {} {}",
            posted.status().as_u16(),
            posted.text().await?
        );
        before = id;
    }
}

async fn request(event: &Value) -> Result<Value, Error> {
    let body: Value = event["body"]
        .as_str()
        .and_then(|body| serde_json::from_str(body).ok())
        .unwrap_or_default();
    match body["do"].as_str().unwrap_or("echo") {
        "answer" => Ok(body["answer"].clone()),
        other => behave(other, &body).await.map(|()| event.clone()),
    }
}
