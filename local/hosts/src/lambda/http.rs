//! Function URLs: `/{function}/…` on one loopback port becomes an event of version 2.0, and its answer a response.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::header::{CONTENT_TYPE, COOKIE, HOST, SET_COOKIE, USER_AGENT};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use uuid::Uuid;

use super::function::{Done, Function};
use super::history::Outcome;

/// Bytes of the longest request.
const MAX_REQUEST: usize = 6 * 1024 * 1024;

/// Between the prelude and the body of a streamed answer.
const STREAM_SEPARATOR: &[u8] = &[0; 8];

/// The functions that have a URL, by name.
#[derive(Clone)]
pub(super) struct Urls {
    pub(super) functions: Arc<BTreeMap<String, Arc<Function>>>,
    pub(super) limit: Duration,
}

/// Serves until the task is ended.
pub(super) async fn serve(listener: TcpListener, urls: Urls) {
    let routes = Router::new()
        .fallback(answer)
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(urls)
        .into_make_service_with_connect_info::<SocketAddr>();
    // Only ends with an error of the listener, which axum itself waits out.
    let _ = axum::serve(listener, routes).await;
}

async fn answer(
    State(urls): State<Urls>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().trim_start_matches('/');
    let (name, rest) = path.split_once('/').unwrap_or((path, ""));
    let Some(function) = urls.functions.get(name).cloned() else {
        // On AWS each function has a name of its own in the DNS. Here a person may have mistyped one.
        let names: Vec<String> = urls
            .functions
            .keys()
            .map(|name| format!("/{name}/"))
            .collect();
        let there = names.join(", ");
        return message(
            StatusCode::NOT_FOUND,
            &format!("no function has this address; those that have one are below {there}"),
        );
    };
    let raw_path = format!("/{rest}");
    let Ok(body) = axum::body::to_bytes(body, MAX_REQUEST).await else {
        return message(StatusCode::PAYLOAD_TOO_LARGE, "Request Too Long");
    };
    let id = Uuid::new_v4().to_string();
    let event = event(&id, name, &raw_path, &parts, from, &body);
    // The function goes on when the time for the response is over, as it does on AWS.
    match tokio::time::timeout(urls.limit, function.invoke(id, event.to_string().into())).await {
        Ok(done) => respond(done),
        Err(_) => message(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
    }
}

fn event(
    id: &str,
    function: &str,
    raw_path: &str,
    parts: &axum::http::request::Parts,
    from: SocketAddr,
    body: &Bytes,
) -> Value {
    let query = parts.uri.query().unwrap_or_default();
    let mut parameters: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        join(parameters.entry(name.into_owned()).or_default(), &value);
    }
    let mut headers: BTreeMap<&str, String> = BTreeMap::new();
    for (name, value) in &parts.headers {
        if name != COOKIE {
            join(headers.entry(name.as_str()).or_default(), &text(value));
        }
    }
    let cookies: Vec<String> = parts
        .headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|value| {
            let cookies = text(value);
            cookies
                .split(';')
                .map(|one| one.trim().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    let now = Timestamp::now();
    let header = |name| parts.headers.get(name).map(text).unwrap_or_default();
    let mut event = json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": raw_path,
        "rawQueryString": query,
        "headers": headers,
        "requestContext": {
            "accountId": "anonymous",
            "apiId": function,
            "domainName": header(HOST),
            "domainPrefix": function,
            "http": {
                "method": parts.method.as_str(),
                "path": raw_path,
                "protocol": "HTTP/1.1",
                "sourceIp": from.ip().to_string(),
                "userAgent": header(USER_AGENT),
            },
            "requestId": id,
            "routeKey": "$default",
            "stage": "$default",
            "time": now.strftime("%d/%b/%Y:%H:%M:%S +0000").to_string(),
            "timeEpoch": now.as_millisecond(),
        },
        "isBase64Encoded": false,
    });
    if !parameters.is_empty() {
        event["queryStringParameters"] = json!(parameters);
    }
    if !cookies.is_empty() {
        event["cookies"] = json!(cookies);
    }
    if !body.is_empty() {
        match std::str::from_utf8(body) {
            Ok(text) if is_text(&header(CONTENT_TYPE)) => event["body"] = text.into(),
            _ => {
                event["body"] = BASE64_STANDARD.encode(body).into();
                event["isBase64Encoded"] = true.into();
            }
        }
    }
    event
}

/// Several values of one name become one, with commas.
fn join(all: &mut String, one: &str) {
    if !all.is_empty() {
        all.push(',');
    }
    all.push_str(one);
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// Whether a body of this type is handed on as text; all others are base64.
fn is_text(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.starts_with("text/")
        || essence.ends_with("+json")
        || essence.ends_with("+xml")
        || [
            "application/json",
            "application/xml",
            "application/javascript",
        ]
        .contains(&essence)
}

fn respond(done: Done) -> Response {
    let answer = match (done.invocation.outcome, done.invocation.answer) {
        (Outcome::Succeeded, Some(answer)) => answer,
        _ => return message(StatusCode::BAD_GATEWAY, "Internal Server Error"),
    };
    let response = if done.content_type == "application/vnd.awslambda.http-integration-response" {
        streamed(&answer)
    } else {
        buffered(answer)
    };
    response.unwrap_or_else(|| message(StatusCode::BAD_GATEWAY, "Internal Server Error"))
}

/// JSON with a status code says all of a response; anything else is the body of a good one.
fn buffered(answer: Bytes) -> Option<Response> {
    let value: Value = serde_json::from_slice(&answer).ok()?;
    let Some(members) = value
        .as_object()
        .filter(|value| value.contains_key("statusCode"))
    else {
        let json = (CONTENT_TYPE, "application/json");
        return Some(([json], answer).into_response());
    };
    let body = match &members.get("body") {
        None | Some(Value::Null) => Bytes::new(),
        Some(Value::String(body)) if members.get("isBase64Encoded") == Some(&Value::Bool(true)) => {
            BASE64_STANDARD.decode(body).ok()?.into()
        }
        Some(Value::String(body)) => Bytes::from(body.clone()),
        Some(_) => return None,
    };
    response(members, body, "application/json")
}

/// A prelude like a buffered answer, then the body as it is.
fn streamed(answer: &Bytes) -> Option<Response> {
    let end = answer
        .windows(STREAM_SEPARATOR.len())
        .position(|window| window == STREAM_SEPARATOR)?;
    let prelude: Value = serde_json::from_slice(&answer[..end]).ok()?;
    let body = answer.slice(end + STREAM_SEPARATOR.len()..);
    response(prelude.as_object()?, body, "application/octet-stream")
}

fn response(
    members: &Map<String, Value>,
    body: Bytes,
    default_type: &'static str,
) -> Option<Response> {
    let status = match members.get("statusCode")? {
        Value::Number(status) => status.as_u64()?,
        Value::String(status) => status.parse().ok()?,
        _ => return None,
    };
    let mut headers = HeaderMap::new();
    for (name, value) in members
        .get("headers")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let value = match value {
            Value::String(value) => value.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => return None,
        };
        let name: HeaderName = name.parse().ok()?;
        headers.append(name, value.parse().ok()?);
    }
    for cookie in members
        .get("cookies")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        headers.append(SET_COOKIE, cookie.as_str()?.parse().ok()?);
    }
    headers
        .entry(CONTENT_TYPE)
        .or_insert(HeaderValue::from_static(default_type));
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(u16::try_from(status).ok()?).ok()?;
    *response.headers_mut() = headers;
    Some(response)
}

fn message(status: StatusCode, text: &str) -> Response {
    (status, axum::Json(json!({"Message": text}))).into_response()
}
