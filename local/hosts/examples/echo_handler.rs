//! A custom handler that writes down what it gets and misbehaves on command, for the tests of the host.
//!
//! A queue message, an HTTP body or the variable `ECHO_TIMER` can hold a command: `{"do": "exit", "code": 1}`. With
//! `"until": 3` it is obeyed only while the message was taken fewer times than that. `ECHO_FOLDER` is where `starts`
//! and `requests` are written, one JSON object in a line.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

use std::io::Write as _;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() {
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    let environment: serde_json::Map<String, Value> = std::env::vars()
        .filter(|(name, _)| name.starts_with("FUNCTIONS_") || name.starts_with("ECHO_"))
        .map(|(name, value)| (name, Value::String(value)))
        .collect();
    note(
        "starts",
        &json!({
            "process": std::process::id(),
            "environment": environment,
            "arguments": std::env::args().skip(1).collect::<Vec<_>>(),
            "folder": std::env::current_dir().unwrap(),
        }),
    );
    match std::env::var("ECHO_START").as_deref() {
        Ok("deaf") => std::future::pending::<()>().await,
        Ok(code) => std::process::exit(code.parse().unwrap()),
        Err(_) => {}
    }
    tokio::spawn(async move {
        terminated.recv().await;
        note("requests", &json!({ "signal": "TERM" }));
    });
    let port = std::env::var("FUNCTIONS_CUSTOMHANDLER_PORT").unwrap();
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}"))
        .await
        .unwrap();
    axum::serve(listener, Router::new().fallback(handle))
        .await
        .unwrap();
}

fn note(file: &str, line: &Value) {
    let folder = std::path::PathBuf::from(std::env::var("ECHO_FOLDER").unwrap());
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join(file))
        .unwrap();
    // One write for one line: processes of several instances share the file.
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

async fn handle(method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let content: Value = serde_json::from_slice(&body).unwrap_or_default();
    let sent: serde_json::Map<String, Value> = headers
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                json!(String::from_utf8_lossy(value.as_bytes())),
            )
        })
        .collect();
    let is_probe = method == Method::GET && uri.path() == "/";
    note(
        if is_probe { "probes" } else { "requests" },
        &json!({
            "process": std::process::id(),
            "method": method.as_str(),
            "uri": uri.to_string(),
            "headers": sent,
            "body": content,
        }),
    );
    if is_probe {
        return StatusCode::NOT_FOUND.into_response();
    }
    let command = command(&content);
    let count = content["Metadata"]["DequeueCount"].as_str();
    let count: u64 = count.and_then(|count| count.parse().ok()).unwrap_or(1);
    if command["until"]
        .as_u64()
        .is_some_and(|until| count >= until)
    {
        return answer(&Value::Null);
    }
    obey(&command).await
}

/// From the text of a message, the body of a request, or the environment.
fn command(content: &Value) -> Value {
    let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
    let data = &content["Data"];
    let message = data["msg"].as_str().and_then(|text| {
        // Twice encoded by the real host, once in the published examples.
        match parse(text) {
            Some(Value::String(inner)) => parse(&inner),
            other => other,
        }
    });
    message
        .or_else(|| data["req"]["Body"].as_str().and_then(parse))
        .or_else(|| Some(content.clone()).filter(|content| content.get("do").is_some()))
        .or_else(|| {
            std::env::var("ECHO_TIMER")
                .ok()
                .and_then(|text| parse(&text))
        })
        .unwrap_or_default()
}

fn answer(outputs: &Value) -> Response {
    let body = json!({ "Outputs": outputs, "Logs": ["handled"], "ReturnValue": null });
    (
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}

fn plain(kind: &'static str, content: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], content).into_response()
}

async fn obey(command: &Value) -> Response {
    let code = command["code"].as_i64().unwrap_or(1);
    match command["do"].as_str().unwrap_or_default() {
        "empty" => StatusCode::OK.into_response(),
        "null" => plain("application/json", "null"),
        "invalid" => plain("application/json", "{\"Outputs\":"),
        "text" => plain("text/plain", "{\"Outputs\":{}}"),
        "status" => StatusCode::from_u16(u16::try_from(code).unwrap())
            .unwrap()
            .into_response(),
        "moved" => {
            let headers = [
                (header::LOCATION, "/api/exports/7"),
                (header::RETRY_AFTER, "25"),
                (header::ETAG, "\"tag\""),
            ];
            (StatusCode::FOUND, headers, "elsewhere").into_response()
        }
        "exit" => std::process::exit(i32::try_from(code).unwrap()),
        "crash" => std::process::abort(),
        "hang" => std::future::pending().await,
        "sleep" => {
            tokio::time::sleep(Duration::from_millis(code.unsigned_abs())).await;
            answer(&Value::Null)
        }
        "say" => {
            println!("a line on standard output");
            eprintln!("a line on standard error");
            eprintln!("a Warning on standard error");
            answer(&Value::Null)
        }
        "outputs" => answer(&command["outputs"]),
        "send" => {
            send(command["text"].as_str().unwrap_or_default()).await;
            answer(&Value::Null)
        }
        "stream" => {
            let (give, take) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                let _ = give
                    .send(Ok::<_, std::io::Error>(Bytes::from("first ")))
                    .await;
                let folder = std::path::PathBuf::from(std::env::var("ECHO_FOLDER").unwrap());
                // The second part follows when the test has seen the first one.
                while !folder.join("go on").exists() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                let _ = give.send(Ok(Bytes::from("second"))).await;
            });
            Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(take)).into_response()
        }
        _ => answer(&Value::Null),
    }
}

/// Puts a text into the queue of `ECHO_QUEUE_URL`, as the SDK does.
async fn send(text: &str) {
    let url = format!("{}/messages", std::env::var("ECHO_QUEUE_URL").unwrap());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = format!("<QueueMessage><MessageText>{text}</MessageText></QueueMessage>");
    let sent = client.post(url).body(body).send().await.unwrap();
    assert_eq!(sent.status(), 201);
}
