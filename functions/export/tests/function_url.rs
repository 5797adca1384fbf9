//! The shipped export program of Lambda is sent requests to its Function URL as AWS sends them, and odd ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::time::Duration;

use atlas_emulators::{Invoked, Lambda};
use serde_json::{Value, json};

const EXPORT: &str = env!("CARGO_BIN_EXE_atlas-lambda-export");
const LEFT: Duration = Duration::from_secs(30);

/// As AWS documents it.
fn event(method: &str, path: &str) -> Value {
    json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {
            "content-type": "application/json",
            "host": "abc.lambda-url.eu-central-1.on.aws",
            "x-forwarded-proto": "https",
            "x-forwarded-port": "443"
        },
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "abc",
            "authorizer": { "iam": { "accessKey": "AKIA", "accountId": "123456789012", "callerId": "AIDA", "cognitoIdentity": null, "principalOrgId": null, "userArn": "arn", "userId": "AIDA" } },
            "domainName": "abc.lambda-url.eu-central-1.on.aws",
            "domainPrefix": "abc",
            "http": { "method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "10.0.0.1", "userAgent": "curl" },
            "requestId": "id",
            "routeKey": "$default",
            "stage": "$default",
            "time": "27/Nov/2026:15:00:00 +0000",
            "timeEpoch": 1_795_791_600_000_u64
        },
        "isBase64Encoded": false
    })
}

fn with(mut event: Value, changes: &[(&str, Value)]) -> Value {
    for (pointer, value) in changes {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        event.pointer_mut(parent).unwrap()[name] = value.clone();
    }
    event
}

fn without(mut event: Value, pointer: &str) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = event.pointer_mut(parent).unwrap();
    parent.as_object_mut().unwrap().remove(name);
    event
}

struct Export {
    program: Lambda,
    _folder: tempfile::TempDir,
}

impl Export {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("copy.db");
        let store = store.to_str().unwrap();
        let variables = [
            (
                "ATLAS_QUEUE_URL",
                "http://127.0.0.1:9/123456789012/export-work",
            ),
            ("ATLAS_OPENEHR_BASE_URL", "http://127.0.0.1:9/ehrbase"),
            ("ATLAS_SQLITE_PATH", store),
        ];
        Self {
            program: Lambda::start(Path::new(EXPORT), &variables).await.unwrap(),
            _folder: folder,
        }
    }

    async fn status(&mut self, event: Value) -> u64 {
        let invoked = self.program.invoke(event.clone(), LEFT).await.unwrap();
        let Invoked::Response(answer) = invoked else {
            panic!("{invoked:?} {event}");
        };
        let kind = answer["headers"]["content-type"].as_str().unwrap();
        assert_eq!(kind, "application/problem+json", "{event}");
        assert_eq!(answer["isBase64Encoded"], false, "{event}");
        let problem: Value = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
        assert_eq!(problem["status"], answer["statusCode"], "{event}");
        answer["statusCode"].as_u64().unwrap()
    }
}

#[tokio::test]
async fn requests_are_answered_and_odd_ones_are_the_callers_fault() {
    let mut export = Export::start().await;
    let run = || event("GET", "/api/exports/none");
    let ask = || event("POST", "/api/exports");
    for (event, expected) in [
        (run(), 404),
        (event("GET", "/api/exports/a%2Fb%20c"), 404),
        (event("GET", "/api/exports/a b"), 404),
        (event("GET", "/api/exports/\u{e4}"), 404),
        (event("GET", "/"), 404),
        (event("PUT", "/api/exports/none"), 405),
        (event("BREW", "/api/exports/none"), 405),
        (with(ask(), &[("/body", json!("nonsense"))]), 400),
        (
            with(
                ask(),
                &[("/body", json!("%%%")), ("/isBase64Encoded", json!(true))],
            ),
            400,
        ),
        (
            with(
                ask(),
                &[("/body", json!("e30")), ("/isBase64Encoded", json!(true))],
            ),
            400,
        ),
        (
            with(
                ask(),
                &[
                    ("/body", json!("bm9uc2Vuc2U=")),
                    ("/isBase64Encoded", json!(true)),
                ],
            ),
            400,
        ),
        (with(ask(), &[("/body", json!("x".repeat(2 << 20)))]), 413),
        (with(ask(), &[("/body", json!({}))]), 400),
        (with(run(), &[("/rawQueryString", json!("a=b c"))]), 400),
        (with(run(), &[("/rawQueryString", json!("a=b&a=%zz"))]), 404),
        (with(run(), &[("/rawPath", json!(null))]), 400),
        (with(run(), &[("/rawPath", json!("none"))]), 400),
        (with(run(), &[("/rawPath", json!("/".repeat(20_000)))]), 414),
        (
            with(
                run(),
                &[("/requestContext/http/method", json!("NO METHOD"))],
            ),
            400,
        ),
        (with(run(), &[("/requestContext/http", json!(null))]), 400),
        (with(run(), &[("/requestContext", json!(null))]), 400),
        (with(run(), &[("/requestContext", json!({}))]), 400),
        (with(run(), &[("/headers/host", json!("no host"))]), 404),
        (
            with(run(), &[("/headers/x-forwarded-proto", json!("::"))]),
            404,
        ),
        (without(run(), "/rawPath"), 400),
        (without(run(), "/requestContext"), 400),
        (without(run(), "/requestContext/http"), 400),
        (without(run(), "/requestContext/http/method"), 400),
        (without(run(), "/headers"), 404),
        (without(run(), "/rawQueryString"), 404),
        (without(run(), "/isBase64Encoded"), 404),
        // The form of API Gateway's first version.
        (
            json!({ "version": "1.0", "httpMethod": "GET", "path": "/api/exports/x", "requestContext": { "http": null } }),
            400,
        ),
    ] {
        let what = format!("{event:.300}");
        assert_eq!(export.status(event).await, expected, "{what}");
    }
}

#[tokio::test]
async fn what_is_no_request_is_a_function_error_that_says_so() {
    let mut export = Export::start().await;
    for event in [
        json!({}),
        json!(null),
        json!([]),
        json!("x"),
        json!(7),
        json!({ "atlas": "report", "scheduled": "2026-11-27T15:00:00Z" }),
        json!({ "Records": [] }),
    ] {
        let invoked = export.program.invoke(event.clone(), LEFT).await.unwrap();
        let Invoked::Error(error) = invoked else {
            panic!("{invoked:?} {event}");
        };
        let message = error["errorMessage"].as_str().unwrap();
        assert!(message.contains("no HTTP request"), "{message}");
    }
}
