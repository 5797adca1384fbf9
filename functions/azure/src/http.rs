//! HTTP as the Functions host brings it: forwarded as the caller typed it, or wrapped in an envelope by a host that knows neither
//! flag of `host.json`. Both reach the same routes as a plain request.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Json, State};
use axum::http::header::{CONTENT_LENGTH, HOST};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::envelope::Envelope;

/// The name of the output of our HTTP functions, as `function.json` has it.
const OUTPUT: &str = "response";
/// Every answer is written by us, and none comes near.
const LARGEST_ANSWER: usize = 64 << 20;
/// Segments of a path before what is an id: the host matches them without regard to case.
const NAMES: usize = 2;
/// The secret of a caller, which nothing here needs.
const KEY: &str = "x-functions-key";

/// The request that a caller meant: the host finds routes whatever the case of their letters and with a slash at the end, and
/// passes the path on as it was typed.
pub(crate) fn as_meant<B>(mut request: Request<B>) -> Request<B> {
    request.headers_mut().remove(KEY);
    let path = plain(request.uri().path());
    if path != request.uri().path() {
        let query = request.uri().query();
        let full = query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
        if let Ok(path) = full.parse::<PathAndQuery>() {
            let mut parts = request.uri().clone().into_parts();
            parts.path_and_query = Some(path);
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
    request
}

fn plain(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let segments = path.trim_matches('/').split('/');
    for (place, segment) in segments.enumerate() {
        plain.push('/');
        if place < NAMES {
            plain.push_str(&segment.to_ascii_lowercase());
        } else {
            plain.push_str(segment);
        }
    }
    plain
}

/// Unwraps a request, has it answered by the API, and wraps the answer.
pub(crate) async fn wrapped(State(api): State<Router>, Json(envelope): Json<Envelope>) -> Response {
    let response = match request(&envelope) {
        Some(request) => match api.oneshot(as_meant(request)).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        None => StatusCode::BAD_REQUEST.into_response(),
    };
    let (parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, LARGEST_ANSWER).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let headers = parts.headers.iter().filter_map(|(name, value)| {
        let value = value.to_str().ok()?;
        Some((name.as_str().to_owned(), json!(value)))
    });
    let answer = json!({
        "statusCode": parts.status.as_u16(),
        "headers": headers.collect::<serde_json::Map<_, _>>(),
        "body": String::from_utf8_lossy(&body),
    });
    Json(json!({ "Outputs": { OUTPUT: answer }, "Logs": [], "ReturnValue": null })).into_response()
}

/// The request in an envelope; `None` if there is none.
fn request(envelope: &Envelope) -> Option<Request<Body>> {
    let wrapped = envelope.value()?;
    let text = |name: &str| wrapped.get(name).and_then(Value::as_str);
    let url: Uri = text("Url")?.parse().ok()?;
    let method: Method = text("Method")?.parse().ok()?;
    let body = match wrapped.get("Body") {
        None | Some(Value::Null) => Body::empty(),
        Some(Value::String(text)) => Body::from(text.clone()),
        Some(other) => Body::from(other.to_string()),
    };
    let mut request = Request::builder()
        .method(method)
        .uri(url.path_and_query()?.clone())
        .body(body)
        .ok()?;
    *request.headers_mut() = headers(wrapped.get("Headers"));
    Some(request)
}

/// Without those that speak of the envelope's own transport.
fn headers(wrapped: Option<&Value>) -> HeaderMap {
    let members = wrapped.and_then(Value::as_object).into_iter().flatten();
    let all = members.flat_map(|(name, values)| {
        let values = values
            .as_array()
            .map_or(std::slice::from_ref(values), Vec::as_slice);
        values.iter().filter_map(move |value| {
            let name = HeaderName::try_from(name.as_str()).ok()?;
            Some((name, HeaderValue::from_str(value.as_str()?).ok()?))
        })
    });
    all.filter(|(name, _)| *name != HOST && *name != CONTENT_LENGTH)
        .fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_as_they_were_meant() {
        for (typed, meant) in [
            ("/api/exports", "/api/exports"),
            ("/API/Exports/Run-A", "/api/exports/Run-A"),
            ("/api/exports/", "/api/exports"),
            ("/Api/Watermark/", "/api/watermark"),
            ("/api/exports/abc%2Fd", "/api/exports/abc%2Fd"),
            ("/", "/"),
            ("/worker", "/worker"),
        ] {
            assert_eq!(plain(typed), meant, "{typed}");
        }
    }
}
