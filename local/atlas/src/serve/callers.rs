//! Who is let in: programs on this machine, or with the token; never a page in a browser.
//!
//! A page of anybody's can send requests to this machine, and the browser sends them from here. It cannot help saying so:
//!
//! | what a page can do | what gives it away |
//! |---|---|
//! | let its own name lead to 127.0.0.1 (DNS rebinding), and read the answers | `Host` is its name, not one of this machine |
//! | send a form, a `fetch` without an answer, an image from elsewhere | `Origin` or `Sec-Fetch-Site` |
//! | the same from a browser that sends neither | a `POST` without JSON's content type: with it, a browser asks first, and is answered 405 |

use std::net::IpAddr;
use std::sync::Arc;

use atlas_runtime::problem::Problem;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HOST, HeaderName, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// By which names this process may be called.
#[derive(Debug, Clone, Copy)]
pub(super) enum Names {
    /// Those of this machine, with this port: being here is all that lets a caller in.
    Loopback {
        /// Where it listens.
        port: u16,
    },
    /// Any: callers show a token, and a proxy may stand before it.
    Any,
}

/// A layer of everything that is answered.
pub(super) async fn no_pages(
    State(names): State<Arc<Names>>,
    request: Request,
    next: Next,
) -> Response {
    match check(*names, &request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn check(names: Names, request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    let hosts = hosts(request);
    if let Names::Loopback { port } = names {
        let is_ours =
            |host: &Option<Authority>| host.as_ref().is_some_and(|host| is_loopback(host, port));
        if hosts.is_empty() || !hosts.iter().all(is_ours) {
            return Err(Problem::new(
                StatusCode::MISDIRECTED_REQUEST,
                "This is not the host that was asked for",
                "`serve` without a token answers only requests to a name of this machine",
            )
            .fix(format!(
                "ask for http://127.0.0.1:{port}; behind a proxy with another name set `serve.token`"
            )));
        }
    }
    let is_same = |origin: &str| {
        let origin = origin
            .split_once("://")
            .filter(|(scheme, _)| matches!(*scheme, "http" | "https"));
        origin.is_some_and(|(_, origin)| {
            hosts
                .iter()
                .flatten()
                .any(|host| host.as_str().eq_ignore_ascii_case(origin))
        })
    };
    let of_same_origin = |value: &str| !matches!(value, "cross-site" | "same-site");
    if !all(headers, &ORIGIN, is_same) || !all(headers, &SEC_FETCH_SITE, of_same_origin) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "A page in a browser asks for this",
            "the request comes from a page of another origin",
        )
        .fix("ask from a program, such as curl"));
    }
    let says_json = headers.contains_key(CONTENT_TYPE) && all(headers, &CONTENT_TYPE, is_json);
    if request.method() == Method::POST && !says_json {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "The content type is missing or another one",
            "what is sent here is JSON, and says so; an empty body too",
        )
        .fix("send the header `Content-Type: application/json`"));
    }
    Ok(())
}

/// Every host that the request names; `None` is one that cannot be read.
fn hosts(request: &Request) -> Vec<Option<Authority>> {
    let in_headers = request.headers().get_all(HOST).iter().map(|host| {
        let host = host.to_str().ok()?;
        // A user name before it would be read as a part of the name.
        host.parse().ok().filter(|_| !host.contains('@'))
    });
    let in_address = request.uri().authority().cloned().map(Some);
    in_headers.chain(in_address).collect()
}

/// A port that is not given is the one that the caller has connected to anyway.
fn is_loopback(host: &Authority, port: u16) -> bool {
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    let is_here = match name.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    };
    let is_without_port = host.as_str().len() == host.host().len();
    is_here && (is_without_port || host.port_u16() == Some(port))
}

/// Whether all values of a header hold; true without any.
fn all(headers: &HeaderMap, name: &HeaderName, holds: impl Fn(&str) -> bool) -> bool {
    let mut values = headers.get_all(name).iter();
    values.all(|value| value.to_str().is_ok_and(&holds))
}

fn is_json(value: &str) -> bool {
    let kind = value.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::Body;

    use super::*;

    const HERE: Names = Names::Loopback { port: 8080 };
    const JSON: (&str, &str) = ("content-type", "application/json");

    fn asked(names: Names, method: &str, uri: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request = axum::http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match check(names, &request.body(Body::empty()).unwrap()) {
            Ok(()) => 200,
            Err(problem) => problem.into_response().status().as_u16(),
        }
    }

    #[test]
    fn only_names_of_this_machine_are_answered_without_a_token() {
        for (host, status) in [
            ("127.0.0.1:8080", 200),
            ("127.0.0.1", 200),
            ("127.9.9.9:8080", 200),
            ("localhost:8080", 200),
            ("LocalHost", 200),
            ("[::1]:8080", 200),
            ("[::ffff:127.0.0.1]:8080", 200),
            ("127.0.0.1:9999", 421),
            ("127.0.0.1:", 421),
            ("localhost:80", 421),
            ("evil.example:8080", 421),
            ("evil.example", 421),
            ("localhost.evil.example:8080", 421),
            ("127.0.0.1.evil.example", 421),
            ("127.0.0.1@evil.example", 421),
            ("evil.example@127.0.0.1:8080", 421),
            ("0.0.0.0:8080", 421),
            ("[::]:8080", 421),
            ("10.0.0.1:8080", 421),
            ("2130706433", 421),
            ("0177.0.0.1", 421),
            ("", 421),
            ("a b", 421),
        ] {
            assert_eq!(asked(HERE, "GET", "/", &[("host", host)]), status, "{host}");
            assert_eq!(
                asked(Names::Any, "GET", "/", &[("host", host)]),
                200,
                "{host}"
            );
        }
        assert_eq!(asked(HERE, "GET", "/", &[]), 421);
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(asked(HERE, "GET", "/", &two), 421);
        let here = [("host", "localhost")];
        assert_eq!(asked(HERE, "GET", "http://evil.example/", &here), 421);
        assert_eq!(asked(HERE, "GET", "http://localhost:8080/", &here), 200);
    }

    #[test]
    fn pages_of_other_origins_are_refused_whatever_they_ask() {
        let host = ("host", "127.0.0.1:8080");
        for names in [HERE, Names::Any] {
            for method in ["GET", "POST", "DELETE"] {
                for (origin, status) in [
                    ("http://127.0.0.1:8080", 200),
                    ("https://127.0.0.1:8080", 200),
                    ("null", 403),
                    ("", 403),
                    ("http://127.0.0.1", 403),
                    ("http://127.0.0.1:9999", 403),
                    ("http://localhost:8080", 403),
                    ("https://evil.example", 403),
                    ("http://127.0.0.1:8080.evil.example", 403),
                    ("http://evil.example/127.0.0.1:8080", 403),
                    ("file://127.0.0.1:8080", 403),
                    ("chrome-extension://127.0.0.1:8080", 403),
                ] {
                    let headers = [host, JSON, ("origin", origin)];
                    assert_eq!(asked(names, method, "/", &headers), status, "{origin}");
                }
                for (site, status) in [
                    ("none", 200),
                    ("same-origin", 200),
                    ("same-site", 403),
                    ("cross-site", 403),
                ] {
                    let headers = [host, JSON, ("sec-fetch-site", site)];
                    assert_eq!(asked(names, method, "/", &headers), status, "{site}");
                }
            }
            let two = [
                host,
                JSON,
                ("origin", "http://127.0.0.1:8080"),
                ("origin", "null"),
            ];
            assert_eq!(asked(names, "POST", "/", &two), 403);
        }
    }

    #[test]
    fn what_a_form_or_a_simple_request_can_send_starts_nothing() {
        let host = ("host", "localhost:8080");
        for names in [HERE, Names::Any] {
            for (kind, status) in [
                ("application/json", 200),
                ("Application/JSON; charset=utf-8", 200),
                ("text/plain", 415),
                ("text/plain;charset=UTF-8", 415),
                ("application/x-www-form-urlencoded", 415),
                ("multipart/form-data; boundary=a", 415),
                ("text/plain; application/json", 415),
                ("application/jsonx", 415),
                ("", 415),
            ] {
                let headers = [host, ("content-type", kind)];
                assert_eq!(asked(names, "POST", "/", &headers), status, "{kind}");
                assert_eq!(asked(names, "GET", "/", &headers), 200, "{kind}");
            }
            assert_eq!(asked(names, "POST", "/", &[host]), 415);
            let two = [host, JSON, ("content-type", "text/plain")];
            assert_eq!(asked(names, "POST", "/", &two), 415);
        }
    }
}
