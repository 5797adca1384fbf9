//! HTTP triggers and the admin interface.

use std::time::Duration;

use local_hosts::azure::Outcome;
use serde_json::{Value, json};

use crate::app::{App, LIMIT, command, ended, http, queue_trigger, timer, within};

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn raw(how: &str) -> App {
    let mut handler = json!({ "description": { "defaultExecutablePath": "handler" } });
    handler[how] = json!(true);
    App::bare(json!({ "customHandler": handler }))
}

#[tokio::test]
async fn requests_need_their_route_their_method_and_their_key() {
    let app = App::bare(json!({}));
    app.function("open", &http("open", "anonymous", &[]));
    app.function("shut", &http("shut/{id?}", "function", &["get"]));
    app.function("master", &http("master", "admin", &["get"]));
    let host = app.start().await;
    let client = client();
    let status = async |method: &str, path: &str, key: &str| {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let url = format!("{}{path}", host.url());
        let mut sent = client.request(method, url);
        if !key.is_empty() {
            sent = sent.header("x-functions-key", key);
        }
        sent.send().await.unwrap().status().as_u16()
    };
    let key = host.key().to_owned();
    let master = host.master_key().to_owned();
    assert_eq!(status("PUT", "/api/open", "").await, 200);
    assert_eq!(status("GET", "/open", "").await, 404);
    assert_eq!(status("GET", "/api/nothing", "").await, 404);
    assert_eq!(status("GET", "/api/shut/1", "").await, 401);
    assert_eq!(status("GET", "/api/shut/1", "wrong").await, 401);
    assert_eq!(status("GET", "/api/shut/1", &key).await, 200);
    assert_eq!(status("GET", "/api/shut", &master).await, 200);
    assert_eq!(
        status("GET", &format!("/api/shut?code={key}"), "").await,
        200
    );
    assert_eq!(status("POST", "/api/shut/1", &key).await, 404);
    assert_eq!(status("GET", "/api/shut/1/2", &key).await, 404);
    assert_eq!(status("GET", "/api//shut/1", &key).await, 404);
    assert_eq!(status("GET", "/api/shut//", &key).await, 404);
    assert_eq!(status("GET", "/API/Shut/", &key).await, 200);
    // One part of the path, whatever is encoded in it.
    assert_eq!(status("GET", "/api/shut/1%2F2", &key).await, 200);
    assert_eq!(status("GET", "/api/master", &key).await, 401);
    assert_eq!(status("GET", "/api/master", &master).await, 200);
    assert_eq!(app.requests().len(), 7);
}

#[tokio::test]
async fn an_envelope_carries_the_request_and_the_answer() {
    let app = App::bare(json!({}));
    app.function("export", &http("exports/{id?}", "anonymous", &["post"]));
    let host = app.start().await;
    let answer = json!({ "do": "outputs", "outputs": { "res":
        { "statusCode": "202", "headers": { "Location": "/api/exports/7" }, "body": "soon" } } });
    let response = client()
        .post(format!("{}/api/exports/a%20b?x=1", host.url()))
        .header("content-type", "application/json")
        .body(answer.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 202);
    assert_eq!(response.headers()["location"], "/api/exports/7");
    assert_eq!(response.text().await.unwrap(), "soon");
    let request = &app.requests()[0];
    assert_eq!(request["uri"], "/export");
    let sent = &request["body"]["Data"]["req"];
    assert_eq!(sent["Method"], "POST");
    assert_eq!(sent["Query"], json!({ "x": "1" }));
    assert_eq!(sent["Params"], json!({ "id": "a b" }));
    assert_eq!(sent["Headers"]["Content-Type"], json!(["application/json"]));
    assert_eq!(sent["Body"], answer.to_string());
    assert_eq!(request["body"]["Metadata"]["id"], r#""a b""#);
    assert_eq!(request["body"]["Metadata"]["x"], r#""1""#);

    let nothing = client().post(format!("{}/api/exports", host.url()));
    assert_eq!(nothing.send().await.unwrap().status(), 200);
    assert!(
        app.requests()[1]["body"]["Data"]["req"]
            .get("Body")
            .is_none()
    );
    let failed = client()
        .post(format!("{}/api/exports", host.url()))
        .body(command("status", 503));
    assert_eq!(failed.send().await.unwrap().status(), 500);
}

#[tokio::test]
async fn raw_requests_keep_their_path_and_answers_are_streamed() {
    for how in ["enableForwardingHttpRequest", "enableProxyingHttpRequest"] {
        let app = raw(how);
        app.function("export", &http("exports/{id?}", "anonymous", &[]));
        let host = app.start().await;
        let url = format!("{}/api/exports/7?x=1", host.url());
        let refused = client().put(&url).body(command("status", 418));
        assert_eq!(refused.send().await.unwrap().status(), 418);
        let request = &app.requests()[0];
        assert_eq!(request["method"], "PUT");
        assert_eq!(request["uri"], "/api/exports/7?x=1");
        assert_eq!(request["body"]["do"], "status");
        let headers = &request["headers"];
        assert!(headers["x-azure-functions-invocationid"].is_string());
        // The status is the answer's own business.
        assert_eq!(host.invocations()[0].outcome, Outcome::Succeeded);

        let go_on = || std::fs::write(app.folder().join("go on"), "").unwrap();
        let streamed = client().post(&url).body(command("stream", 0)).send();
        if how == "enableForwardingHttpRequest" {
            go_on();
            assert_eq!(
                within(streamed).await.unwrap().text().await.unwrap(),
                "first second"
            );
        } else {
            let mut streamed = within(streamed).await.unwrap();
            assert_eq!(within(streamed.chunk()).await.unwrap().unwrap(), "first ");
            go_on();
            assert_eq!(within(streamed.text()).await.unwrap(), "second");
        }
        let crashed = client().post(&url).body(command("crash", 0));
        assert_eq!(crashed.send().await.unwrap().status(), 500);
        let again = client().post(&url).body("{}");
        assert_eq!(again.send().await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn the_load_balancer_gives_up_before_the_function_does() {
    let mut app = App::bare(json!({}));
    app.function("export", &http("exports", "anonymous", &[]));
    app.options.pace.http_limit = Duration::from_millis(200);
    let host = app.start().await;
    let mut events = host.events();
    let slow = client()
        .post(format!("{}/api/exports", host.url()))
        .body(command("sleep", 600));
    assert_eq!(slow.send().await.unwrap().status(), 504);
    assert!(host.invocations().is_empty());
    assert_eq!(ended(&mut events).await.outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn functions_are_started_by_hand_with_the_master_key() {
    let app = App::bare(json!({}));
    app.function("worker", &[queue_trigger("work")]);
    app.function("plan", &[timer("0 0 0 1 1 *")]);
    let host = app.start().await;
    let post = async |name: &str, key: &str, body: Value| {
        let sent = client()
            .post(format!("{}/admin/functions/{name}", host.url()))
            .header("x-functions-key", key)
            .body(body.to_string());
        sent.send().await.unwrap().status().as_u16()
    };
    let master = host.master_key().to_owned();
    assert_eq!(
        post("worker", host.key(), json!({ "input": "x" })).await,
        401
    );
    assert_eq!(post("nothing", &master, json!({})).await, 404);
    assert_eq!(
        post("worker", &master, json!({ "input": "by hand" })).await,
        202
    );
    app.asked(1).await;
    assert_eq!(post("plan", &master, json!({ "input": "" })).await, 202);
    app.asked(2).await;
    host.quiet(LIMIT).await.unwrap();
    let requests = app.requests();
    assert_eq!(requests[0]["body"]["Data"]["msg"], r#""by hand""#);
    assert_eq!(requests[1]["uri"], "/plan");
}
