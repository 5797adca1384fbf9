//! What the Lambda programs share: an event with the time that is left for it, and requests to a Function URL as an axum
//! router understands them.

use std::time::Duration;

use atlas_openehr::time::Instant;
use atlas_runtime::problem::Problem;
use atlas_runtime::wiring::machine_time;
use aws_lambda_events::lambda_function_urls::LambdaFunctionUrlResponse;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::HOST;
use axum::http::uri::PathAndQuery;
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lambda_http::request::LambdaRequest;
use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::{Value, json};
use tower::ServiceExt as _;

pub use lambda_runtime::Error;

/// Lambda takes no larger answer.
const LARGEST_ANSWER: usize = 6 << 20;
/// Path and query of a request, in bytes. Escaped, they stay below what an address may have.
const LONGEST_ADDRESS: usize = 16 << 10;
/// Members of events that stand for HTTP, whole or not.
const MEMBERS: [&str; 6] = [
    "requestContext",
    "rawPath",
    "rawQueryString",
    "routeKey",
    "httpMethod",
    "isBase64Encoded",
];

/// An event that is no request, for a function that answers nothing else.
#[derive(Debug, thiserror::Error)]
#[error(
    "the event is no HTTP request: this function answers requests to its Function URL, and nothing else"
)]
struct NoRequest;

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

/// Whether an event is a request over HTTP: one that has a member which only such an event has.
#[must_use]
pub fn is_request(payload: &Value) -> bool {
    MEMBERS.iter().any(|name| payload.get(name).is_some())
}

/// Answers a request to a Function URL. One that makes no sense is answered with 400 or 414: a function error would count as ours.
///
/// # Errors
/// If the event is no request at all, or the answer is larger than Lambda takes.
pub async fn answer(router: Router, payload: Value) -> Result<Value, Error> {
    if !is_request(&payload) {
        return Err(NoRequest.into());
    }
    let response = match request(&payload) {
        Ok(request) => match router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        Err(problem) => problem.into_response(),
    };
    document(response).await
}

/// The request of an event. `lambda_http` panics at what it takes for granted (a path, an address that can be parsed, base64), so
/// that is looked at first.
fn request(payload: &Value) -> Result<Request<Body>, Problem> {
    // Errors can quote the request.
    let odd = |_| Problem::bad_request("the event of the Function URL holds no HTTP request");
    let event = serde_json::from_str(&payload.to_string()).map_err(odd)?;
    let LambdaRequest::ApiGatewayV2(mut event) = event else {
        return Err(Problem::bad_request(
            "the event has another form than that of a Function URL",
        ));
    };
    // An empty one would be taken for GET.
    let method = payload.pointer("/requestContext/http/method");
    if method.and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(Problem::bad_request("the request has no method"));
    }
    let path = event.raw_path.as_deref().unwrap_or_default();
    let query = event.raw_query_string.as_deref().unwrap_or_default();
    if path.len() + query.len() > LONGEST_ADDRESS {
        return Err(Problem::new(
            StatusCode::URI_TOO_LONG,
            "The address is too long",
            format!("path and query have at most {LONGEST_ADDRESS} bytes here"),
        ));
    }
    if !path.starts_with('/') || format!("/?{query}").parse::<PathAndQuery>().is_err() {
        return Err(Problem::bad_request("path or query is no part of a URL"));
    }
    let body = event.body.as_deref().unwrap_or_default();
    if event.is_base64_encoded && BASE64_STANDARD.decode(body).is_err() {
        return Err(Problem::bad_request("the body is not base64"));
    }
    // An address is made of the path alone then: a host cannot spoil it, and no route looks at it. The one stage of a Function URL
    // stands in no path.
    event.headers.remove(HOST);
    event.request_context.domain_name = None;
    event.request_context.stage = None;
    let request: lambda_http::Request = LambdaRequest::ApiGatewayV2(event).into();
    Ok(request.map(Body::new))
}

async fn document(response: Response<Body>) -> Result<Value, Error> {
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, LARGEST_ANSWER).await?;
    let mut answer = LambdaFunctionUrlResponse::default();
    answer.status_code = i64::from(parts.status.as_u16());
    answer.headers = parts.headers;
    // What we answer is text; anything else would be a defect, and base64 carries that too.
    answer.is_base64_encoded = std::str::from_utf8(&body).is_err();
    answer.body = Some(match String::from_utf8(body.into()) {
        Ok(text) => text,
        Err(other) => BASE64_STANDARD.encode(other.as_bytes()),
    });
    Ok(json!(answer))
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

    fn whole() -> Value {
        json!({
            "rawPath": "/api/exports",
            "requestContext": { "http": { "method": "POST" } },
            "body": "{}",
            "isBase64Encoded": false
        })
    }

    async fn answered(payload: Value) -> Value {
        let router = Router::new().route("/api/exports", any(echo));
        answer(router, payload).await.unwrap()
    }

    #[tokio::test]
    async fn odd_requests_are_the_callers_fault() {
        for (member, odd) in [
            ("/rawPath", json!("no path")),
            ("/rawPath", json!("")),
            ("/rawPath", json!(null)),
            ("/rawPath", json!(7)),
            ("/rawPath", json!("https://elsewhere/api/exports")),
            ("/requestContext", json!([])),
            ("/requestContext", json!(null)),
            ("/requestContext", json!({})),
            ("/requestContext/http", json!(null)),
            ("/requestContext/http", json!({})),
            ("/requestContext/http/method", json!("NO METHOD")),
            ("/requestContext/http/method", json!("")),
            ("/requestContext/http/method", json!(7)),
            ("/body", json!({})),
            ("/isBase64Encoded", json!(true)),
            ("/isBase64Encoded", json!("yes")),
        ] {
            let mut payload = whole();
            *payload.pointer_mut(member).unwrap() = odd.clone();
            let answer = answered(payload).await;
            assert_eq!(answer["statusCode"], 400, "{member} {odd}");
            let mut payload = whole();
            let (parent, name) = member.rsplit_once('/').unwrap();
            let parent = payload.pointer_mut(parent).unwrap();
            parent.as_object_mut().unwrap().remove(name);
            let expected = match member {
                "/body" | "/isBase64Encoded" => 202,
                _ => 400,
            };
            let answer = answered(payload).await;
            assert_eq!(answer["statusCode"], expected, "without {member}");
        }
    }

    #[tokio::test]
    async fn odd_bodies_queries_and_headers_are_the_callers_fault() {
        for (odd, expected) in [
            (json!({ "body": "%%%", "isBase64Encoded": true }), 400),
            (json!({ "body": "e30", "isBase64Encoded": true }), 400),
            (json!({ "body": "e30=", "isBase64Encoded": true }), 202),
            (json!({ "body": "", "isBase64Encoded": true }), 202),
            (json!({ "body": null, "isBase64Encoded": true }), 202),
            (json!({ "rawQueryString": "a=b c" }), 400),
            (json!({ "rawQueryString": "a=%zz&&=" }), 202),
            (json!({ "rawQueryString": 7 }), 400),
            (json!({ "rawQueryString": "a".repeat(20_000) }), 414),
            (json!({ "rawPath": format!("/{}", "é".repeat(7_000)) }), 404),
            (json!({ "rawPath": format!("/{}", "é".repeat(9_000)) }), 414),
            (json!({ "headers": { "a b": "c" } }), 400),
            (
                json!({ "headers": { "host": "a b", "x-forwarded-proto": "::" } }),
                202,
            ),
            (json!({ "headers": null }), 202),
            (json!({ "cookies": ["a=1", "b=\u{0}"] }), 202),
            (json!({ "cookies": 7 }), 400),
        ] {
            let mut payload = whole();
            for (name, value) in odd.as_object().unwrap() {
                payload[name] = value.clone();
            }
            let answer = answered(payload).await;
            assert_eq!(answer["statusCode"], expected, "{odd:.80}");
        }
        for of_context in [
            json!({ "domainName": "no host", "stage": "$default" }),
            json!({ "stage": "a?b#c" }),
            json!({ "stage": "x".repeat(70_000) }),
        ] {
            let mut payload = whole();
            for (name, value) in of_context.as_object().unwrap() {
                payload["requestContext"][name] = value.clone();
            }
            assert_eq!(answered(payload).await["statusCode"], 202);
        }
    }

    #[tokio::test]
    async fn any_character_in_a_path_is_answered() {
        for code in (0..=0x2ff).chain([0x2028, 0xfffd, 0x1f600]) {
            let Some(character) = char::from_u32(code) else {
                continue;
            };
            let mut payload = whole();
            payload["rawPath"] = json!(format!("/api/exports/{character}"));
            let status = answered(payload).await["statusCode"].as_u64().unwrap();
            let is_slash = matches!(character, '/' | '\\');
            assert!(
                status == 404 || is_slash || status == 202,
                "{code:x} {status}"
            );
        }
    }

    #[tokio::test]
    async fn a_method_that_nobody_knows_is_not_allowed() {
        let router = || Router::new().route("/api/exports", axum::routing::get(|| async {}));
        for method in ["BREW", "PUT", "post"] {
            let mut payload = whole();
            payload["requestContext"]["http"]["method"] = json!(method);
            let answer = answer(router(), payload).await.unwrap();
            assert_eq!(answer["statusCode"], 405, "{method}");
        }
    }

    #[tokio::test]
    async fn what_is_no_request_is_an_error_that_says_so() {
        for payload in [
            json!(null),
            json!([]),
            json!("x"),
            json!(7),
            json!({}),
            json!({ "atlas": "report", "scheduled": "2026-11-27T15:00:00Z" }),
            json!({ "Records": [{ "messageId": "a", "body": "{}" }] }),
            json!({ "version": "0", "detail-type": "Scheduled Event", "detail": {} }),
        ] {
            assert!(!is_request(&payload), "{payload}");
            let error = answer(Router::new(), payload.clone()).await.unwrap_err();
            assert!(error.to_string().contains("no HTTP request"), "{payload}");
        }
    }
}
