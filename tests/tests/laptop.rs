//! The hosts as a person runs them: stopped or killed in the middle of a backlog and started again, the copy is complete soon,
//! and nobody had to help.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::process::Stdio;
use std::time::Duration;

use atlas_ehrbase::shared_postgres;
use atlas_sample_cdr::{Fault, On, Running};
use atlas_scenarios::atlas::program;
use atlas_scenarios::hosted::{Signal, signal};
use atlas_scenarios::source::{of_sample, sample};
use atlas_scenarios::{Store, assert_copy};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};

/// Twenty slices of at most 20.
const COMPOSITIONS: u64 = 400;

/// Far less than the half hour after which a message counts as lost: leases of four seconds, parts of one, and some pages.
const SOON: Duration = Duration::from_secs(30);

/// Between two looks at the copy.
const LOOK: Duration = Duration::from_millis(20);

/// A source that takes its time, an empty database, and a configuration of both.
struct Laptop {
    server: Running,
    store: Store,
    folder: TempDir,
}

impl Laptop {
    async fn new() -> Self {
        let server = sample(COMPOSITIONS).start().await.unwrap();
        let postgres = shared_postgres().await.unwrap();
        let prepared = postgres.prepared_database(&program()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let configuration = format!(
            "database_target = \"postgresql\"\n\
             [openehr]\nbase_url = \"{}\"\n[openehr.query]\nparallel = 2\n\
             [postgresql]\nconnection_string = \"{}\"\nssl_mode = \"disable\"\n\
             [export]\nexport_composition_format = \"canonical\"\nsafety_lag_seconds = 0\nslice_size = 20\n\
             [functions]\nlease_seconds = 4\nslice_seconds = 1\n",
            server.base_url(),
            prepared.exporter
        );
        std::fs::write(folder.path().join("atlas.toml"), configuration).unwrap();
        Self {
            server,
            store: Store::Postgres(prepared.owner),
            folder,
        }
    }

    fn start(&self, cloud: &str, more: &[&str]) -> Console {
        let mut child = Command::new(program().with_file_name("local-hosts"))
            .arg(cloud)
            .arg("--config")
            .arg(self.folder.path().join("atlas.toml"))
            .args(more)
            .current_dir(atlas_machine::checkout().unwrap())
            .env_remove("LOCAL_HOSTS_QUEUE")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Console { child, lines }
    }
}

struct Console {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Console {
    /// The next line of which this is true.
    async fn line(&mut self, is_it: impl Fn(&str) -> bool) -> String {
        let found = async {
            loop {
                let line = self.lines.next_line().await.unwrap();
                let line = line.expect("the host ended");
                if is_it(&line) {
                    return line;
                }
            }
        };
        timeout(SOON, found).await.expect("no such line")
    }

    async fn end(mut self, by: Signal) {
        let id = i32::try_from(self.child.id().unwrap()).unwrap();
        assert!(signal(id, by));
        let read_on = async {
            // A console that nobody reads would hold the host up.
            while let Ok(Some(_)) = self.lines.next_line().await {}
        };
        let ended = async { tokio::join!(self.child.wait(), read_on).0.unwrap() };
        let status = timeout(SOON, ended).await.unwrap();
        assert_eq!(status.success(), by != Signal::KILL);
    }
}

/// Stops a host twice in the middle, the second time one that has just gone on itself.
async fn goes_on(cloud: &str, by: Signal) {
    let laptop = Laptop::new().await;
    let cdr = laptop.server.handle();
    cdr.inject(Fault::Latency { millis: 300 }.always().on(On::AqlPages));
    for more in [["--plan-now"].as_slice(), &[]] {
        let before = laptop.store.count().await;
        let host = laptop.start(cloud, more);
        let begun = Instant::now();
        while laptop.store.count().await == before {
            assert!(begun.elapsed() < SOON, "nothing is copied");
            sleep(LOOK).await;
        }
        host.end(by).await;
        let copied = laptop.store.count().await;
        assert!(
            (1..COMPOSITIONS).contains(&copied),
            "{copied} in the middle"
        );
    }

    cdr.clear_faults();
    let mut host = laptop.start(cloud, &[]);
    let begun = Instant::now();
    host.line(|line| line.starts_with("took over")).await;
    let waits = host.line(|line| line.contains("waits for: ")).await;
    for what in ["planner at ", "export-work: ", " at work"] {
        assert!(waits.contains(what), "{waits}");
    }
    loop {
        let now = laptop.store.count().await;
        if now == COMPOSITIONS {
            break;
        }
        assert!(begun.elapsed() < SOON, "{now} of {COMPOSITIONS}");
        // Whether there is a line or not: what a killed host left at work may write a row, too.
        let _ = timeout(LOOK, host.lines.next_line()).await;
    }
    assert_copy(&laptop.store, &of_sample(&cdr)).await;
    host.end(Signal::INT).await;
}

/// Calls every address that a console prints, as `curl` would, and one beside it.
async fn printed_addresses_are_answered(cloud: &str, expected: usize) {
    let laptop = Laptop::new().await;
    // The planner makes the tables that a report reads.
    let mut host = laptop.start(cloud, &["--plan-now"]);
    let mut printed = Vec::new();
    loop {
        let line = host.line(|_| true).await;
        if let Some((_, call)) = line.split_once("curl ") {
            printed.push(call.to_owned());
        }
        let is_planned = line.contains("planner") && line.ends_with("succeeded");
        if is_planned {
            break;
        }
    }
    assert_eq!(printed.len(), expected, "{printed:?}");
    // A console that nobody reads would hold the host up.
    let mut lines = host.lines;
    let read = tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for call in &printed {
        let (method, rest) = match call.strip_prefix("-X POST ") {
            Some(rest) => (reqwest::Method::POST, rest),
            None => (reqwest::Method::GET, call.as_str()),
        };
        let (url, header) = rest.split_once(" -H ").unwrap_or((rest, ""));
        let send = async |url: &str| {
            let request = client.request(method.clone(), url);
            let request = match header.trim_matches('\'').split_once(": ") {
                Some((name, value)) => request.header(name, value),
                None => request,
            };
            request.send().await.unwrap()
        };
        let answer = send(url).await;
        assert!(answer.status().is_success(), "{call}: {}", answer.status());
        let mistyped = send(&format!("{url}x")).await;
        assert_eq!(mistyped.status(), 404, "{url}x");
        let text = mistyped.text().await.unwrap();
        assert!(text.contains("/api/watermark"), "{text}");
    }
    let id = i32::try_from(host.child.id().unwrap()).unwrap();
    assert!(signal(id, Signal::INT));
    assert!(
        timeout(SOON, host.child.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
    read.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_address_that_the_functions_host_prints_is_answered() {
    printed_addresses_are_answered("azure", 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_address_that_the_lambda_host_prints_is_answered() {
    printed_addresses_are_answered("lambda", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_functions_host_goes_on_after_ctrl_c() {
    goes_on("azure", Signal::INT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_functions_host_goes_on_after_it_was_killed() {
    goes_on("azure", Signal::KILL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lambda_host_goes_on_after_ctrl_c() {
    goes_on("lambda", Signal::INT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lambda_host_goes_on_after_it_was_killed() {
    goes_on("lambda", Signal::KILL).await;
}
