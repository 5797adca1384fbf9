//! The suite as a custom handler: one process that the Functions host starts and speaks HTTP with.
//!
//! | request | function |
//! |---|---|
//! | `POST /planner`, `/report` | timers |
//! | `POST /worker`, `/deadletter` | queue `export-work`, and its poison queue |
//! | `/api/exports…`, `/api/watermark` | HTTP, as it came (`enableProxyingHttpRequest`) |
//!
//! Timers and queues come in the host's envelope ([`envelope`]). A status that is not 2xx makes the host try again; a success is
//! always answered with the whole object, because the host waits for ever for one that is empty.

mod envelope;

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;

use atlas_runtime::function::{Lazy, StartError};
use atlas_runtime::telemetry;
use atlas_worker::Verdict;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;

use crate::envelope::{Envelope, floor_to_minute};

/// Set by the host; the second one by older ones.
const PORT: [&str; 2] = ["FUNCTIONS_CUSTOMHANDLER_PORT", "FUNCTIONS_HTTPWORKER_PORT"];

type Shared = State<Arc<Lazy>>;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
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
    let router = Router::new()
        .route("/", get(|| async { StatusCode::OK }))
        .route("/planner", post(planner))
        .route("/report", post(report))
        .route("/worker", post(worker))
        .route("/deadletter", post(dead_letter))
        .with_state(Arc::clone(&suite))
        .merge(atlas_export::router(Arc::clone(&suite)))
        .merge(atlas_watermark::router(Arc::clone(&suite)));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    axum::serve(listener, router)
        .with_graceful_shutdown(terminated(suite))
        .await?;
    Ok(())
}

/// The host kills without asking; where it does ask, what is under way is handed on first.
async fn terminated(suite: Arc<Lazy>) {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
            suite.stop();
        }
        Err(error) => {
            tracing::warn!("SIGTERM is not watched for: {error}");
            std::future::pending().await
        }
    }
}

async fn planner(State(suite): Shared, Json(envelope): Json<Envelope>) -> Response {
    let suite = match suite.get().await {
        Ok(suite) => suite,
        Err(error) => return not_started(&error),
    };
    let budget = suite.budget(suite.settings.functions.timeout);
    let occurrence = envelope.occurrence().unwrap_or_else(floor_to_minute);
    match atlas_planner::handle(suite, occurrence, &budget).await {
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

async fn dead_letter(State(suite): Shared, Json(envelope): Json<Envelope>) -> Response {
    match suite.get().await {
        Ok(suite) => verdict(atlas_worker::mark_failed(suite, &envelope.text()).await),
        Err(error) => not_started(&error),
    }
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
