//! What an HTTP request that fails is answered with: problem details (RFC 9457), without anything personal.

use std::time::Duration;

use atlas_engine::ErrorKind;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt as _;
use serde_json::json;

use crate::function::StartError;

const PROBLEM_JSON: &str = "application/problem+json";

/// A problem document.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    title: &'static str,
    detail: String,
    fix: Option<String>,
}

impl Problem {
    /// A problem of that status.
    #[must_use]
    pub fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            title,
            detail: detail.into(),
            fix: None,
        }
    }

    /// The request itself is wrong.
    #[must_use]
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "The request is not valid", detail)
    }

    /// What the person reading can do.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

impl From<atlas_engine::Error> for Problem {
    fn from(error: atlas_engine::Error) -> Self {
        tracing::error!("a request was not answered: {}", error.chain());
        let (status, title) = match error.kind() {
            ErrorKind::StoreUnreachable | ErrorKind::QueueUnreachable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "A part of Atlas is away at the moment",
            ),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "Atlas could not do this"),
        };
        // Causes can quote addresses: they are in the log.
        let problem = Self::new(status, title, error.to_string());
        match error.help() {
            Some(help) => problem.fix(help),
            None => problem,
        }
    }
}

impl From<StartError> for Problem {
    fn from(error: StartError) -> Self {
        tracing::error!("the function cannot start: {error}");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Atlas is not set up",
            "the configuration of the function is not valid",
        )
        .fix("its log says what is wrong")
    }
}

/// No answer takes longer, whatever store and source do: platforms end the process of a call that hangs, with the work beside it.
const LONGEST: Duration = Duration::from_secs(25);
/// When a caller who got no answer may ask again.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Answers for whoever takes too long. A layer of each API.
pub async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(LONGEST, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            tracing::warn!("a request was not answered in {} s", LONGEST.as_secs());
            let problem = Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "Atlas did not answer in time",
                "a part of Atlas is slow or away at the moment",
            )
            .fix("ask again; asked for with the same `Idempotency-Key`, nothing is done twice");
            let again = [(RETRY_AFTER, AGAIN_AFTER.as_secs().to_string())];
            (again, problem).into_response()
        }
    }
}

/// Longest body that reaches a handler, in bytes: more than any of our APIs takes, even twice encoded in an envelope.
const LARGEST_BODY: usize = 8 << 20;
/// A longer one is read on and forgotten up to here, in bytes: no platform passes on more.
const LARGEST_READ: usize = 128 << 20;
/// The caller has so long to send it.
const LONGEST_READ: Duration = Duration::from_secs(20);

/// An extension of requests: the longest body that their host passes on to a handler, in bytes, where that is less.
#[derive(Debug, Clone, Copy)]
pub struct LargestBody(pub usize);

/// Reads the body of a request to its end before anything is answered, also where nobody needs it: an answer before that end breaks
/// the connection, and whoever forwards requests over it takes the answer for lost. A layer of each API.
pub async fn read_whole(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let largest = parts.extensions.get::<LargestBody>();
    let largest = largest.map_or(LARGEST_BODY, |largest| largest.0.min(LARGEST_BODY));
    match tokio::time::timeout(LONGEST_READ, whole(body, largest)).await {
        Ok(Ok(Some(body))) => next.run(Request::from_parts(parts, body.into())).await,
        Ok(Ok(None)) => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "The body is too large",
            "nothing here takes so much",
        )
        .into_response(),
        // The error can quote the request.
        Ok(Err(_)) => Problem::bad_request("the body has no end").into_response(),
        Err(_) => Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "The body did not come in time",
            format!("it was not sent in {} s", LONGEST_READ.as_secs()),
        )
        .into_response(),
    }
}

/// The body; `None` if it is too large.
async fn whole(body: Body, largest: usize) -> Result<Option<Vec<u8>>, axum::Error> {
    let mut parts = body.into_data_stream();
    let (mut kept, mut seen) = (Vec::new(), 0);
    while let Some(part) = parts.try_next().await? {
        seen += part.len();
        if seen > LARGEST_READ {
            break;
        }
        if seen > largest {
            kept = Vec::new();
        } else {
            kept.extend_from_slice(&part);
        }
    }
    Ok((seen <= largest).then_some(kept))
}

/// Gives what axum itself refuses with (405, 413, …) the form of every other problem. A layer of each API.
pub async fn of_refusals(response: Response) -> Response {
    let status = response.status();
    let is_problem = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind == PROBLEM_JSON);
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    // What it says instead can quote the request.
    let title = status.canonical_reason().unwrap_or("Refused");
    let detail = match status {
        StatusCode::NOT_FOUND => {
            "there is nothing at this address; there are /api/exports, /api/exports/{run} and /api/watermark, on AWS each at the URL \
             of its function"
        }
        _ => "the API's description says what is asked for",
    };
    let mut problem = Problem::new(status, title, detail).into_response();
    if let Some(methods) = response.headers().get(ALLOW) {
        problem.headers_mut().insert(ALLOW, methods.clone());
    }
    problem
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = json!({
            "type": "about:blank",
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
            "fix": self.fix,
        });
        let kind = [(CONTENT_TYPE, PROBLEM_JSON)];
        (self.status, kind, document.to_string()).into_response()
    }
}
