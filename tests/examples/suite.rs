//! Measures the function suite with the programs beside the one that `ATLAS_BIN` names; prints what goes into
//! `docs/benchmarks.md`. Run by `cargo xtask bench suite`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atlas_ehrbase::shared_postgres;
use atlas_scenarios::atlas::program;
use local_hosts::lambda::{Host, Options, Outcome, Pace};
use local_hosts::process::{Process, Program};

const COMPOSITIONS: u64 = 1_000_000;
const STARTS: usize = 20;
const MIB: f64 = 1_048_576.0;

#[tokio::main]
async fn main() {
    let starts = azure_starts().await;
    let (_source, base_url) = source().await;
    let postgres = shared_postgres().await.unwrap();
    let url = postgres.fresh_database().await.unwrap();
    let mut options = Options::suite(program().parent().unwrap());
    options.environment.extend(
        [
            ("ATLAS_DATABASE_TARGET", "postgresql"),
            ("ATLAS_POSTGRESQL_CONNECTION_STRING", url.as_str()),
            ("ATLAS_POSTGRESQL_SSL_MODE", "disable"),
            ("ATLAS_POSTGRESQL_MAX_CONNECTIONS", "4"),
            ("ATLAS_OPENEHR_BASE_URL", &base_url),
            ("ATLAS_FUNCTIONS_SLICE_SECONDS", "20"),
            // Slices that one budget cannot finish.
            ("ATLAS_EXPORT_SLICE_SIZE", "200000"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    options.pace = Pace {
        poll_wait: Duration::from_secs(1),
        ..Pace::default()
    };
    let host = Host::start(options).await.unwrap();
    let begun = Instant::now();
    host.fire("planner").await.unwrap();
    host.quiet(Duration::from_secs(1_500)).await.unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    let store = atlas_scenarios::Store::Postgres(url);
    let copied = store.count().await;
    let open = "SELECT count(*) FROM atlas_slices WHERE state <> 'done'";
    assert_eq!((copied, store.number(open).await), (COMPOSITIONS, 0));
    let invocations = host.invocations();
    let worked: Vec<_> = invocations
        .iter()
        .filter(|one| one.function == "worker")
        .collect();
    assert!(worked.iter().all(|one| one.outcome == Outcome::Succeeded));
    let memory = worked.iter().filter_map(|one| one.memory).max();
    let memory = memory.unwrap_or_default() as f64 / MIB;
    let longest = worked.iter().map(|one| one.duration).max().unwrap();
    let inits = invocations.iter().filter_map(|one| one.init);
    let inits = inits.map(|init| init.as_secs_f64() * 1e3).collect();
    println!(
        "A full export of {COMPOSITIONS} compositions of about 2 KB, FLAT into PostgreSQL, in the Lambda host: slices of 20 s, two \
         workers, two slots; source and database on the same two cores.\n\n\
         | compositions | seconds | compositions/s | worker invocations | longest, s | peak memory of a worker, MiB |\n\
         |---|---|---|---|---|---|\n\
         | {copied} | {seconds:.0} | {:.0} | {} | {:.1} | {memory:.1} |\n\n\
         Start to ready. Lambda: from the start of the process to its first request for an event. Azure: to the first answer to \
         `GET /`, asked twice a millisecond.\n\n\
         | program | starts | min ms | median ms | max ms |\n\
         |---|---|---|---|---|",
        copied as f64 / seconds,
        worked.len(),
        longest.as_secs_f64()
    );
    row("Lambda, planner and worker", inits);
    row("Azure handler", starts);
    host.stop().await;
}

/// The sample CDR as a program of its own, and where it is.
async fn source() -> (Process, String) {
    let path = program().with_file_name("sample-cdr");
    let mut program = Program::new(path, std::env::temp_dir());
    let number = COMPOSITIONS.to_string();
    program.arguments = ["--port=0", "--profile=compact", "--compositions", &number]
        .map(str::to_owned)
        .into();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let lines = move |_, line: &str| {
        // Nobody listens after the first line.
        let _ = tell.send(line.strip_prefix("ready ").map(str::to_owned));
    };
    let process = Process::start(&program, Arc::new(lines)).unwrap();
    let base_url = told.recv().await.flatten().unwrap();
    (process, base_url)
}

fn row(name: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let last = times.len() - 1;
    println!(
        "| {name} | {} | {:.1} | {:.1} | {:.1} |",
        times.len(),
        times[0],
        times[last / 2],
        times[last]
    );
}

/// Milliseconds from the start of the handler to its first answer.
async fn azure_starts() -> Vec<f64> {
    let client = reqwest::Client::new();
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let path = program().with_file_name("atlas-azure");
        let mut handler = Program::new(path, std::env::temp_dir());
        let variable = ("FUNCTIONS_CUSTOMHANDLER_PORT".to_owned(), port.to_string());
        handler.environment = BTreeMap::from([variable]);
        let begun = Instant::now();
        let process = Process::start(&handler, Arc::new(|_, _| {})).unwrap();
        let url = format!("http://127.0.0.1:{port}/");
        while client.get(&url).send().await.is_err() {
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        drop(process);
    }
    times
}
