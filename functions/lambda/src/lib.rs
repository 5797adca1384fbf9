//! What the Lambda programs share: an event with the time that is left for it, and requests to a Function URL as an axum
//! router understands them.

use std::time::Duration;

use atlas_openehr::time::Instant;
use atlas_runtime::problem::Problem;
use atlas_runtime::wiring::machine_time;
use aws_lambda_events::lambda_function_urls::LambdaFunctionUrlRequest;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, Uri};
use axum::response::IntoResponse as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::{Value, json};
use tower::ServiceExt as _;

pub use lambda_runtime::Error;

/// Lambda takes no larger answer.
const LARGEST_ANSWER: usize = 6 << 20;

/// One event.
#[derive(Debug)]
pub struct Event {
    /// As Lambda sent it.
    pub payload: Value,
    /// Until Lambda ends the process.
    pub left: Duration,
}

/// Handles events until Lambda ends the process. Whatever JSON comes in reaches the handler: an event of an unexpected shape
/// must not fail a whole batch.
///
/// # Errors
/// If the runtime API cannot be spoken to.
pub async fn serve<F, A>(handle: F) -> Result<(), Error>
where
    F: Fn(Event) -> A,
    A: Future<Output = Result<Value, Error>>,
{
    atlas_runtime::telemetry::init_function()?;
    lambda_runtime::run(service_fn(|event: LambdaEvent<Value>| {
        handle(Event {
            left: left(event.context.deadline),
            payload: event.payload,
        })
    }))
    .await
}

/// `deadline` in milliseconds since 1970, by the clock of this machine.
fn left(deadline: u64) -> Duration {
    Instant::EPOCH
        .saturating_add(Duration::from_millis(deadline))
        .duration_since(machine_time())
}

/// Whether an event is a request to a Function URL.
#[must_use]
pub fn is_request(payload: &Value) -> bool {
    payload.get("requestContext").is_some()
}

/// Answers a request to a Function URL. One that makes no sense is answered with 400: a function error would count as ours.
///
/// # Errors
/// If the answer is larger than Lambda takes.
pub async fn answer(router: Router, payload: Value) -> Result<Value, Error> {
    let event = serde_json::from_value(payload).map_err(Error::from);
    let response = match event.and_then(request) {
        Ok(request) => match router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        // The error can quote the request.
        Err(_) => Problem::bad_request("the event of the Function URL holds no HTTP request")
            .into_response(),
    };
    document(response).await
}

fn request(event: LambdaFunctionUrlRequest) -> Result<Request<Body>, Error> {
    let path = event.raw_path.unwrap_or_else(|| "/".to_owned());
    let uri: Uri = match event.raw_query_string.filter(|query| !query.is_empty()) {
        Some(query) => format!("{path}?{query}").parse()?,
        None => path.parse()?,
    };
    let body = match event.body {
        Some(body) if event.is_base64_encoded => Body::from(BASE64_STANDARD.decode(body)?),
        Some(body) => Body::from(body),
        None => Body::empty(),
    };
    let method = event
        .request_context
        .http
        .method
        .unwrap_or_else(|| "GET".to_owned());
    let mut request = Request::builder()
        .method(method.as_str())
        .uri(uri)
        .body(body)?;
    *request.headers_mut() = event.headers;
    Ok(request)
}

async fn document(response: Response<Body>) -> Result<Value, Error> {
    let (parts, body) = response.into_parts();
    let headers: serde_json::Map<String, Value> = parts
        .headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), json!(value.to_str().ok()?))))
        .collect();
    let body = to_bytes(body, LARGEST_ANSWER).await?;
    // What we answer is text; anything else would be a defect, and base64 carries that too.
    let (body, is_base64) = match std::str::from_utf8(&body) {
        Ok(text) => (text.to_owned(), false),
        Err(_) => (BASE64_STANDARD.encode(&body), true),
    };
    Ok(json!({
        "statusCode": parts.status.as_u16(),
        "headers": headers,
        "body": body,
        "isBase64Encoded": is_base64,
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use axum::extract::RawQuery;
    use axum::http::{HeaderMap, Method, StatusCode};
    use axum::routing::any;

    async fn echo(
        method: Method,
        headers: HeaderMap,
        RawQuery(query): RawQuery,
        body: String,
    ) -> (StatusCode, String) {
        let key = headers
            .get("idempotency-key")
            .map(|value| value.to_str().unwrap().to_owned());
        (
            StatusCode::ACCEPTED,
            format!("{method} {query:?} {key:?} {body}"),
        )
    }

    #[tokio::test]
    async fn a_request_to_a_function_url_reaches_the_router_with_all_its_parts() {
        let router = Router::new().route("/api/exports", any(echo));
        let payload = json!({
            "version": "2.0",
            "rawPath": "/api/exports",
            "rawQueryString": "a=1",
            "headers": { "idempotency-key": "k" },
            "requestContext": { "timeEpoch": 1, "http": { "method": "POST" } },
            "body": "e30=",
            "isBase64Encoded": true
        });
        assert!(is_request(&payload));
        let answer = answer(router, payload).await.unwrap();
        assert_eq!(answer["statusCode"], 202);
        assert_eq!(answer["body"], r#"POST Some("a=1") Some("k") {}"#);
        assert_eq!(answer["isBase64Encoded"], false);
        assert!(
            answer["headers"]["content-type"]
                .as_str()
                .unwrap()
                .starts_with("text/plain")
        );
    }

    #[tokio::test]
    async fn odd_requests_are_the_callers_fault() {
        let whole = json!({
            "rawPath": "/api/exports",
            "requestContext": { "http": { "method": "POST" } },
            "body": "{}",
            "isBase64Encoded": false
        });
        for (member, odd) in [
            ("/rawPath", json!("no path")),
            ("/rawPath", json!(7)),
            ("/requestContext", json!([])),
            ("/requestContext/http/method", json!("NO METHOD")),
            ("/body", json!({})),
            ("/isBase64Encoded", json!(true)),
            ("/isBase64Encoded", json!("yes")),
        ] {
            let mut payload = whole.clone();
            *payload.pointer_mut(member).unwrap() = odd.clone();
            let router = Router::new().route("/api/exports", any(echo));
            let answer = answer(router, payload).await.unwrap();
            assert_eq!(answer["statusCode"], 400, "{member} {odd}");
        }
    }
}
