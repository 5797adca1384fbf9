//! What `serve` answers, to callers that [`callers`](super::callers) lets in.
//!
//! | request | answer |
//! |---|---|
//! | `/api/exports…`, `/api/watermark` | the functions' own; with `serve.token`, only to callers that show it |
//! | `GET /healthz` | 200 while the process can serve |
//! | `GET /readyz` | 200 while the store answers, else 503 |

use std::sync::Arc;
use std::time::Duration;

use atlas_runtime::function::{Lazy, Suite};
use atlas_runtime::problem::{LargestBody, Problem};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Extension, Router};
use secrecy::{ExposeSecret as _, SecretString};
use subtle::ConstantTimeEq as _;
use tokio::time::timeout;

use super::callers::{Names, no_pages};

/// Whoever asks whether the process is ready waits no longer.
const READY_WITHIN: Duration = Duration::from_secs(3);

/// Longest body that is read, in bytes: no request of the API takes more.
const LARGEST_BODY: usize = 1 << 20;

/// `port`: where it listens.
pub(super) fn router(suite: &Arc<Suite>, port: u16) -> Router {
    let lazy = Arc::new(Lazy::from(Arc::clone(suite)));
    let api = atlas_export::router(Arc::clone(&lazy))
        .merge(atlas_watermark::router(lazy))
        .fallback(nothing_here);
    let (api, names) = match suite.settings.serve.token.clone() {
        Some(token) => (
            api.layer(from_fn_with_state(Arc::new(token), guard)),
            Names::Any,
        ),
        None => (api, Names::Loopback { port }),
    };
    Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .with_state(Arc::clone(suite))
        .merge(api)
        .layer(Extension(LargestBody(LARGEST_BODY)))
        .layer(from_fn_with_state(Arc::new(names), no_pages))
}

async fn ready(State(suite): State<Arc<Suite>>) -> Result<&'static str, Problem> {
    let why = match timeout(READY_WITHIN, suite.engine.store.ledger().runs(1)).await {
        Ok(Ok(_)) => return Ok("ready\n"),
        Ok(Err(error)) => {
            tracing::warn!("not ready: {}", error.chain());
            // Its causes can quote addresses: they are in the log.
            error.to_string()
        }
        Err(_) => format!("no answer within {} s", READY_WITHIN.as_secs()),
    };
    let title = "The store does not answer";
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, title, why)
        .fix("the log says why; work goes on by itself when the store is back"))
}

async fn nothing_here() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "There is nothing here",
        "Atlas serves /api/exports, /api/watermark, /healthz and /readyz",
    )
}

async fn guard(
    State(token): State<Arc<SecretString>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    if shows(&headers, &token) {
        return next.run(request).await;
    }
    let problem = Problem::new(
        StatusCode::UNAUTHORIZED,
        "The token is missing or wrong",
        "this is answered only to callers that show the token of this installation",
    )
    .fix("send `Authorization: Bearer …` with the value of `serve.token`");
    ([(WWW_AUTHENTICATE, "Bearer realm=\"atlas\"")], problem).into_response()
}

/// How long the comparison takes tells the length of the token at most.
fn shows(headers: &HeaderMap, token: &SecretString) -> bool {
    let shown = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let expected = token.expose_secret().trim().as_bytes();
    shown.is_some_and(|(_, shown)| shown.trim().as_bytes().ct_eq(expected).into())
}
