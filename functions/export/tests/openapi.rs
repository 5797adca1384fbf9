//! The description of the API and what its routers answer are held together: every operation is driven to every status that
//! it is said to have, and every answer is held against its schema, with no member more and none less.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use atlas_engine::local::LocalQueue;
use atlas_engine::ports::Queue;
use atlas_engine::work::Budget;
use atlas_openehr::time::Instant;
use atlas_runtime::function::{Lazy, Suite};
use atlas_runtime::{Environment, Settings};
use atlas_sample_cdr::{Running, SampleCdr};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// Answered before a request reaches these routers.
const BY_SERVE: u64 = 401;

/// The description, and which of its statuses were seen.
struct Described {
    document: Value,
    seen: BTreeSet<(String, String, u64)>,
}

impl Described {
    fn new() -> Self {
        Self {
            document: serde_json::from_str(atlas_export::OPENAPI).unwrap(),
            seen: BTreeSet::new(),
        }
    }

    /// Follows `$ref`.
    fn resolved(&self, value: &Value) -> Value {
        match value["$ref"].as_str() {
            Some(reference) => {
                let pointer = reference.strip_prefix('#').unwrap();
                let target = self.document.pointer(pointer);
                self.resolved(target.unwrap_or_else(|| panic!("nothing at {reference}")))
            }
            None => value.clone(),
        }
    }

    /// The same schema without references, which allows only the members that it names.
    fn strict(&self, schema: &Value, is_part: bool) -> Value {
        let mut schema = self.resolved(schema);
        if let Some(properties) = schema.get_mut("properties") {
            for property in properties.as_object_mut().unwrap().values_mut() {
                *property = self.strict(property, false);
            }
        }
        if let Some(items) = schema.get("items") {
            schema["items"] = self.strict(items, false);
        }
        if let Some(parts) = schema.get("allOf") {
            let parts = parts.as_array().unwrap();
            let parts: Vec<Value> = parts.iter().map(|part| self.strict(part, true)).collect();
            schema["allOf"] = json!(parts);
        }
        let has_members = schema.get("properties").is_some() || schema.get("allOf").is_some();
        if has_members && !is_part {
            schema["unevaluatedProperties"] = json!(false);
        }
        schema
    }

    /// Every operation with its path and method.
    fn operations(&self) -> Vec<(String, String, Value)> {
        let paths = self.document["paths"].as_object().unwrap();
        let mut operations = Vec::new();
        for (path, item) in paths {
            for (method, operation) in item.as_object().unwrap() {
                if method != "parameters" {
                    operations.push((path.clone(), method.clone(), operation.clone()));
                }
            }
        }
        operations
    }

    /// Sends a request to an operation, and holds the answer against what is said of it.
    async fn call(&mut self, router: &Router, path: &str, request: Request<Body>) -> (u64, Value) {
        let method = request.method().as_str().to_lowercase();
        let answer = router.clone().oneshot(request).await.unwrap();
        let status = u64::from(answer.status().as_u16());
        let what = format!("{method} {path} {status}");
        let response = &self.document["paths"][path][&method]["responses"][status.to_string()];
        assert!(response.is_object(), "{what} is not described");
        let response = self.resolved(response);
        let headers = response.get("headers").and_then(Value::as_object);
        for name in headers.into_iter().flat_map(|headers| headers.keys()) {
            assert!(
                answer.headers().contains_key(name.as_str()),
                "{what}: no {name}"
            );
        }
        let kind = answer.headers()["content-type"].to_str().unwrap();
        let kind = kind.split(';').next().unwrap().to_owned();
        let schema = &response["content"][&kind]["schema"];
        assert!(schema.is_object(), "{what}: {kind} is not described");
        let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        let document = if kind.ends_with("json") {
            serde_json::from_slice(&body).unwrap()
        } else {
            json!(String::from_utf8(body.to_vec()).unwrap())
        };
        let validator = jsonschema::options()
            .should_validate_formats(true)
            .build(&self.strict(schema, false))
            .unwrap();
        let wrong: Vec<String> = validator
            .iter_errors(&document)
            .map(|error| format!("{} at {}", error, error.instance_path()))
            .collect();
        assert!(wrong.is_empty(), "{what}: {wrong:#?}\n{document:#}");
        self.seen.insert((path.to_owned(), method, status));
        (status, document)
    }
}

struct Api {
    suite: Arc<Suite>,
    queue: Arc<LocalQueue>,
    router: Router,
}

impl Api {
    fn new(text: &str) -> Self {
        let environment = Environment::default();
        let settings = Settings::parse(text, Path::new("atlas.toml"), &environment, &[]).unwrap();
        let queue = Arc::new(LocalQueue::default());
        let suite = Suite::new(settings, Arc::clone(&queue) as Arc<dyn Queue>).unwrap();
        let suite = Arc::new(suite);
        let lazy = Arc::new(Lazy::from(Arc::clone(&suite)));
        let router = atlas_export::router(Arc::clone(&lazy)).merge(atlas_watermark::router(lazy));
        Self {
            suite,
            queue,
            router,
        }
    }

    /// With a copy in an SQLite file.
    fn over_sqlite(cdr: &Running, file: &Path) -> Self {
        Self::new(&format!(
            "[openehr]\nbase_url = \"{}\"\n[sqlite]\npath = \"{}\"\n",
            cdr.base_url(),
            file.display()
        ))
    }

    async fn work(&self) {
        while let Some(delivery) = self.queue.next() {
            let engine = &self.suite.engine;
            engine.deliver(&delivery.message, &Budget::default()).await;
        }
    }
}

const EXPORTS: &str = "/api/exports";
const RUN: &str = "/api/exports/{run}";
const WATERMARK: &str = "/api/watermark";

fn request(method: &str, uri: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(uri);
    request.body(Body::empty()).unwrap()
}

fn post(key: Option<&str>, body: &str) -> Request<Body> {
    let mut request = Request::builder().method("POST").uri(EXPORTS);
    if let Some(key) = key {
        request = request.header("Idempotency-Key", key);
    }
    request.body(Body::from(body.to_owned())).unwrap()
}

#[test]
fn the_description_is_openapi_3_1_and_everything_in_it_resolves() {
    let described = Described::new();
    let document = &described.document;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    for (path, method, operation) in described.operations() {
        assert!(path.starts_with('/'), "{path}");
        let methods = ["get", "post", "delete"];
        assert!(methods.contains(&method.as_str()), "{method}");
        let shared = document["paths"][&path]["parameters"].as_array();
        let own = operation["parameters"].as_array();
        let parameters: Vec<&Value> = shared.into_iter().chain(own).flatten().collect();
        for parameter in &parameters {
            assert!(parameter["schema"].is_object(), "{parameter}");
            let place = parameter["in"].as_str().unwrap();
            assert!(["path", "query", "header"].contains(&place), "{parameter}");
        }
        for name in path.split('/').filter_map(|part| part.strip_prefix('{')) {
            let name = name.strip_suffix('}').unwrap();
            let is_named = |parameter: &&Value| {
                parameter["name"] == name
                    && parameter["in"] == "path"
                    && parameter["required"] == true
            };
            assert!(parameters.iter().any(is_named), "{path}: {name}");
        }
        let responses = operation["responses"].as_object().unwrap();
        for (status, response) in responses {
            assert!(
                StatusCode::from_bytes(status.as_bytes()).is_ok(),
                "{status}"
            );
            let response = described.resolved(response);
            assert!(response["description"].is_string(), "{path} {status}");
            for content in response["content"].as_object().unwrap().values() {
                let schema = described.strict(&content["schema"], false);
                jsonschema::meta::validate(&schema).unwrap();
            }
        }
    }
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for (name, schema) in schemas.iter().filter(|(name, _)| *name != "Request") {
        // An answer always has all members: what is not known is null.
        let mut parts = vec![described.resolved(schema)];
        while let Some(part) = parts.pop() {
            if let Some(properties) = part["properties"].as_object() {
                let required: BTreeSet<&str> = part["required"]
                    .as_array()
                    .unwrap_or_else(|| panic!("{name}"))
                    .iter()
                    .map(|member| member.as_str().unwrap())
                    .collect();
                let named: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
                assert_eq!(required, named, "{name}");
                parts.extend(properties.values().map(|value| described.resolved(value)));
            }
            let inner = part["allOf"].as_array().into_iter().flatten();
            parts.extend(
                inner
                    .chain(part.get("items"))
                    .map(|value| described.resolved(value)),
            );
        }
    }
}

#[tokio::test]
async fn every_answer_is_described_and_every_description_is_answered() {
    let mut described = Described::new();
    let cdr = SampleCdr::builder().seed(8).compositions(120);
    let cdr = cdr.start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let api = Api::over_sqlite(&cdr, &folder.path().join("copy.db"));
    let router = &api.router;

    // Before anything was copied, and after.
    described
        .call(router, WATERMARK, request("GET", WATERMARK))
        .await;
    let occurrence = Instant::parse("2026-11-25T09:15:00Z").unwrap();
    let (engine, schedule) = (&api.suite.engine, &api.suite.request);
    let tick = engine
        .plan_and_repair(occurrence, schedule, &Budget::default())
        .await;
    assert!(tick.unwrap().sent > 0);
    described
        .call(router, WATERMARK, request("GET", WATERMARK))
        .await;
    api.work().await;
    let (_, report) = described
        .call(router, WATERMARK, request("GET", WATERMARK))
        .await;
    assert_eq!(report["runs"][0]["outcome"], "complete", "{report:#}");
    let text = request("GET", "/api/watermark?format=prometheus");
    let (_, text) = described.call(router, WATERMARK, text).await;
    assert!(text.as_str().unwrap().ends_with("# EOF\n"), "{text}");
    let other = request("GET", "/api/watermark?format=other");
    assert_eq!(described.call(router, WATERMARK, other).await.0, 400);

    let body = json!({
        "templates": ["sample_vital_signs.v1"],
        "ehrs": [cdr.handle().ehr_id(0).unwrap()],
        "from": "2000-01-01T00:00:00Z",
        "to": "2100-01-01T00:00:00+01:00",
        "mode": "full",
    });
    let schema = described.strict(&json!({ "$ref": "#/components/schemas/Request" }), false);
    assert!(jsonschema::is_valid(&schema, &body));
    let (_, run) = described
        .call(router, EXPORTS, post(Some("a"), &body.to_string()))
        .await;
    let path = format!("/api/exports/{}", run["run"].as_str().unwrap());
    let (_, accepted) = described.call(router, RUN, request("GET", &path)).await;
    assert_eq!(accepted["state"], "accepted");
    api.work().await;
    let (_, ended) = described.call(router, RUN, request("GET", &path)).await;
    assert_eq!(ended["state"], "complete", "{ended:#}");
    described.call(router, RUN, request("DELETE", &path)).await;
    let (_, same) = described
        .call(router, EXPORTS, post(Some("a"), &body.to_string()))
        .await;
    assert_eq!(same["run"], run["run"]);
    assert_eq!(
        described
            .call(router, EXPORTS, post(Some("a"), "{}"))
            .await
            .0,
        422
    );

    // One that fails, and one that is taken back.
    let (_, run) = described
        .call(router, EXPORTS, post(None, r#"{"templates":["none"]}"#))
        .await;
    api.work().await;
    let path = format!("/api/exports/{}", run["run"].as_str().unwrap());
    let (_, failed) = described.call(router, RUN, request("GET", &path)).await;
    assert_eq!(failed["state"], "failed", "{failed:#}");
    assert!(failed["failure"].is_string(), "{failed:#}");
    let (_, run) = described.call(router, EXPORTS, post(None, "")).await;
    let path = format!("/api/exports/{}", run["run"].as_str().unwrap());
    let (_, cancelled) = described.call(router, RUN, request("DELETE", &path)).await;
    assert_eq!(cancelled["state"], "cancelled", "{cancelled:#}");

    assert_eq!(
        described.call(router, EXPORTS, post(None, "[")).await.0,
        400
    );
    let large = "x".repeat(2 << 20);
    assert_eq!(
        described.call(router, EXPORTS, post(None, &large)).await.0,
        413
    );
    for method in ["GET", "DELETE"] {
        let unknown = request(method, "/api/exports/none");
        assert_eq!(described.call(router, RUN, unknown).await.0, 404);
        for id in ["%FF", "%00", "none%00", "%0A", "%C2%9B", "a.b"] {
            let garbled = request(method, &format!("/api/exports/{id}"));
            assert_eq!(described.call(router, RUN, garbled).await.0, 404, "{id}");
        }
        let broken = futures::stream::iter([Err::<Vec<u8>, _>(std::io::Error::other("broken"))]);
        let (parts, _) = request(method, "/api/exports/none").into_parts();
        let broken = Request::from_parts(parts, Body::from_stream(broken));
        assert_eq!(described.call(router, RUN, broken).await.0, 400);
    }

    // Over a file that is none of ours, and over a server that nobody started.
    let garbage = folder.path().join("garbage.db");
    std::fs::write(
        &garbage,
        "no database at all, but long enough to be looked at".repeat(20),
    )
    .unwrap();
    let broken = Api::over_sqlite(&cdr, &garbage);
    let away = Api::new(&format!(
        "database_target = \"postgresql\"\n[openehr]\nbase_url = \"{}\"\n\
         [postgresql]\nconnection_string = \"postgresql://atlas:atlas@127.0.0.1:1/atlas\"\nssl_mode = \"disable\"\n\
         [export]\nmax_retries = 0\n",
        cdr.base_url()
    ));
    for (api, status) in [(broken, 500), (away, 503)] {
        let requests = [
            (EXPORTS, post(None, "")),
            (RUN, request("GET", "/api/exports/some")),
            (RUN, request("DELETE", "/api/exports/some")),
            (WATERMARK, request("GET", WATERMARK)),
        ];
        for (path, request) in requests {
            let (answered, problem) = described.call(&api.router, path, request).await;
            assert_eq!(answered, status, "{path}: {problem:#}");
        }
    }

    for (path, method, operation) in described.operations() {
        for status in operation["responses"].as_object().unwrap().keys() {
            let status: u64 = status.parse().unwrap();
            let key = (path.clone(), method.clone(), status);
            let is_seen = described.seen.contains(&key);
            assert!(is_seen || status == BY_SERVE, "never answered: {key:?}");
        }
    }
}

#[tokio::test]
async fn methods_that_are_not_there_are_refused_with_a_problem_that_names_those_that_are() {
    let cdr = SampleCdr::builder().compositions(1).start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let api = Api::over_sqlite(&cdr, &folder.path().join("copy.db"));
    for (method, path, allowed) in [
        ("GET", EXPORTS, "POST"),
        ("PUT", "/api/exports/some", "GET,HEAD,DELETE"),
        ("POST", WATERMARK, "GET,HEAD"),
    ] {
        let answer = api
            .router
            .clone()
            .oneshot(request(method, path))
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        assert_eq!(answer.headers()["allow"], allowed);
    }
}

#[tokio::test]
async fn an_unknown_address_names_those_that_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("atlas.db");
    let api = Api::new(&format!(
        "[openehr]\nbase_url = \"http://127.0.0.1:1\"\n[sqlite]\npath = \"{}\"\n",
        file.display()
    ));
    for path in ["/", "/api", "/api/export", "/api/exports/a/b"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = api.router.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), 404, "{path}");
        let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        for there in ["/api/exports", "/api/exports/{run}", "/api/watermark"] {
            assert!(text.contains(there), "{path}: {text}");
        }
    }
}
