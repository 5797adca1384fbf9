//! The Runtime API and the Extensions API of one process, on its own loopback port.
//!
//! | route | |
//! | --- | --- |
//! | `GET /2018-06-01/runtime/invocation/next` | blocks until there is an event |
//! | `POST …/invocation/{id}/response`, `…/{id}/error` | ends the invocation; 400 for an id never heard of, 403 for one that ended |
//! | `POST /2018-06-01/runtime/init/error` | the process cannot start |
//! | `POST /2020-01-01/extension/register` | before the first event, and only extensions that want none: what `lambda_runtime` needs for `SIGTERM` |
//! | `GET /2020-01-01/extension/event/next` | blocks for ever |

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Mutex as Turn, mpsc, oneshot, watch};
use uuid::Uuid;

use super::faults::{Fault, Faults};
use super::options::{ACCOUNT, REGION};

/// Bytes of the longest answer.
const MAX_ANSWER: usize = 6 * 1024 * 1024;

/// An event on its way to the process.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) id: String,
    pub(super) event: Bytes,
    /// Time limit, counted from the moment the process gets the event.
    pub(super) timeout: Duration,
}

/// How the process ended an invocation.
#[derive(Debug)]
pub(super) enum Answer {
    Response {
        body: Bytes,
        content_type: String,
    },
    Error {
        kind: String,
        message: String,
    },
    /// The function answered, and the answer was dropped.
    Dropped,
}

#[derive(Debug)]
struct Running {
    id: String,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug, Default)]
struct Invocations {
    running: Option<Running>,
    ended: HashSet<String>,
}

/// What one process and its host tell each other.
#[derive(Debug)]
pub(super) struct RuntimeApi {
    function: String,
    faults: Faults,
    invocations: Mutex<Invocations>,
    deliver: mpsc::UnboundedSender<Delivery>,
    deliveries: Turn<mpsc::UnboundedReceiver<Delivery>>,
    /// How often the process asked for an event.
    asked: watch::Sender<u64>,
    init_error: watch::Sender<Option<String>>,
    extension: AtomicBool,
}

impl RuntimeApi {
    pub(super) fn new(function: &str, faults: Faults) -> Self {
        let (deliver, deliveries) = mpsc::unbounded_channel();
        Self {
            function: function.to_owned(),
            faults,
            invocations: Mutex::default(),
            deliver,
            deliveries: Turn::new(deliveries),
            asked: watch::channel(0).0,
            init_error: watch::channel(None).0,
            extension: AtomicBool::new(false),
        }
    }

    /// Hands an event to the process. It answers through the channel.
    pub(super) fn deliver(&self, delivery: Delivery) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        let mut invocations = self.lock();
        // An event that is delivered again keeps its id.
        invocations.ended.remove(&delivery.id);
        invocations.running = Some(Running {
            id: delivery.id.clone(),
            answer,
        });
        drop(invocations);
        // The receiver lives as long as this value.
        let _ = self.deliver.send(delivery);
        answered
    }

    /// Waits until the process has asked for its nth event.
    pub(super) async fn asked(&self, times: u64) {
        let mut asked = self.asked.subscribe();
        // The sender lives as long as this value.
        let _ = asked.wait_for(|asked| *asked >= times).await;
    }

    /// Waits until the process says that it cannot start.
    pub(super) async fn init_error(&self) -> String {
        let mut error = self.init_error.subscribe();
        match error.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// Whether the process wants a `SIGTERM` before it is killed.
    pub(super) fn has_extension(&self) -> bool {
        self.extension.load(Ordering::Relaxed)
    }

    /// Ends the invocation, if it is the one that runs.
    fn end(&self, id: &str, answer: Answer) -> Result<(), Refusal> {
        let mut invocations = self.lock();
        match invocations.running.take_if(|running| running.id == id) {
            Some(running) => {
                invocations.ended.insert(running.id);
                // The receiver is gone if the deadline came first.
                let _ = running.answer.send(answer);
                Ok(())
            }
            None if invocations.ended.contains(id) => Err(Refusal::Ended),
            None => Err(Refusal::Unknown),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Invocations> {
        self.invocations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Name of a function as AWS writes it in full.
pub(super) fn arn(function: &str) -> String {
    format!("arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function}")
}

/// Serves until the task is ended.
pub(super) async fn serve(listener: TcpListener, api: Arc<RuntimeApi>) {
    let routes = Router::new()
        .route("/2018-06-01/runtime/invocation/next", get(next))
        .route(
            "/2018-06-01/runtime/invocation/{id}/response",
            post(response),
        )
        .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
        .route("/2018-06-01/runtime/init/error", post(init_error))
        .route("/2020-01-01/extension/register", post(register))
        .route("/2020-01-01/extension/event/next", get(extension_next))
        // One byte more than allowed is enough to see that an answer is too long; the rest is for errors.
        .layer(DefaultBodyLimit::max(MAX_ANSWER * 2))
        .with_state(api);
    // Only ends with an error of the listener, which axum itself waits out.
    let _ = axum::serve(listener, routes).await;
}

/// Why the API refuses a request.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    Unknown,
    Ended,
    TooLong,
    Events,
    Late,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, kind, message) = match self {
            Self::Unknown => (
                StatusCode::BAD_REQUEST,
                "InvalidRequestID",
                "no such invocation",
            ),
            Self::Ended => (
                StatusCode::FORBIDDEN,
                "InvalidStateTransition",
                "the invocation has ended",
            ),
            Self::TooLong => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "RequestEntityTooLarge",
                "the answer is longer than 6291456 bytes",
            ),
            Self::Events => (
                StatusCode::FORBIDDEN,
                "Extension.InvalidEvents",
                "this host sends no events to extensions",
            ),
            Self::Late => (
                StatusCode::FORBIDDEN,
                "Extension.InvalidExtensionState",
                "extensions register before the first event",
            ),
        };
        let body = json!({"errorType": kind, "errorMessage": message});
        (status, axum::Json(body)).into_response()
    }
}

fn accepted() -> Response {
    (StatusCode::ACCEPTED, axum::Json(json!({"status": "OK"}))).into_response()
}

async fn next(State(api): State<Arc<RuntimeApi>>) -> Response {
    api.asked.send_modify(|asked| *asked += 1);
    let Some(delivery) = api.deliveries.lock().await.recv().await else {
        return StatusCode::GONE.into_response();
    };
    let deadline = SystemTime::now() + delivery.timeout;
    let deadline = deadline
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let trace = Uuid::new_v4().simple().to_string();
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("lambda-runtime-aws-request-id", delivery.id),
        (
            "lambda-runtime-deadline-ms",
            deadline.as_millis().to_string(),
        ),
        ("lambda-runtime-invoked-function-arn", arn(&api.function)),
        (
            "lambda-runtime-trace-id",
            format!(
                "Root=1-{:08x}-{};Parent={};Sampled=0",
                deadline.as_secs(),
                &trace[..24],
                &trace[8..24]
            ),
        ),
    ];
    (axum::response::AppendHeaders(headers), delivery.event).into_response()
}

async fn response(
    State(api): State<Arc<RuntimeApi>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if body.len() > MAX_ANSWER {
        let too_long = Answer::Error {
            kind: "Function.ResponseSizeTooLarge".to_owned(),
            message: "the answer is longer than 6291456 bytes".to_owned(),
        };
        return match api.end(&id, too_long) {
            Ok(()) => Refusal::TooLong.into_response(),
            Err(refusal) => refusal.into_response(),
        };
    }
    let answer = if api.faults.hit(Fault::DropResponse) {
        Answer::Dropped
    } else {
        Answer::Response {
            body,
            content_type: text(&headers, header::CONTENT_TYPE.as_str()),
        }
    };
    match api.end(&id, answer) {
        Ok(()) => accepted(),
        Err(refusal) => refusal.into_response(),
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Failure {
    error_type: String,
    error_message: String,
}

/// The kind stands in a header, the body, both or neither.
fn failure(headers: &HeaderMap, body: &[u8]) -> (String, String) {
    let mut failure: Failure = serde_json::from_slice(body).unwrap_or_default();
    if failure.error_type.is_empty() {
        failure.error_type = text(headers, "lambda-runtime-function-error-type");
    }
    if failure.error_type.is_empty() {
        "Runtime.Unknown".clone_into(&mut failure.error_type);
    }
    (failure.error_type, failure.error_message)
}

async fn error(
    State(api): State<Arc<RuntimeApi>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (kind, message) = failure(&headers, &body);
    match api.end(&id, Answer::Error { kind, message }) {
        Ok(()) => accepted(),
        Err(refusal) => refusal.into_response(),
    }
}

async fn init_error(
    State(api): State<Arc<RuntimeApi>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (kind, message) = failure(&headers, &body);
    api.init_error
        .send_replace(Some(format!("{kind}: {message}")));
    accepted()
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Register {
    events: Vec<String>,
}

async fn register(State(api): State<Arc<RuntimeApi>>, body: Bytes) -> Response {
    let request: Register = serde_json::from_slice(&body).unwrap_or_default();
    if !request.events.is_empty() {
        return Refusal::Events.into_response();
    }
    if *api.asked.borrow() > 0 {
        return Refusal::Late.into_response();
    }
    api.extension.store(true, Ordering::Relaxed);
    let id = ("lambda-extension-identifier", Uuid::new_v4().to_string());
    let about = json!({
        "functionName": api.function,
        "functionVersion": "$LATEST",
        "handler": "bootstrap",
        "accountId": ACCOUNT,
    });
    ([id], axum::Json(about)).into_response()
}

async fn extension_next() -> Response {
    std::future::pending().await
}

fn text(headers: &HeaderMap, name: &str) -> String {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}
