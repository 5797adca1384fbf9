//! Function: watermark. How far the copy is: as JSON, for Prometheus, and kept in the store by a timer.

mod prometheus;

use std::sync::Arc;

use atlas_engine::Result;
use atlas_engine::suite::report::Report;
use atlas_runtime::function::Lazy;
use atlas_runtime::function::Suite;
use atlas_runtime::problem::{Problem, in_time, of_refusals};
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{from_fn, map_response};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;

pub use prometheus::{CONTENT_TYPE as PROMETHEUS, exposition};

/// Makes a report and keeps it in the store. Its lag is logged, for alarms on log lines.
///
/// # Errors
/// What the store could not do.
pub async fn save_report(suite: &Suite) -> Result<Report> {
    let report = suite.engine.report(&suite.request.selection.key()).await?;
    suite.engine.keep_report(&report).await?;
    tracing::info!(
        lag_seconds = report.lag_seconds,
        slices_failed = report.slices.failed,
        slices_waiting = report.slices.waiting,
        stalled_slice_seconds = report.stalled_slice_seconds,
        quarantined = report.quarantined,
        unreadable_messages = report.unreadable_messages,
        "watermark report"
    );
    Ok(report)
}

/// `GET /api/watermark`.
pub fn router(suite: Arc<Lazy>) -> Router {
    Router::new()
        .route("/api/watermark", get(watermark))
        .layer(from_fn(in_time))
        .layer(map_response(of_refusals))
        .with_state(suite)
}

#[derive(Deserialize)]
struct Wanted {
    format: Option<String>,
}

async fn watermark(
    State(suite): State<Arc<Lazy>>,
    Query(wanted): Query<Wanted>,
) -> std::result::Result<Response, Problem> {
    let as_text = match wanted.format.as_deref() {
        None | Some("json") => false,
        Some("prometheus") => true,
        Some(_) => {
            return Err(Problem::bad_request("`format` is `json` or `prometheus`"));
        }
    };
    let suite = suite.get().await?;
    let report = suite.engine.report(&suite.request.selection.key()).await?;
    Ok(if as_text {
        ([(CONTENT_TYPE, PROMETHEUS)], exposition(&report)?).into_response()
    } else {
        Json(report).into_response()
    })
}
