//! The shipped handler is sent what Microsoft's own Functions host was seen to send, and ends as that host needs it to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use atlas_emulators::Azurite;
use atlas_sample_cdr::{Clock, Fault, Profile, Running, SampleCdr};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// The plan of a run that was never asked for.
const PLAN: &str = r#"{"m":{"v":1,"kind":"plan","run":"r"}}"#;
const RECORDED: &str = include_str!("recorded/requests.jsonl");
const HANDLER: &str = env!("CARGO_BIN_EXE_atlas-azure");
/// A well-formed account whose queue nothing is ever sent to here: the source is empty.
const QUEUE: &str = "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=AAAA;QueueEndpoint=http://127.0.0.1:1/a;";

/// One request as it was recorded.
struct Recorded {
    case: String,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Recorded {
    fn all() -> Vec<Self> {
        RECORDED.lines().map(Self::read).collect()
    }

    fn of(case: &str) -> Self {
        let mut all = Self::all();
        let found = all.iter().position(|one| one.case == case);
        all.swap_remove(found.unwrap_or_else(|| panic!("{case} was not recorded")))
    }

    fn read(line: &str) -> Self {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        let headers = line["headers"].as_array().unwrap().iter();
        let headers = headers.map(|pair| {
            let text = |place: usize| pair[place].as_str().unwrap().to_owned();
            (text(0), text(1))
        });
        Self {
            case: text("case"),
            method: text("method"),
            path: text("path"),
            headers: headers.collect(),
            body: text("body"),
        }
    }
}

/// A free port that no other handler gets, below those that the system gives to clients: whoever connects to one of those before
/// its server listens can meet itself, and take that for the server.
async fn own_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 20_000;
    const PORTS: u32 = 12_000;
    loop {
        let next = std::process::id() + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(FIRST + next % PORTS).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).await.is_ok() {
            return port;
        }
    }
}

/// The handler over an empty CDR and an SQLite file, started as the host starts it.
struct Handler {
    process: Child,
    port: u16,
    folder: TempDir,
    cdr: Running,
}

impl Handler {
    async fn start() -> Self {
        Self::start_by(|handler| handler).await
    }

    /// `wrap` may put another process between this one and the handler.
    async fn start_by(wrap: fn(Command) -> Command) -> Self {
        Self::start_over(0, &[], wrap).await
    }

    /// Over so many compositions, with these variables.
    async fn start_with(compositions: u64, variables: &[(&str, &str)]) -> Self {
        Self::start_over(compositions, variables, |handler| handler).await
    }

    async fn start_over(
        compositions: u64,
        variables: &[(&str, &str)],
        wrap: fn(Command) -> Command,
    ) -> Self {
        let cdr = SampleCdr::builder()
            .compositions(compositions)
            .profile(Profile::Compact)
            .clock(Clock::Fixed("2026-06-01T00:00:00Z".parse().unwrap()));
        let cdr = cdr.start().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let port = own_port().await;
        let mut command = wrap(Command::new(HANDLER));
        command
            .env("FUNCTIONS_CUSTOMHANDLER_PORT", port.to_string())
            .env("ATLAS_OPENEHR_BASE_URL", cdr.base_url())
            .env("ATLAS_SQLITE_PATH", folder.path().join("copy.db"))
            .env("ATLAS_QUEUE_CONNECTION_STRING", QUEUE)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let mut handler = Self {
            process: command.spawn().unwrap(),
            port,
            folder,
            cdr,
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        // A connection says nothing: the listener that found the port lives on in a child that is just being started.
        let ready = Recorded::of("ready");
        while !matches!(handler.exchange(&ready).await, Ok(answer) if answer.starts_with("HTTP/1.1 200"))
        {
            assert!(tokio::time::Instant::now() < deadline, "it never listens");
            assert_eq!(handler.process.try_wait().unwrap(), None, "it ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        handler
    }

    /// Sends a request that has to be answered; answers status and body.
    async fn send(&self, recorded: &Recorded) -> (u16, String) {
        let answer = self.exchange(recorded).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// Sends a request byte for byte as the host does; answers what comes back.
    async fn exchange(&self, recorded: &Recorded) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let mut head = format!("{} {} HTTP/1.1\r\n", recorded.method, recorded.path);
        for (name, value) in &recorded.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("Connection: close\r\n\r\n");
        let is_chunked = recorded
            .headers
            .iter()
            .any(|(name, _)| name == "Transfer-Encoding");
        let body = match is_chunked {
            true => format!(
                "{:x}\r\n{}\r\n0\r\n\r\n",
                recorded.body.len(),
                recorded.body
            ),
            false => recorded.body.clone(),
        };
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    fn store(&self) -> rusqlite::Connection {
        let file: PathBuf = self.folder.path().join("copy.db");
        let store = rusqlite::Connection::open(file).unwrap();
        store.busy_timeout(Duration::from_secs(10)).unwrap();
        store
    }

    fn runs(&self) -> Vec<String> {
        let store = self.store();
        let mut runs = store
            .prepare("SELECT id FROM atlas_runs ORDER BY id")
            .unwrap();
        let ids = runs.query_map([], |row| row.get(0)).unwrap();
        ids.map(Result::unwrap).collect()
    }
}

#[tokio::test]
async fn each_recorded_tick_plans_its_occurrence_once() {
    let handler = Handler::start().await;
    for recorded in Recorded::all() {
        if recorded.path == "/planner" {
            let (status, body) = handler.send(&recorded).await;
            assert_eq!(status, 200, "{}: {body}", recorded.case);
        }
    }
    assert_eq!(
        handler.runs(),
        [
            // By hand, 17 seconds before its tick; then the tick itself.
            "timer/2026-11-27T17:11:43.194616Z",
            "timer/2026-11-27T17:12:00.000000Z",
            // Two ticks, one of them early, and two retries.
            "timer/2026-11-27T17:13:00.000000Z",
            "timer/2026-11-27T17:26:00.000000Z",
            "timer/2026-11-27T17:28:00.000000Z",
            // Four calls of one occurrence, by two instances.
            "timer/2026-11-27T17:33:00.000000Z",
            // Without a status: the second.
            "timer/2026-11-27T17:36:40.000000Z",
        ]
    );
}

#[tokio::test]
async fn every_recorded_request_is_understood() {
    let handler = Handler::start().await;
    for recorded in Recorded::all() {
        let (status, body) = handler.send(&recorded).await;
        let expected = match &*recorded.case {
            // Its message cannot be sent from here.
            "http-forwarded-post" => 503,
            "http-forwarded-delete" | "http-forwarded-repeated-query" | "http-forwarded-case" => {
                404
            }
            // As without the slash: the API is asked with POST there.
            "http-forwarded-slash" => 405,
            _ => 200,
        };
        assert_eq!(status, expected, "{}: {body}", recorded.case);
        assert!(!body.contains("<key>"), "{}", recorded.case);
        assert!(
            !body.is_empty() || recorded.path == "/",
            "{}",
            recorded.case
        );
    }
}

#[tokio::test]
async fn http_in_an_envelope_is_answered_like_the_plain_one() {
    let handler = Handler::start().await;
    for (case, expected) in [
        ("http-envelope-get", 200),
        ("http-envelope-delete", 404),
        ("http-envelope-post", 503),
    ] {
        let (status, body) = handler.send(&Recorded::of(case)).await;
        assert_eq!(status, 200, "{case}");
        let document: Value = serde_json::from_str(&body).unwrap();
        let answer = &document["Outputs"]["response"];
        assert_eq!(answer["statusCode"], expected, "{case}: {body}");
        let text = answer["body"].as_str().unwrap();
        match expected {
            200 => assert!(text.contains("atlas_"), "the format was asked for: {text}"),
            _ => assert_eq!(
                answer["headers"]["content-type"],
                "application/problem+json"
            ),
        }
    }
    let nothing = Recorded {
        body: r#"{"Data":{},"Metadata":{}}"#.to_owned(),
        ..Recorded::of("http-envelope-get")
    };
    let (status, body) = handler.send(&nothing).await;
    assert_eq!(status, 200);
    assert!(body.contains("400"), "{body}");
}

#[tokio::test]
async fn told_to_end_it_ends_with_the_code_that_the_host_starts_again() {
    let mut handler = Handler::start().await;
    let id = handler.process.id().unwrap().to_string();
    let told = Command::new("kill").args(["-TERM", &id]).status().await;
    assert!(told.unwrap().success());
    let ended = tokio::time::timeout(Duration::from_secs(20), handler.process.wait()).await;
    assert_eq!(ended.unwrap().unwrap().code(), Some(200));
}

#[tokio::test]
async fn it_ends_when_its_host_is_gone() {
    // A shell between this process and the handler, which is killed as a host is.
    let mut handler = Handler::start_by(|_| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "\"$0\" & wait", HANDLER]);
        shell
    })
    .await;
    handler.process.kill().await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", handler.port))
        .await
        .is_ok()
    {
        assert!(tokio::time::Instant::now() < deadline, "it lives on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A message as the host delivers it for the so-many-th time.
fn delivered(path: &str, message: &str, count: &Value) -> Recorded {
    let body = json!({
        "Data": { "message": json!(message).to_string() },
        "Metadata": { "DequeueCount": count },
    });
    Recorded {
        path: path.to_owned(),
        body: body.to_string(),
        ..Recorded::of("poison-first")
    }
}

#[tokio::test]
async fn a_request_is_read_to_its_end_before_it_is_answered() {
    let handler = Handler::start().await;
    let json = "application/json";
    for (method, path, kind, expected) in [
        ("POST", "/report", json, "200"),
        ("POST", "/planner", "text/plain", "415"),
        ("POST", "/worker", "text/plain", "415"),
        ("POST", "/deadletter", json, "400"),
        ("POST", "/export", json, "400"),
        ("GET", "/worker", json, "405"),
        ("POST", "/nowhere", json, "404"),
        ("POST", "/api/nowhere", json, "404"),
        ("POST", "/api/watermark", json, "405"),
        ("PUT", "/api/exports", json, "405"),
        ("GET", "/api/exports/none", json, "404"),
        ("GET", "/api/watermark", json, "200"),
        ("GET", "/", json, "200"),
    ] {
        let what = format!("{method} {path} {kind}");
        let mut stream = TcpStream::connect(("127.0.0.1", handler.port))
            .await
            .unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"4\r\n no \r\n").await.unwrap();
        let mut answer = [0; 4096];
        let early = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut answer));
        assert!(early.await.is_err(), "{what}: answered too early");
        stream.write_all(b"4\r\njson\r\n0\r\n\r\n").await.unwrap();
        let length = stream.read(&mut answer).await.unwrap();
        let answered = String::from_utf8_lossy(&answer[..length]).into_owned();
        let status = answered.split(' ').nth(1).unwrap_or_default();
        assert_eq!(status, expected, "{what}: {answered}");
        // The host keeps its connections.
        let closes = answered.to_lowercase().contains("connection: close");
        assert!(!closes, "{what}: {answered}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_read_and_refused() {
    let handler = Handler::start().await;
    for (path, size, expected) in [
        ("/api/exports", 2 << 20, 413),
        ("/api/exports", 9 << 20, 413),
        ("/worker", 9 << 20, 413),
    ] {
        let recorded = Recorded {
            path: path.to_owned(),
            body: "x".repeat(size),
            ..Recorded::of("poison-first")
        };
        let (status, body) = handler.send(&recorded).await;
        assert_eq!(status, expected, "{path} {size}: {body}");
    }
}

#[tokio::test]
async fn a_dead_letter_ends_after_five_tries_even_if_nothing_can_start() {
    let handler = Handler::start_with(0, &[("ATLAS_OPENEHR_BASE_URL", "nonsense")]).await;
    let overwritten = r#"{"m":{"v":1,"kind":"plan","run":"r"},"dequeueCount":1}"#;
    for (message, count, expected) in [
        (PLAN, json!("1"), 500),
        (PLAN, json!("4"), 500),
        (PLAN, json!("5"), 200),
        (PLAN, json!("6"), 200),
        (PLAN, json!(4), 500),
        (PLAN, json!(null), 200),
        ("not a message", json!("2"), 500),
        ("not a message", json!("5"), 200),
        (overwritten, json!("1"), 200),
    ] {
        let dead = delivered("/deadletter", message, &count);
        let (status, body) = handler.send(&dead).await;
        assert_eq!(status, expected, "{message} {count}: {body}");
        // A message of work is never let go: the host sets it aside.
        let (status, _) = handler.send(&delivered("/worker", message, &count)).await;
        assert_eq!(status, 500, "{message} {count}");
    }
}

/// Id, run and part of a slice.
fn first_slice(store: &rusqlite::Connection) -> (String, String, u64) {
    let first = "SELECT id, run_id, part FROM atlas_slices ORDER BY id LIMIT 1";
    store
        .query_row(first, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
}

#[tokio::test]
async fn a_dead_letter_marks_nothing_failed_that_nobody_tried() {
    let handler = Handler::start_with(40, &[]).await;
    // Its messages cannot be sent; its slices are kept all the same.
    handler
        .send(&Recorded::of("timer-tick-after-by-hand"))
        .await;
    let store = handler.store();
    let (id, run, part) = first_slice(&store);
    let state = || -> String {
        let state = "SELECT state FROM atlas_slices WHERE id = ?1";
        store.query_row(state, [&id], |row| row.get(0)).unwrap()
    };
    let message =
        json!({ "m": { "v": 1, "kind": "slice", "run": run, "slice": id, "part": part } });
    let of_slice = delivered("/deadletter", &message.to_string(), &json!("1"));
    let planned = json!({ "m": { "v": 1, "kind": "plan", "run": run } });
    let of_run = delivered("/deadletter", &planned.to_string(), &json!("1"));
    for dead in [&of_slice, &of_slice, &of_run] {
        assert_eq!(handler.send(dead).await.0, 200);
        assert_eq!(state(), "open");
    }
    let failed = "SELECT count(*) FROM atlas_runs WHERE outcome = 'failed'";
    let failed: u64 = store.query_row(failed, [], |row| row.get(0)).unwrap();
    assert_eq!(failed, 0);

    // Whoever takes a slice notes when: that is the proof.
    let tried = "UPDATE atlas_slices SET moved = planned WHERE id = ?1";
    store.execute(tried, [&id]).unwrap();
    assert_eq!(handler.send(&of_slice).await.0, 200);
    // Small templates shared it: each of them goes on by itself.
    assert_eq!(state(), "done");
    let own = "SELECT count(*) FROM atlas_slices WHERE members IS NULL AND state = 'open'";
    let own: u64 = store.query_row(own, [], |row| row.get(0)).unwrap();
    assert!(own > 1, "{own}");
}

#[tokio::test]
async fn a_try_that_fails_leaves_its_reason() {
    let quick = [
        ("ATLAS_OPENEHR_RETRY_INITIAL_DELAY_MS", "10"),
        ("ATLAS_OPENEHR_RETRY_MAX_DELAY_MS", "20"),
    ];
    let handler = Handler::start_with(40, &quick).await;
    handler
        .send(&Recorded::of("timer-tick-after-by-hand"))
        .await;
    let store = handler.store();
    let (id, run, part) = first_slice(&store);
    let away = Fault::Status {
        status: 503,
        retry_after_secs: None,
    };
    handler.cdr.handle().inject(away.always());
    for (ahead, expected) in [(1, None), (0, Some(()))] {
        let message = json!({
            "m": { "v": 1, "kind": "slice", "run": run, "slice": id, "part": part + ahead }
        });
        let work = delivered("/worker", &message.to_string(), &json!("1"));
        assert_eq!(handler.send(&work).await.0, 500);
        let failure: Option<String> = store
            .query_row(
                "SELECT failure FROM atlas_slices WHERE id = ?1",
                [&id],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(failure.as_ref().map(|_| ()), expected, "{failure:?}");
    }
}

#[tokio::test]
async fn the_report_counts_what_lies_in_both_queues() {
    let azurite = Azurite::start().unwrap();
    azurite.create_queue("export-work").await.unwrap();
    let account = azurite.connection_string();
    let handler = Handler::start_with(0, &[("ATLAS_QUEUE_CONNECTION_STRING", &account)]).await;
    let watermark = || async {
        let wanted = Recorded {
            method: "GET".to_owned(),
            path: "/api/watermark".to_owned(),
            headers: vec![("Host".to_owned(), "localhost".to_owned())],
            body: String::new(),
            ..Recorded::of("ready")
        };
        let (status, body) = handler.send(&wanted).await;
        assert_eq!(status, 200, "{body}");
        let report: Value = serde_json::from_str(&body).unwrap();
        report["messages"].clone()
    };
    // Without a queue of dead letters there is no number; the report is made all the same.
    assert_eq!(watermark().await, json!({ "work": 0, "dead": null }));
    azurite.create_queue("export-work-poison").await.unwrap();
    // What is no base64 reaches no function, and lies there until it expires.
    for text in ["no base64!", "nor this"] {
        put(&azurite, "export-work-poison", text).await;
    }
    put(&azurite, "export-work", "work").await;
    assert_eq!(watermark().await, json!({ "work": 1, "dead": 2 }));
    // What is being worked on lies there too.
    assert_eq!(azurite.take("export-work").await.unwrap().len(), 1);
    assert_eq!(watermark().await, json!({ "work": 1, "dead": 2 }));
    assert_eq!(
        handler.send(&Recorded::of("http-forwarded-get")).await.0,
        200
    );
}

/// Puts a text into a queue as it is.
async fn put(azurite: &Azurite, queue: &str, text: &str) {
    let url = azurite.queues().trim_start_matches("http://");
    let (address, path) = url.split_once('/').unwrap();
    let sas = azurite.sas().unwrap();
    let body = format!("<QueueMessage><MessageText>{text}</MessageText></QueueMessage>");
    let request = format!(
        "POST /{path}/{queue}/messages?{sas} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}
