//! Function: export. The on-demand API: ask for a run, see how it stands, take it back. A request only writes a record and
//! sends a message: workers do the rest, beside those of the schedule.
//!
//! | request | answer |
//! |---|---|
//! | `POST /api/exports` | 202, `Location` |
//! | `GET /api/exports/{run}` | 200: the state of the run |
//! | `DELETE /api/exports/{run}` | 200: cancelled |
//!
//! `openapi.json` in this folder describes it all; a test holds the two together.

mod document;
mod request;

use std::sync::Arc;

use atlas_engine::suite::runs::RunRequested;
use atlas_runtime::function::Lazy;
use atlas_runtime::problem::{Problem, in_time, of_refusals, read_whole};
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{from_fn, map_response};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};

use crate::document::{of_run, of_state};

/// The description of this API (OpenAPI 3.1).
pub const OPENAPI: &str = include_str!("../openapi.json");

/// A list of EHRs is the longest thing that anybody sends.
const LARGEST_BODY: usize = 1 << 20;
const LONGEST_KEY: usize = 255;
/// Ids of runs are UUIDs.
const LONGEST_ID: usize = 36;

/// The API.
pub fn router(suite: Arc<Lazy>) -> Router {
    Router::new()
        .route("/api/exports", post(create))
        .route("/api/exports/{run}", get(state).delete(cancel))
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(from_fn(read_whole))
        .layer(from_fn(in_time))
        .layer(map_response(of_refusals))
        .with_state(suite)
}

async fn create(
    State(suite): State<Arc<Lazy>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let key = key(&headers)?;
    let suite = suite.get().await?;
    let request = request::read(&body, &suite.request)?;
    match suite.engine.request_run(key, request).await? {
        RunRequested::New(run) | RunRequested::Same(run) => {
            let location = [(LOCATION, format!("/api/exports/{}", run.id))];
            Ok((StatusCode::ACCEPTED, location, Json(of_run(&run))).into_response())
        }
        RunRequested::Conflict => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "The key was used for another request",
            "a run with this `Idempotency-Key` asked for something else",
        )
        .fix("use a new key for a new request")),
    }
}

async fn state(
    State(suite): State<Arc<Lazy>>,
    run: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let run = id(run)?;
    let state = suite.get().await?.engine.run_state(&run).await?;
    let state = state.ok_or_else(unknown)?;
    Ok(Json(of_state(&state)).into_response())
}

async fn cancel(
    State(suite): State<Arc<Lazy>>,
    run: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let run = id(run)?;
    let run = suite.get().await?.engine.cancel(&run).await?;
    Ok(Json(of_run(&run.ok_or_else(unknown)?)).into_response())
}

/// The id of a run in an address. What no run can have, no store is asked for: one refuses zero bytes, another has a longest text.
fn id(run: Result<Path<String>, PathRejection>) -> Result<String, Problem> {
    let Ok(Path(run)) = run else {
        return Err(unknown());
    };
    let is_id = (1..=LONGEST_ID).contains(&run.len())
        && run
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if is_id { Ok(run) } else { Err(unknown()) }
}

fn unknown() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "There is no such run",
        "no run on demand has this id",
    )
    .fix("take the address from `Location` of the answer to POST /api/exports")
}

fn key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= LONGEST_KEY => Ok(Some(key)),
        _ => Err(Problem::bad_request(format!(
            "`Idempotency-Key` is 1 to {LONGEST_KEY} printable ASCII characters"
        ))),
    }
}
