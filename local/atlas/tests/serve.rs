//! The whole suite in one process, as a server runs it: the shipped program against a sample server, asked over HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses its part of `common`"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use atlas_ehrbase::shared_postgres;
use atlas_sample_cdr::{Fault, On, Running, SampleCdr, Template};
use common::{Place, count};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Nothing takes this long unless it hangs. Shorter than a lease (90 s), so that no test passes because one ran out.
const LIMIT: Duration = Duration::from_secs(60);
/// No test lives until the next occurrence.
const RARELY: &str = "plan = \"0 0 0 1 1 *\"\nreport = \"0 0 0 1 1 *\"\n";
const TOKEN: &str = "correct-horse-battery-staple";

async fn cdr(compositions: u64) -> Running {
    let cdr = SampleCdr::builder().seed(5).compositions(compositions);
    cdr.start().await.unwrap()
}

/// A folder for a copy of `cdr`; `more` begins with keys of `[schedule]`.
fn place(cdr: &Running, more: &str) -> Place {
    place_with(cdr, "", "", more)
}

fn place_with(cdr: &Running, top: &str, serve: &str, more: &str) -> Place {
    let place = Place::new();
    place.configure(&format!(
        "{top}\n[openehr]\nbase_url = \"{}\"\n\
         [openehr.retry]\nmax_retries = 1\ninitial_delay_ms = 1\nmax_delay_ms = 1\n\
         [serve]\nlisten = \"127.0.0.1:0\"\n{serve}\n[schedule]\n{more}",
        cdr.base_url()
    ));
    place
}

fn in_postgres(cdr: &Running, url: &str) -> Place {
    let store = format!("[postgresql]\nconnection_string = \"{url}\"\nssl_mode = \"disable\"\n");
    let top = "database_target = \"postgresql\"";
    place_with(cdr, top, "", &format!("{RARELY}{store}{SMALL_PAGES}"))
}

/// Small pages, nothing held back.
const SMALL_PAGES: &str = "[export]\nretry_backoff_ms = [50]\nexport_composition_format = \"canonical\"\nsafety_lag_seconds = 0\n[openehr.query]\nbatch_size = 20\n";

/// A running `atlas serve`. Killed with the value.
struct Serving {
    child: tokio::process::Child,
    lines: watch::Receiver<Vec<String>>,
    stderr: watch::Receiver<String>,
    address: String,
    client: reqwest::Client,
}

impl Serving {
    async fn start(place: &Place) -> Self {
        let mut command = Command::from(place.command(&["serve"]));
        command.kill_on_drop(true).stdin(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (line, mut lines) = watch::channel(Vec::new());
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        tokio::spawn(async move {
            while let Ok(Some(text)) = stdout.next_line().await {
                line.send_modify(|lines| lines.push(text));
            }
        });
        let (said, stderr) = watch::channel(String::new());
        let mut pipe = child.stderr.take().unwrap();
        tokio::spawn(async move {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut piece).await {
                let piece = String::from_utf8_lossy(&piece[..length]).into_owned();
                said.send_modify(|text| text.push_str(&piece));
            }
        });
        let address = |lines: &Vec<String>| {
            lines.iter().find_map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                line["address"].as_str().map(str::to_owned)
            })
        };
        let told = timeout(LIMIT, lines.wait_for(|lines| address(lines).is_some()));
        let address = match told.await.expect("it never said where it listens") {
            Ok(lines) => address(&lines).unwrap(),
            Err(_) => panic!("it ended: {}", *stderr.borrow()),
        };
        // A connection on which a body was refused is closed: none is used twice.
        let client = reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .build()
            .unwrap();
        Self {
            child,
            lines,
            stderr,
            address,
            client,
        }
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("http://{}{path}", self.address))
            .timeout(LIMIT)
    }

    async fn get(&self, path: &str) -> Response {
        let answer = self.call(Method::GET, path).send().await;
        answer
            .unwrap_or_else(|error| panic!("{error:?}\n{}\n{}", self.log(), *self.stderr.borrow()))
    }

    async fn report(&self) -> Value {
        self.get("/api/watermark").await.json().await.unwrap()
    }

    /// Compositions in the copy.
    async fn compositions(&self) -> u64 {
        let report = self.report().await;
        // Before the tables are there, the answer is an error.
        let Some(templates) = report["templates"].as_array() else {
            return 0;
        };
        let of = |template: &Value| template["compositions"].as_u64().unwrap();
        templates.iter().map(of).sum()
    }

    /// Asks for a run under a key.
    async fn post(&self, key: &str, body: &Value) -> Response {
        let request = self.call(Method::POST, "/api/exports").json(body);
        request.header("Idempotency-Key", key).send().await.unwrap()
    }

    /// Waits until a run has ended; answers its document.
    async fn end_of(&self, run: &str) -> Value {
        let path = format!("/api/exports/{run}");
        let document = async || self.get(&path).await.json::<Value>().await.unwrap();
        until("the run has an end", async || {
            !document().await["ended"].is_null()
        })
        .await;
        document().await
    }

    /// Waits until every run has ended; answers how many compositions they have written.
    async fn all_written(&self) -> u64 {
        let have_ended = async || {
            let report = self.report().await;
            let runs = report["runs"].as_array().unwrap();
            !runs.is_empty() && runs.iter().all(|run| !run["ended"].is_null())
        };
        let begun = Instant::now();
        while !have_ended().await {
            let log = self.log();
            assert!(begun.elapsed() < LIMIT, "runs do not end:\n{log}");
            sleep(Duration::from_millis(20)).await;
        }
        let report = self.report().await;
        let runs = report["runs"].as_array().unwrap();
        let written = |run: &Value| run["counts"]["written"].as_u64().unwrap();
        runs.iter().map(written).sum()
    }

    async fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().await;
        assert!(sent.unwrap().success());
    }

    async fn tells(&mut self, text: &str) {
        let told = timeout(LIMIT, self.stderr.wait_for(|said| said.contains(text))).await;
        assert!(
            told.is_ok_and(|told| told.is_ok()),
            "it never told {text:?}"
        );
    }

    async fn end(&mut self) -> ExitStatus {
        timeout(LIMIT, self.child.wait())
            .await
            .expect("it does not end")
            .unwrap()
    }

    fn log(&self) -> String {
        self.lines.borrow().join("\n")
    }
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < LIMIT, "still not: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn held(place: &Place) -> u64 {
    if place.path("atlas.db").exists() {
        let database = place.database();
        database
            .query_row("SELECT count(*) FROM compositions", [], |row| row.get(0))
            .unwrap_or(0)
    } else {
        0
    }
}

/// The copy in an SQLite file equals what the server shows.
fn assert_equal(place: &Place, cdr: &Running) {
    let handle = cdr.handle();
    let database = place.database();
    let mut rows = database
        .prepare("SELECT composition_uid, content FROM compositions")
        .unwrap();
    let copy: BTreeMap<String, Value> = rows
        .query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))
        .unwrap()
        .map(|row| row.unwrap())
        .map(|(uid, content)| (uid, serde_json::from_str(&content).unwrap()))
        .collect();
    let shown: BTreeMap<String, Value> = (0..handle.numbers())
        .map(|number| {
            let content = handle.content(number).unwrap();
            let uid = handle.version_uid(number).unwrap();
            (uid, serde_json::from_str(&content).unwrap())
        })
        .collect();
    assert_eq!(copy.len(), shown.len());
    assert!(copy == shown, "the content differs");
}

async fn problem(response: Response, status: StatusCode) -> Value {
    assert_eq!(response.status(), status);
    let kind = response.headers()["content-type"].to_str().unwrap();
    assert_eq!(kind, "application/problem+json");
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["status"], status.as_u16());
    assert!(problem["title"].is_string() && problem["detail"].is_string());
    problem
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_copied_at_once_and_what_is_new_by_the_schedule() {
    let cdr = cdr(300).await;
    let schedule = "plan = \"*/10 * * * * *\"\nreport = \"*/10 * * * * *\"\n";
    let place = place(&cdr, &format!("{schedule}{SMALL_PAGES}"));
    let serving = Serving::start(&place).await;
    until("the first copy", async || held(&place) == 300).await;
    cdr.handle().commit(Template::VitalSigns);
    until("what is new", async || held(&place) == 301).await;
    assert_equal(&place, &cdr);
    until("a stored report", async || {
        let query = "SELECT count(*) FROM atlas_records WHERE name = 'report'";
        count(&place.database(), query) == 1
    })
    .await;
    let report = serving.report().await;
    assert!(report["lag_seconds"].as_f64().is_some(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_on_demand_is_one_run_for_its_key_beside_the_schedule() {
    let cdr = cdr(200).await;
    let place = place(&cdr, &format!("{RARELY}{SMALL_PAGES}"));
    let serving = Serving::start(&place).await;
    let ehr = cdr.handle().ehr_id(0).unwrap();
    let body = json!({ "ehrs": [ehr], "mode": "full" });

    let first = serving.post("a key", &body).await;
    assert_eq!(first.status(), StatusCode::ACCEPTED);
    let location = first.headers()["location"].to_str().unwrap().to_owned();
    let first: Value = first.json().await.unwrap();
    let run = first["run"].as_str().unwrap();
    assert_eq!(location, format!("/api/exports/{run}"));

    let same = serving.post("a key", &body).await;
    assert_eq!(same.status(), StatusCode::ACCEPTED);
    assert_eq!(same.json::<Value>().await.unwrap()["run"], first["run"]);
    let other = serving.post("a key", &json!({ "mode": "full" })).await;
    problem(other, StatusCode::UNPROCESSABLE_ENTITY).await;

    let ended = serving.end_of(run).await;
    assert_eq!(ended["state"], "complete", "{ended}");
    assert!(ended["read"].as_u64().unwrap() > 0, "{ended}");
    until("the schedule's own copy", async || held(&place) == 200).await;
    serving.all_written().await;
    assert_equal(&place, &cdr);
    let asked = "SELECT count(*) FROM atlas_runs WHERE origin <> 'timer'";
    assert_eq!(count(&place.database(), asked), 1);
    assert!(!serving.log().contains(&ehr), "the log names an EHR");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_taken_back_is_cancelled_and_the_schedule_goes_on() {
    let cdr = cdr(200).await;
    let place = place(&cdr, &format!("{RARELY}{SMALL_PAGES}"));
    let serving = Serving::start(&place).await;
    until("the first copy", async || held(&place) == 200).await;
    cdr.handle().inject(Fault::Latency { millis: 300 }.always());
    let asked = serving.post("k", &json!({ "mode": "full" })).await;
    let asked: Value = asked.json().await.unwrap();
    let path = format!("/api/exports/{}", asked["run"].as_str().unwrap());
    let cancelled = serving.call(Method::DELETE, &path).send().await.unwrap();
    assert_eq!(cancelled.status(), StatusCode::OK);
    let cancelled: Value = cancelled.json().await.unwrap();
    assert_eq!(cancelled["state"], "cancelled");
    let stands: Value = serving.get(&path).await.json().await.unwrap();
    assert_eq!(stands["state"], "cancelled");
    cdr.handle().clear_faults();
    serving.all_written().await;
    assert_equal(&place, &cdr);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_told_as_problems_that_repeat_nothing() {
    let cdr = cdr(10).await;
    let place = place(&cdr, RARELY);
    let serving = Serving::start(&place).await;
    let post = |body: &str| {
        let request = serving.call(Method::POST, "/api/exports");
        let request = request.header("Content-Type", "application/json");
        request.body(body.to_owned())
    };
    let large = format!("\"{}\"", "secret".repeat(400_000));
    let get = |path: &str| serving.call(Method::GET, path);
    let key = "k".repeat(256);
    let cases = [
        (post("{\"secret\""), 400),
        (post("[\"secret\"]"), 400),
        (post("[[\"secret\"]]"), 400),
        (post("[]"), 400),
        (post("{\"secret\":1}"), 400),
        (post("{\"mode\":\"secret\"}"), 400),
        (post("{\"ehrs\":[\"secret\\u0000\"]}"), 400),
        (post("{\"from\":\"secret\"}"), 400),
        (post("{}").header("Idempotency-Key", &key), 400),
        (post(&large), 413),
        (get("/api/exports/secret"), 404),
        (get("/api/exports/%FFsecret"), 404),
        (get("/api/exports/%00secret"), 404),
        (get("/api/exports/secret%00"), 404),
        (get("/api/exports/secret%0A%1B"), 404),
        (get("/api/exports/secret%C2%9B"), 404),
        (get("/api/exports/secret%2F..%2F"), 404),
        (
            get(&format!("/api/exports/{}", "secret".repeat(2_000))),
            404,
        ),
        (serving.call(Method::DELETE, "/api/exports/%00secret"), 404),
        (serving.call(Method::DELETE, "/api/exports/%FFsecret"), 404),
        (get("/api/exports"), 405),
        (get("/api/secret"), 404),
        (get("/secret"), 404),
        (get("/api/watermark?format=secret"), 400),
        (get("/api/watermark?format=json&format=secret"), 400),
        (
            serving
                .call(Method::POST, "/api/watermark")
                .json(&json!({})),
            405,
        ),
        (serving.call(Method::POST, "/api/exports"), 415),
        (serving.call(Method::POST, "/api/exports").body("{}"), 415),
        (serving.call(Method::DELETE, "/api/exports/secret"), 404),
    ];
    for (request, status) in cases {
        let status = StatusCode::from_u16(status).unwrap();
        let told = problem(request.send().await.unwrap(), status).await;
        assert!(!told.to_string().contains("secret"), "{told}");
    }
    assert!(!serving.log().contains("secret"), "{}", serving.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_no_run_can_have_never_reaches_postgresql() {
    let cdr = cdr(10).await;
    let url = shared_postgres()
        .await
        .unwrap()
        .fresh_database()
        .await
        .unwrap();
    let place = in_postgres(&cdr, &url);
    let serving = Serving::start(&place).await;
    until("the store is ready", async || {
        serving.get("/readyz").await.status().is_success()
    })
    .await;
    for id in [
        "%00",
        "canary%00",
        "%FFcanary",
        "canary%27%3B--",
        "canary%0A",
    ] {
        let path = format!("/api/exports/{id}");
        for method in [Method::GET, Method::DELETE] {
            let answer = serving.call(method, &path).send().await.unwrap();
            let told = problem(answer, StatusCode::NOT_FOUND).await;
            assert!(!told.to_string().contains("canary"), "{told}");
        }
    }
    let body = json!({ "templates": ["canary\u{0}"], "ehrs": ["\u{0}"] });
    problem(serving.post("k", &body).await, StatusCode::BAD_REQUEST).await;
    assert!(!serving.log().contains("canary"), "{}", serving.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_page_in_a_browser_reads_or_starts_anything() {
    let cdr = cdr(10).await;
    let place = place(&cdr, RARELY);
    let serving = Serving::start(&place).await;
    serving.all_written().await;
    let runs = async || serving.report().await["runs"].as_array().unwrap().len();
    let before = runs().await;
    let post = || serving.call(Method::POST, "/api/exports").json(&json!({}));
    let get = |path: &str| serving.call(Method::GET, path);
    let port = serving.address.rsplit(':').next().unwrap();
    let other_port = format!("http://127.0.0.1:{}", port.parse::<u16>().unwrap() ^ 1);
    let form = "application/x-www-form-urlencoded";
    for (request, status) in [
        // A name of somebody's that leads here.
        (get("/api/watermark").header("Host", "evil.example"), 421),
        (
            get("/healthz").header("Host", format!("evil.example:{port}")),
            421,
        ),
        (
            post().header("Host", format!("localhost.evil.example:{port}")),
            421,
        ),
        // Pages of elsewhere.
        (post().header("Origin", "https://evil.example"), 403),
        (post().header("Origin", "null"), 403),
        (post().header("Origin", other_port), 403),
        (post().header("Sec-Fetch-Site", "cross-site"), 403),
        (get("/api/watermark").header("Origin", "null"), 403),
        // Forms and requests that need no leave.
        (serving.call(Method::POST, "/api/exports"), 415),
        (
            serving
                .call(Method::POST, "/api/exports")
                .header("Content-Type", form),
            415,
        ),
        (
            serving
                .call(Method::POST, "/api/exports")
                .header("Content-Type", "text/plain")
                .body("{}"),
            415,
        ),
        // A browser asks before it sends more.
        (serving.call(Method::OPTIONS, "/api/exports"), 405),
        (get("/api/exports"), 405),
    ] {
        let answer = request.send().await.unwrap();
        assert!(!answer.headers().contains_key("access-control-allow-origin"));
        problem(answer, StatusCode::from_u16(status).unwrap()).await;
    }
    assert_eq!(runs().await, before, "something was started");
    let here = post().header("Host", format!("localhost:{port}"));
    assert_eq!(here.send().await.unwrap().status(), StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_hold_connections_keep_no_probe_out() {
    let cdr = cdr(10).await;
    let place = place(&cdr, RARELY);
    let serving = Serving::start(&place).await;
    let mut held = Vec::new();
    for number in 0..400 {
        let mut stream = TcpStream::connect(&serving.address).await.unwrap();
        let begun: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET / HTTP/1.1\r\n",
            _ => b"POST /api/exports HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
        };
        // Those before it may be closed already.
        let _ = stream.write_all(begun).await;
        held.push(stream);
    }
    assert!(serving.get("/healthz").await.status().is_success());
    until("it is ready", async || {
        serving.get("/readyz").await.status().is_success()
    })
    .await;
    assert_eq!(serving.all_written().await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_callers_that_show_the_token_are_answered() {
    let cdr = cdr(10).await;
    let place = place_with(&cdr, "", &format!("token = \"{TOKEN}\""), RARELY);
    let serving = Serving::start(&place).await;
    let paths = ["/api/watermark", "/api/exports/none", "/api/none", "/none"];
    for path in paths {
        let shown = [
            None,
            Some("Bearer wrong".to_owned()),
            Some("Bearer".to_owned()),
            Some(format!("Bearer {TOKEN}x")),
            Some(format!("Basic {TOKEN}")),
        ];
        for shown in shown {
            let mut request = serving.call(Method::GET, path);
            if let Some(shown) = &shown {
                request = request.header("Authorization", shown);
            }
            let refused = request.send().await.unwrap();
            let asks = refused.headers()["www-authenticate"].to_str().unwrap();
            assert!(asks.starts_with("Bearer"), "{asks}");
            problem(refused, StatusCode::UNAUTHORIZED).await;
        }
    }
    let refused = serving.post("k", &json!({})).await;
    problem(refused, StatusCode::UNAUTHORIZED).await;
    for path in ["/healthz", "/readyz"] {
        until(path, async || serving.get(path).await.status().is_success()).await;
    }
    let right = serving
        .call(Method::GET, "/api/watermark")
        .bearer_auth(TOKEN);
    assert_eq!(right.send().await.unwrap().status(), StatusCode::OK);
    let log = serving.log();
    assert!(!log.contains(TOKEN) && !serving.stderr.borrow().contains(TOKEN));
}

#[test]
fn other_machines_are_not_listened_to_without_a_token() {
    let place = Place::for_address("http://127.0.0.1:1", "");
    place.configure(
        "[openehr]\nbase_url = \"http://127.0.0.1:1\"\n[serve]\nlisten = \"0.0.0.0:0\"\n",
    );
    let answer = place.run(&["serve"]);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    assert!(answer.text().contains("serve.token"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_told_with_the_fix() {
    let cdr = cdr(10).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = place(&cdr, RARELY);
    let text = std::fs::read_to_string(place.path("atlas.toml")).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    place.configure(&text.replace("127.0.0.1:0", &address));
    let answer = tokio::task::spawn_blocking(move || place.run(&["serve"]));
    let answer = answer.await.unwrap();
    assert_eq!(answer.code, Some(2), "{answer:?}");
    assert!(answer.text().contains("serve.listen"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_has_one_server_at_a_time() {
    let cdr = cdr(50).await;
    let place = place(&cdr, &format!("{RARELY}{SMALL_PAGES}"));
    let first = Serving::start(&place).await;
    until("the first copy", async || held(&place) == 50).await;
    let mut second = Serving::start(&place).await;
    assert_eq!(second.end().await.code(), Some(6));
    second.tells("another `atlas serve`").await;
    let again = first.post("k", &json!({ "mode": "full" })).await;
    let again: Value = again.json().await.unwrap();
    let ended = first.end_of(again["run"].as_str().unwrap()).await;
    assert_eq!(ended["state"], "complete", "{ended}");
}

/// Interrupts a copy in its middle, and lets the next process end it.
async fn interrupted(signal: &str, code: Option<i32>) {
    let cdr = cdr(1_500).await;
    cdr.handle()
        .inject(Fault::Latency { millis: 20 }.always().on(On::AqlPages));
    let place = place(&cdr, &format!("{RARELY}{SMALL_PAGES}"));
    let mut first = Serving::start(&place).await;
    until("a beginning", async || held(&place) > 200).await;
    first.signal(signal).await;
    assert_eq!(first.end().await.code(), code, "{}", first.log());
    let left = 1_500 - held(&place);
    assert!(left > 0, "it had ended already");
    cdr.handle().clear_faults();

    let second = Serving::start(&place).await;
    until("the rest", async || held(&place) == 1_500).await;
    assert_eq!(
        second.all_written().await,
        1_500,
        "something was written twice"
    );
    assert_equal(&place, &cdr);
    let objects = "SELECT count(DISTINCT id) FROM compositions";
    assert_eq!(count(&place.database(), objects), 1_500);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_signal_the_next_start_goes_on_at_once_and_nothing_is_there_twice() {
    interrupted("TERM", Some(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_the_next_start_goes_on_at_once_and_nothing_is_there_twice() {
    interrupted("KILL", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_a_copy_in_postgresql_goes_on_at_once_too() {
    let cdr = cdr(1_500).await;
    cdr.handle()
        .inject(Fault::Latency { millis: 20 }.always().on(On::AqlPages));
    let postgres = shared_postgres().await.unwrap();
    let atlas = Path::new(env!("CARGO_BIN_EXE_atlas"));
    let prepared = postgres.prepared_database(atlas).await.unwrap();
    let place = in_postgres(&cdr, &prepared.exporter);
    let mut first = Serving::start(&place).await;
    until("a beginning", async || first.compositions().await > 200).await;
    first.signal("KILL").await;
    first.end().await;
    cdr.handle().clear_faults();

    let second = Serving::start(&place).await;
    assert!(second.compositions().await < 1_500, "it had ended already");
    assert_eq!(
        second.all_written().await,
        1_500,
        "something was written twice"
    );
    assert_eq!(second.compositions().await, 1_500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_nobody_planned_before_a_kill_is_planned_by_the_next_start() {
    let cdr = cdr(60).await;
    cdr.handle()
        .inject(Fault::Latency { millis: 20_000 }.always());
    let place = place(&cdr, &format!("{RARELY}{SMALL_PAGES}"));
    let mut first = Serving::start(&place).await;
    let asked = first.post("k", &json!({ "mode": "full" })).await;
    let asked: Value = asked.json().await.unwrap();
    first.signal("KILL").await;
    first.end().await;
    cdr.handle().clear_faults();
    let second = Serving::start(&place).await;
    let ended = second.end_of(asked["run"].as_str().unwrap()).await;
    assert_eq!(ended["state"], "complete", "{ended}");
    assert_eq!(held(&place), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_does_not_end_in_time_or_after_a_second_signal_is_given_up() {
    for (signals, seconds, code) in [(1, 1, 143), (2, 3_000, 143)] {
        let cdr = cdr(60).await;
        // What is asked of the server is given up at once; what the store has to note is not.
        let hangs = Fault::Latency { millis: 50_000 };
        cdr.handle().inject(hangs.always().on(On::AqlAggregates));
        let more = SMALL_PAGES.replace(
            "[export]\n",
            &format!("[export]\nshutdown_timeout_secs = {seconds}\n"),
        );
        let place = place(&cdr, &format!("{RARELY}{more}"));
        let mut serving = Serving::start(&place).await;
        until("planning has begun", async || {
            cdr.handle().counters().requests > 0
        })
        .await;
        let database = place.database();
        database.execute_batch("BEGIN IMMEDIATE").unwrap();
        serving.signal("TERM").await;
        serving.tells("stopping at the next page boundary").await;
        if signals == 2 {
            serving.signal("TERM").await;
        }
        assert_eq!(serving.end().await.code(), Some(code));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_alive_without_its_store_and_ready_with_it_and_the_copy_arrives_in_postgresql() {
    let cdr = cdr(100).await;
    let postgres = shared_postgres().await.unwrap();
    let url = postgres.fresh_database().await.unwrap();
    let wire = Wire::to(&url).await;
    let url = url.replace(&wire.target, &wire.address);
    let place = in_postgres(&cdr, &url);
    let serving = Serving::start(&place).await;
    assert_eq!(serving.get("/healthz").await.status(), StatusCode::OK);
    problem(
        serving.get("/readyz").await,
        StatusCode::SERVICE_UNAVAILABLE,
    )
    .await;
    wire.mend();
    let ready = async || serving.get("/readyz").await.status() == StatusCode::OK;
    until("ready", ready).await;
    assert_eq!(serving.all_written().await, 100);
    wire.cut();
    problem(
        serving.get("/readyz").await,
        StatusCode::SERVICE_UNAVAILABLE,
    )
    .await;
    assert_eq!(serving.get("/healthz").await.status(), StatusCode::OK);
    wire.mend();
    until("ready again", ready).await;
    let asked = serving.post("k", &json!({ "mode": "full" })).await;
    assert_eq!(asked.status(), StatusCode::ACCEPTED);
    let run: Value = asked.json().await.unwrap();
    let ended = serving.end_of(run["run"].as_str().unwrap()).await;
    assert_eq!(
        (&ended["state"], &ended["read"]),
        (&json!("complete"), &json!(100))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_what_prometheus_reads() {
    let cdr = cdr(60).await;
    let place = place(&cdr, &format!("{RARELY}{SMALL_PAGES}"));
    let serving = Serving::start(&place).await;
    until("the first copy", async || held(&place) == 60).await;
    serving.all_written().await;
    let answer = serving.get("/api/watermark?format=prometheus").await;
    let kind = answer.headers()["content-type"].to_str().unwrap();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = answer.text().await.unwrap();
    let samples = samples(&text);
    let held: f64 = samples
        .iter()
        .filter(|(name, _)| name.starts_with("atlas_compositions{"))
        .map(|(_, value)| value)
        .sum();
    assert_eq!(held, 60.0, "{text}");
    assert!(samples["atlas_lag_seconds"] >= 0.0, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tick_that_planned_nothing_shows_in_report_metrics_and_status_until_one_plans() {
    let cdr = cdr(60).await;
    let fails = Fault::Status {
        status: 500,
        retry_after_secs: None,
    };
    cdr.handle().inject(fails.always());
    let schedule = "plan = \"*/10 * * * * *\"\nreport = \"0 0 0 1 1 *\"\n";
    let place = place(&cdr, &format!("{schedule}{SMALL_PAGES}"));
    let serving = Serving::start(&place).await;
    until("a failed tick", async || {
        serving.report().await["unplanned"]["reason"] == "failed"
    })
    .await;
    let first = serving.report().await["unplanned"].clone();
    until("the next tick", async || {
        serving.report().await["unplanned"]["ticks"].as_u64() > first["ticks"].as_u64()
    })
    .await;
    let metrics = serving.get("/api/watermark?format=prometheus").await;
    let metrics = metrics.text().await.unwrap();
    assert!(
        samples(&metrics)["atlas_unplanned_ticks"] >= 2.0,
        "{metrics}"
    );
    let status = place.run(&["status", "--json"]).json();
    let unplanned = &status["unplanned"];
    assert!(unplanned["ticks"].as_u64().unwrap() >= 2, "{status}");
    assert_eq!(unplanned["since"], first["since"], "{status}");
    assert_eq!(unplanned["reason"], "failed", "{status}");
    let status = place.run(&["status"]).stdout;
    assert!(
        status.contains("nothing planned at the last ") && status.contains("planning failed"),
        "{status}"
    );

    cdr.handle().clear_faults();
    until("the copy", async || held(&place) == 60).await;
    until("a plan", async || {
        serving.report().await["unplanned"].is_null()
    })
    .await;
    let status = place.run(&["status", "--json"]).json();
    assert!(status["unplanned"].is_null(), "{status}");
    let status = place.run(&["status"]).stdout;
    assert!(!status.contains("nothing planned"), "{status}");
}

/// The way to a server, which can be cut. It is when it is made.
struct Wire {
    /// `host:port` of the server.
    target: String,
    /// The same of this end.
    address: String,
    is_open: watch::Sender<bool>,
}

impl Wire {
    async fn to(url: &str) -> Self {
        let target = url.split('@').nth(1).unwrap().split('/').next().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (is_open, watched) = watch::channel(false);
        let wire = Self {
            target: target.to_owned(),
            address: listener.local_addr().unwrap().to_string(),
            is_open,
        };
        let target = wire.target.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (target, mut watched) = (target.clone(), watched.clone());
                tokio::spawn(async move {
                    if !*watched.borrow_and_update() {
                        return;
                    }
                    let mut far = TcpStream::connect(&target).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = watched.changed() => {}
                    }
                });
            }
        });
        wire
    }

    fn cut(&self) {
        self.is_open.send_replace(false);
    }

    fn mend(&self) {
        self.is_open.send_replace(true);
    }
}

/// The samples of an OpenMetrics text; fails on whatever a strict reader refuses.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let body = text.strip_suffix("# EOF\n").expect("it ends with # EOF");
    let (mut types, mut helps) = (BTreeMap::new(), BTreeSet::new());
    let (mut samples, mut family) = (BTreeMap::new(), String::new());
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    for line in body.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["#", "HELP", name, help] => {
                assert!(is_name(name) && !help.is_empty(), "{line}");
                assert!(helps.insert(name.to_string()), "twice: {line}");
                family = name.to_string();
            }
            ["#", "TYPE", name, kind] => {
                assert_eq!(*name, family, "{line}");
                assert!(["gauge", "counter"].contains(kind), "{line}");
                assert!(types.insert(name.to_string(), *kind).is_none(), "{line}");
            }
            ["#", ..] | [""] => panic!("{line:?}"),
            _ => {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                assert_eq!(name, family, "outside its family: {line}");
                if let Some(labels) = series.strip_prefix(name).filter(|rest| !rest.is_empty()) {
                    let labels = labels.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
                    for label in labels.split(',') {
                        let (label, text) = label.split_once("=\"").unwrap();
                        assert!(is_name(label) && text.ends_with('"'), "{line}");
                    }
                }
                let value = value.parse().unwrap();
                let before = samples.insert(series.to_owned(), value);
                assert!(before.is_none(), "twice: {line}");
            }
        }
    }
    assert_eq!(
        types.keys().collect::<Vec<_>>(),
        helps.iter().collect::<Vec<_>>()
    );
    samples
}
