//! Function: watermark. How far the copy is: as JSON, for Prometheus, and kept in the store by a timer.

mod prometheus;

use std::sync::Arc;
use std::time::Duration;

use atlas_engine::Result;
use atlas_engine::suite::report::Report;
use atlas_runtime::function::Lazy;
use atlas_runtime::function::Suite;
use atlas_runtime::problem::{Problem, in_time, of_refusals, read_whole};
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{from_fn, map_response};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

pub use prometheus::{CONTENT_TYPE as PROMETHEUS, exposition};

/// Whoever asks for a report does not wait longer for a queue that does not answer.
const COUNT_LIMIT: Duration = Duration::from_secs(5);

/// How far the copy is, and what lies in the queues.
#[derive(Debug, Serialize)]
pub struct Watermark {
    /// By the records of the store.
    #[serde(flatten)]
    pub report: Report,
    /// By the queues.
    pub messages: Messages,
}

/// Messages in the queues, about: those in work and those not due yet included. `None` where there is no queue of a cloud, or it
/// could not be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Messages {
    /// In the queue of work.
    pub work: Option<u64>,
    /// Set aside after too many deliveries, or because the platform could not read them.
    pub dead: Option<u64>,
}

impl Watermark {
    /// Asks store and queues.
    ///
    /// # Errors
    /// What the store could not do. A queue that cannot be asked costs its number only.
    pub async fn of(suite: &Suite) -> Result<Self> {
        let key = suite.request.selection.key();
        let (report, messages) = tokio::join!(suite.engine.report(&key), Messages::of(suite));
        Ok(Self {
            report: report?,
            messages,
        })
    }
}

impl Messages {
    async fn of(suite: &Suite) -> Self {
        let unknown = Self {
            work: None,
            dead: None,
        };
        let Some(queues) = &suite.queues else {
            return unknown;
        };
        match timeout(COUNT_LIMIT, queues.count()).await {
            Ok((work, dead)) => Self {
                work: known(work),
                dead: known(dead),
            },
            Err(_) => {
                tracing::warn!(
                    "the queues did not say in {} s what lies in them",
                    COUNT_LIMIT.as_secs()
                );
                unknown
            }
        }
    }
}

fn known(count: Result<u64>) -> Option<u64> {
    count
        .inspect_err(|error| {
            tracing::warn!("a queue did not say what lies in it: {}", error.chain());
        })
        .ok()
}

/// Makes a report and keeps it in the store. Its lag is logged, for alarms on log lines.
///
/// # Errors
/// What the store could not do.
pub async fn save_report(suite: &Suite) -> Result<Watermark> {
    let made = Watermark::of(suite).await?;
    let report = &made.report;
    suite.engine.keep_report(report).await?;
    tracing::info!(
        lag_seconds = report.lag_seconds,
        slices_failed = report.slices.failed,
        slices_waiting = report.slices.waiting,
        stalled_slice_seconds = report.stalled_slice_seconds,
        quarantined = report.quarantined,
        unreadable_messages = report.unreadable_messages,
        unplanned_ticks = report.unplanned_ticks(),
        messages_waiting = made.messages.work,
        dead_letters = made.messages.dead,
        "watermark report"
    );
    Ok(made)
}

/// `GET /api/watermark`.
pub fn router(suite: Arc<Lazy>) -> Router {
    Router::new()
        .route("/api/watermark", get(watermark))
        .layer(from_fn(read_whole))
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
    let watermark = Watermark::of(suite).await?;
    Ok(if as_text {
        ([(CONTENT_TYPE, PROMETHEUS)], exposition(&watermark)?).into_response()
    } else {
        Json(watermark).into_response()
    })
}
