//! The shipped handler is sent what Microsoft's own Functions host was seen to send, and ends as that host needs it to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use atlas_sample_cdr::{Clock, Profile, Running, SampleCdr};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

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
    _cdr: Running,
}

impl Handler {
    async fn start() -> Self {
        Self::start_by(|handler| handler).await
    }

    /// `wrap` may put another process between this one and the handler.
    async fn start_by(wrap: fn(Command) -> Command) -> Self {
        let cdr = SampleCdr::builder()
            .compositions(0)
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
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let mut handler = Self {
            process: command.spawn().unwrap(),
            port,
            folder,
            _cdr: cdr,
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

    fn runs(&self) -> Vec<String> {
        let file: PathBuf = self.folder.path().join("copy.db");
        let store = rusqlite::Connection::open(file).unwrap();
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
