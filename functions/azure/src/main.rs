//! The suite as a custom handler: one process that the Functions host starts and speaks HTTP with.
//!
//! | request | function |
//! |---|---|
//! | `POST /planner`, `/report` | timers |
//! | `POST /worker`, `/deadletter` | queue `export-work`, and its poison queue |
//! | `/api/exports…`, `/api/watermark` | HTTP, as it came (`enableForwardingHttpRequest`) |
//! | `POST /export`, `/watermark` | HTTP in an envelope, from hosts that know no such flag |
//!
//! Timers and queues come in the host's envelope ([`envelope`]), HTTP in several forms ([`http`]). A status that is not 2xx makes the
//! host try again; a success is always answered with the whole object, because the host waits for ever for one that is empty.
//!
//! The handler ends with [`AGAIN`] when nothing is wrong: on SIGTERM, or when its host is gone ([`host`]).

mod envelope;
mod host;
mod http;

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use atlas_runtime::function::{Lazy, StartError};
use atlas_runtime::problem::read_whole;
use atlas_runtime::telemetry;
use atlas_worker::{Verdict, within_bound};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router, ServiceExt as _};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::envelope::Envelope;

/// How the handler ends when nothing is wrong. The host starts it again at once and counts nothing: after 0 it never starts it
/// again, after anything else it gives up at the third time in half an hour.
const AGAIN: u8 = 200;
/// What is under way when the handler is told to end may take this long to reach a page boundary and be handed on.
const LAST_WORDS: Duration = Duration::from_secs(30);
/// An envelope with the longest request that the API takes, encoded twice.
const LARGEST_ENVELOPE: usize = 8 << 20;

/// Set by the host; the second one by older ones.
const PORT: [&str; 2] = ["FUNCTIONS_CUSTOMHANDLER_PORT", "FUNCTIONS_HTTPWORKER_PORT"];

type Shared = State<Arc<Lazy>>;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::from(AGAIN),
        Err(error) => {
            tracing::error!("the handler cannot run: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    telemetry::init_function()?;
    let port = PORT
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .ok_or("FUNCTIONS_CUSTOMHANDLER_PORT is not set; the Functions host sets it, or `local-hosts azure` here")?
        .parse()
        .map_err(|_| "FUNCTIONS_CUSTOMHANDLER_PORT is not a port")?;
    let suite = Arc::new(Lazy::default());
    let api =
        atlas_export::router(Arc::clone(&suite)).merge(atlas_watermark::router(Arc::clone(&suite)));
    let wrapped = Router::new()
        .route("/export", post(http::wrapped))
        .route("/watermark", post(http::wrapped))
        .layer(DefaultBodyLimit::max(LARGEST_ENVELOPE))
        .with_state(api.clone());
    let router = Router::new()
        .route("/", get(|| async { StatusCode::OK }))
        .route("/planner", post(planner))
        .route("/report", post(report))
        .route("/worker", post(worker))
        .route("/deadletter", post(dead_letter))
        .with_state(Arc::clone(&suite))
        .merge(wrapped)
        .layer(from_fn(read_whole))
        .merge(api);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let service = router.map_request(http::as_meant).into_make_service();
    let ending = CancellationToken::new();
    let ended = ending.clone();
    let serving = axum::serve(listener, service).with_graceful_shutdown(async move {
        host::told_to_end().await;
        suite.stop();
        ended.cancel();
    });
    let late = async {
        ending.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        served = serving => served?,
        () = late => tracing::warn!("what was under way did not end in time; its leases run out"),
    }
    Ok(())
}

async fn planner(State(suite): Shared, Json(envelope): Json<Envelope>) -> Response {
    let suite = match suite.get().await {
        Ok(suite) => suite,
        Err(error) => return not_started(&error),
    };
    let budget = suite.planning_budget(suite.settings.functions.timeout);
    match atlas_planner::handle(suite, envelope.occurrence(), &budget).await {
        Ok(_) => done(),
        Err(error) => failed(&error.chain()),
    }
}

async fn report(State(suite): Shared) -> Response {
    match suite.get().await {
        Ok(suite) => match atlas_watermark::save_report(suite).await {
            Ok(_) => done(),
            Err(error) => failed(&error.chain()),
        },
        Err(error) => not_started(&error),
    }
}

async fn worker(State(suite): Shared, Json(envelope): Json<Envelope>) -> Response {
    match suite.get().await {
        Ok(suite) => {
            let left = suite.settings.functions.timeout;
            verdict(atlas_worker::handle(suite, &envelope.text(), left).await)
        }
        Err(error) => not_started(&error),
    }
}

/// The host asks again every ten minutes for as long as a dead letter lives, whatever `maxDequeueCount` says: the end is set by
/// [`within_bound`], also for as long as the suite cannot start.
async fn dead_letter(State(suite): Shared, Json(envelope): Json<Envelope>) -> Response {
    let marked = match suite.get().await {
        Ok(suite) => atlas_worker::mark_failed(suite, &envelope.text()).await,
        Err(error) => {
            tracing::error!("the suite cannot start: {error}");
            Verdict::Again
        }
    };
    verdict(within_bound(marked, envelope.deliveries()))
}

fn verdict(verdict: Verdict) -> Response {
    match verdict {
        Verdict::Forget => done(),
        Verdict::Again => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn done() -> Response {
    Json(json!({ "Outputs": {}, "Logs": [], "ReturnValue": null })).into_response()
}

fn failed(why: &str) -> Response {
    tracing::error!("the invocation failed: {why}");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

fn not_started(error: &StartError) -> Response {
    tracing::error!("the suite cannot start: {error}");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}
