//! The front end: HTTP triggers behind their keys, and the part of the admin interface that starts functions by hand.
//!
//! | path | key | what |
//! | --- | --- | --- |
//! | `/{routePrefix}/{route}` | by `authLevel` | the function of that route, as envelope, forwarded or proxied |
//! | `POST /admin/functions/{name}` | master | runs a timer or queue function now; `{"input": "…"}` |
//! | `GET /` | none | that the host is there |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::timeout;
use uuid::Uuid;

use super::app::{AuthLevel, Function, OutputKind, Trigger};
use super::history::{Outcome, Reason};
use super::instance::Instance;
use super::listener::send_outputs;
use super::wire::Key;
use super::{Inner, timer, wire};

/// Bytes of a request in an envelope, as in the real host.
const LARGEST: usize = 100 * 1024 * 1024;

pub(super) fn router(inner: Arc<Inner>) -> Router {
    Router::new()
        .route("/", get(|| async { "The Functions host is running.\n" }))
        .route("/admin/functions/{name}", post(admin))
        .fallback(trigger)
        .with_state(inner)
}

/// The key that a request came with.
fn key(inner: &Inner, headers: &HeaderMap, query: &[(String, String)]) -> Option<Key> {
    let in_query = || query.iter().rfind(|(name, _)| name == "code");
    let given = headers
        .get("x-functions-key")
        .and_then(|key| key.to_str().ok())
        .or_else(|| in_query().map(|(_, key)| key.as_str()))?;
    if given == inner.master_key {
        Some(Key::Master)
    } else {
        (given == inner.key).then_some(Key::Function)
    }
}

fn is_allowed(level: AuthLevel, key: Option<Key>) -> bool {
    match level {
        AuthLevel::Anonymous => true,
        AuthLevel::Function => key.is_some(),
        AuthLevel::Admin => key == Some(Key::Master),
    }
}

#[derive(Deserialize, Default)]
struct Input {
    #[serde(default)]
    input: String,
}

async fn admin(
    State(inner): State<Arc<Inner>>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !is_allowed(AuthLevel::Admin, key(&inner, &headers, &wire::query(&uri))) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some(place) = inner
        .app
        .functions
        .iter()
        .position(|function| function.name.eq_ignore_ascii_case(&name))
    else {
        return nothing_here(&inner);
    };
    let Ok(input) = (if body.is_empty() {
        Ok(Input::default())
    } else {
        serde_json::from_slice::<Input>(&body)
    }) else {
        return (
            StatusCode::BAD_REQUEST,
            "The content is not such as {\"input\": \"\"}.\n",
        )
            .into_response();
    };
    if let Trigger::Http { .. } = inner.app.functions[place].trigger {
        return (
            StatusCode::BAD_REQUEST,
            "A function with an HTTP trigger is started by its own route.\n",
        )
            .into_response();
    }
    tokio::spawn(async move {
        let function = &inner.app.functions[place];
        match &function.trigger {
            Trigger::Timer { .. } => drop(timer::by_hand(&inner, function).await),
            Trigger::Queue { name, .. } => by_hand(&inner, function, name, &input.input).await,
            Trigger::Http { .. } => {}
        }
    });
    StatusCode::ACCEPTED.into_response()
}

/// Runs a queue function on a text that lies in no queue.
async fn by_hand(inner: &Inner, function: &Function, binding: &str, text: &str) {
    let Some(instance) = inner.next() else {
        inner.history.note("no instance is left to run it");
        return;
    };
    let _work = inner.history.work();
    let begun = inner.history.begin(&function.name, instance.index);
    let body = wire::queue(function, binding, None, text, inner.encoding);
    let answer = instance
        .invoke(inner, &function.name, begun.id, &body)
        .await;
    let outcome = match answer {
        Ok(answer) => send_outputs(inner, &instance, function, &answer).await,
        Err(outcome) => outcome,
    };
    inner.history.end(begun, outcome);
}

/// A 404 that names what there is. The real host's is empty; here a person has mistyped something.
fn nothing_here(inner: &Inner) -> Response {
    let functions = inner.app.functions.iter();
    let addresses = functions.map(|function| match &function.trigger {
        Trigger::Http { route, methods, .. } => {
            let path = format!("/{}/{}", inner.app.prefix, route.text()).replace("//", "/");
            match methods.is_empty() {
                true => path,
                false => format!("{} {path}", methods.join("|")),
            }
        }
        _ => format!("POST /admin/functions/{}", function.name),
    });
    let there = addresses.collect::<Vec<_>>().join("\n  ");
    let text = format!("No function has this address and method. There are:\n  {there}\n");
    (StatusCode::NOT_FOUND, text).into_response()
}

/// The path behind the prefix, as it was typed.
fn route_path<'a>(prefix: &str, uri: &'a Uri) -> Option<&'a str> {
    let path = uri.path().strip_prefix('/')?;
    Some(if prefix.is_empty() {
        path
    } else {
        let (head, tail) = path.split_at_checked(prefix.len())?;
        if !head.eq_ignore_ascii_case(prefix) || !(tail.is_empty() || tail.starts_with('/')) {
            return None;
        }
        tail.strip_prefix('/').unwrap_or(tail)
    })
}

async fn trigger(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let Some(path) = route_path(&inner.app.prefix, request.uri()) else {
        return nothing_here(&inner);
    };
    let found = inner
        .app
        .functions
        .iter()
        .enumerate()
        .filter_map(|(place, function)| match &function.trigger {
            Trigger::Http {
                level,
                methods,
                route,
                ..
            } if methods.is_empty()
                || methods
                    .iter()
                    .any(|known| known == request.method().as_str()) =>
            {
                let parameters = route.matches(path)?;
                Some((route.weight(), place, *level, parameters))
            }
            _ => None,
        })
        .max_by_key(|(weight, ..)| *weight);
    let Some((_, place, level, parameters)) = found else {
        return nothing_here(&inner);
    };
    let query = wire::query(request.uri());
    let key = key(&inner, request.headers(), &query);
    if !is_allowed(level, key) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some(instance) = inner.next() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let (answer, answered) = oneshot::channel();
    let limit = inner.pace.http_limit;
    // A separate task, so that the function runs on when the load balancer or the caller gives up.
    tokio::spawn(async move {
        let _work = inner.history.work();
        let function = &inner.app.functions[place];
        let begun = inner.history.begin(&function.name, instance.index);
        let outcome = match inner.app.raw.filter(|_| function.only_http()) {
            Some(raw) => {
                instance
                    .forward(&inner, raw, begun.id, request, answer)
                    .await
            }
            None => {
                let call = Call {
                    inner: &inner,
                    instance: &instance,
                    function,
                    key,
                };
                let (outcome, response) = call.run(begun.id, request, &query, &parameters).await;
                let _ = answer.send(response);
                outcome
            }
        };
        inner.history.end(begun, outcome);
    });
    match timeout(limit, answered).await {
        Ok(Ok(response)) => response,
        // Dropped without an answer: the handler is gone, or was killed at functionTimeout.
        Ok(Err(_)) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Err(_) => StatusCode::GATEWAY_TIMEOUT.into_response(),
    }
}

/// An HTTP request on its way in an envelope.
struct Call<'a> {
    inner: &'a Inner,
    instance: &'a Instance,
    function: &'a Function,
    key: Option<Key>,
}

impl Call<'_> {
    async fn run(
        &self,
        id: Uuid,
        request: Request,
        query: &[(String, String)],
        parameters: &BTreeMap<String, Option<String>>,
    ) -> (Outcome, Response) {
        let failed = |outcome| (outcome, StatusCode::INTERNAL_SERVER_ERROR.into_response());
        let Trigger::Http { name, .. } = &self.function.trigger else {
            return failed(Outcome::Failed(Reason::Request));
        };
        let (parts, body) = request.into_parts();
        let Ok(content) = axum::body::to_bytes(body, LARGEST).await else {
            return (
                Outcome::Failed(Reason::Request),
                StatusCode::PAYLOAD_TOO_LARGE.into_response(),
            );
        };
        let host = parts
            .headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or("127.0.0.1");
        let sent = wire::Request {
            url: format!("http://{host}{}", parts.uri),
            method: parts.method.as_str(),
            query,
            headers: &parts.headers,
            parameters,
            key: self.key,
            body: &content,
        };
        let inner = self.inner;
        let envelope = wire::http(self.function, name, &sent, inner.encoding);
        let invoked = self
            .instance
            .invoke(inner, &self.function.name, id, &envelope);
        let answer = match invoked.await {
            Ok(answer) => answer,
            Err(outcome) => return failed(outcome),
        };
        let outcome = send_outputs(inner, self.instance, self.function, &answer).await;
        if outcome != Outcome::Succeeded {
            return failed(outcome);
        }
        let value = self
            .function
            .outputs
            .iter()
            .find(|output| matches!(output.kind, OutputKind::Http))
            .and_then(|output| answer.output(&output.name));
        let response = match value {
            Some(value) => response(wire::http_answer(value)),
            None => StatusCode::OK.into_response(),
        };
        (outcome, response)
    }
}

fn response((status, headers, content): (StatusCode, Vec<(String, String)>, Vec<u8>)) -> Response {
    let mut response = Response::new(Body::from(content));
    *response.status_mut() = status;
    for (name, value) in headers {
        // A header that HTTP cannot carry is left out, as the real host does.
        if let (Ok(name), Ok(value)) = (
            HeaderName::try_from(name.as_str()),
            HeaderValue::try_from(value.as_str()),
        ) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

impl Inner {
    /// The instance that gets the next request: in turn, those that are ready before those that start.
    pub(super) fn next(&self) -> Option<Arc<Instance>> {
        let instances = super::lock(&self.instances);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let pick = |usable: &dyn Fn(&Instance) -> bool| {
            let usable: Vec<_> = instances.iter().filter(|one| usable(one)).collect();
            let place = turn.checked_rem(usable.len())?;
            usable.get(place).map(|one| Arc::clone(one))
        };
        pick(&Instance::is_ready).or_else(|| pick(&|one| !one.is_down()))
    }

    /// The instance that holds the lock of the timers: the first one that is ready.
    pub(super) fn first(&self) -> Option<Arc<Instance>> {
        let instances = super::lock(&self.instances);
        instances
            .iter()
            .find(|one| one.is_ready())
            .or_else(|| instances.iter().find(|one| !one.is_down()))
            .cloned()
    }
}
