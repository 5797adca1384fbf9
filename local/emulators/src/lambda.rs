use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path as InPath, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::server::{Task, serve};
use crate::{Context as _, Error, Result};

/// A program that answers later than this hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// An event with the time that is left for it.
type Sent = (Value, Duration);

/// What a program made of an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Invoked {
    /// It answered.
    Response(Value),
    /// It failed: a function error.
    Error(Value),
}

/// A Lambda program of ours over the runtime API, one event after the other. It is ended when this is dropped.
pub struct Lambda {
    _process: Child,
    _api: Task,
    events: Sender<Sent>,
    answers: Receiver<Invoked>,
}

struct Runtime {
    events: Mutex<Receiver<Sent>>,
    answers: Sender<Invoked>,
}

impl Lambda {
    /// Starts a program with these variables beside those that Lambda sets.
    ///
    /// # Errors
    /// No free port, or the program does not start.
    pub async fn start(program: &Path, variables: &[(&str, &str)]) -> Result<Self> {
        let (events, waiting) = channel(1);
        let (done, answers) = channel(1);
        let runtime = Arc::new(Runtime {
            events: Mutex::new(waiting),
            answers: done,
        });
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route(
                "/2018-06-01/runtime/invocation/{id}/response",
                post(response),
            )
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .with_state(runtime);
        let (api, address) = serve(router, None).await?;
        let process = Command::new(program)
            .env("AWS_LAMBDA_RUNTIME_API", address.to_string())
            .env("AWS_LAMBDA_FUNCTION_NAME", "function")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("AWS_REGION", "eu-central-1")
            .env("AWS_ACCESS_KEY_ID", "testing")
            .env("AWS_SECRET_ACCESS_KEY", "testing")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("start a Lambda program")?;
        Ok(Self {
            _process: process,
            _api: api,
            events,
            answers,
        })
    }

    /// Sends an event for which so much time is left, and waits for what becomes of it.
    ///
    /// # Errors
    /// It never answers.
    pub async fn invoke(&mut self, event: Value, left: Duration) -> Result<Invoked> {
        let action = "invoke a Lambda program";
        self.events.send((event, left)).await.context(action)?;
        let answer = tokio::time::timeout(LIMIT, self.answers.recv()).await;
        answer
            .context(action)?
            .ok_or_else(|| Error::new(action, "the runtime API has ended"))
    }
}

async fn next(State(runtime): State<Arc<Runtime>>) -> impl IntoResponse {
    let Some((event, left)) = runtime.events.lock().await.recv().await else {
        return std::future::pending().await;
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let deadline = now.unwrap_or_default() + left;
    let headers = [
        ("Content-Type", "application/json".to_owned()),
        ("Lambda-Runtime-Aws-Request-Id", "event".to_owned()),
        (
            "Lambda-Runtime-Deadline-Ms",
            deadline.as_millis().to_string(),
        ),
        ("Lambda-Runtime-Invoked-Function-Arn", "arn".to_owned()),
        ("Lambda-Runtime-Trace-Id", "Root=1".to_owned()),
    ];
    (headers, event.to_string())
}

async fn response(
    runtime: State<Arc<Runtime>>,
    InPath(_): InPath<String>,
    body: Bytes,
) -> StatusCode {
    note(&runtime, Invoked::Response(document(&body))).await
}

async fn error(runtime: State<Arc<Runtime>>, InPath(_): InPath<String>, body: Bytes) -> StatusCode {
    note(&runtime, Invoked::Error(document(&body))).await
}

async fn note(runtime: &Runtime, invoked: Invoked) -> StatusCode {
    match runtime.answers.send(invoked).await {
        Ok(()) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::GONE,
    }
}

fn document(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}
