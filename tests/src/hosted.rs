//! The function suite as its clouds run it: the shipped programs in a host of this machine, a queue, and PostgreSQL.

pub mod recorded;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use atlas_ehrbase::shared_postgres;
use atlas_emulators::{Azurite, Moto};
use jiff::{SignedDuration, Timestamp};
use local_hosts::process::Process;
pub use local_hosts::process::{Signal, signal};
use local_hosts::{azure, lambda};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;
use tempfile::TempDir;

use crate::atlas::program;
use crate::store::Store;

/// What is waited for comes within this, unless something hangs.
pub const LIMIT: Duration = Duration::from_secs(120);
const WORK: &str = "export-work";
const MINUTE: Duration = Duration::from_secs(60);

/// Whose host it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// The Functions host.
    Azure,
    /// The Lambda host.
    Lambda,
}

/// Who serves the queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queues {
    /// The host itself.
    InProcess,
    /// Azurite or moto.
    Emulator,
}

/// What is hosted.
pub struct Wanted {
    cloud: Cloud,
    queues: Queues,
    /// Workers at once.
    workers: usize,
    store: Store,
    environment: BTreeMap<String, String>,
    /// Limit of an invocation, as the platform has it.
    timeout: Duration,
    /// How long a minute of the platform lasts.
    minute: Duration,
}

impl Wanted {
    /// Canonical JSON from a server into a database of its own: three workers, two slots, leases of four seconds.
    pub async fn new(cloud: Cloud, queues: Queues, base_url: &str) -> Self {
        let postgres = shared_postgres().await.unwrap();
        let prepared = postgres.prepared_database(&program()).await.unwrap();
        let environment = [
            ("ATLAS_DATABASE_TARGET", "postgresql"),
            ("ATLAS_POSTGRESQL_CONNECTION_STRING", &*prepared.exporter),
            ("ATLAS_POSTGRESQL_SSL_MODE", "disable"),
            ("ATLAS_OPENEHR_BASE_URL", base_url),
            ("ATLAS_OPENEHR_RETRY_INITIAL_DELAY_MS", "10"),
            ("ATLAS_OPENEHR_QUERY_PARALLEL", "2"),
            ("ATLAS_EXPORT_EXPORT_COMPOSITION_FORMAT", "canonical"),
            ("ATLAS_EXPORT_SAFETY_LAG_SECONDS", "0"),
            ("ATLAS_EXPORT_SLICE_SIZE", "60"),
            ("ATLAS_FUNCTIONS_LEASE_SECONDS", "4"),
            ("ATLAS_SCHEDULE_PLAN", "0 */15 * * * *"),
            ("ATLAS_SCHEDULE_REPORT", "0 */5 * * * *"),
        ];
        Self {
            cloud,
            queues,
            workers: 3,
            store: Store::Postgres(prepared.owner),
            environment: environment
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            timeout: Duration::from_secs(18),
            minute: MINUTE,
        }
    }

    /// With this variable.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With so many workers at once.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// With this limit of an invocation: the suite is told, and the host kills.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// With minutes of the platform that last this long: retries of timers, delays and visibility in queues. What the programs
    /// themselves wait for is set by variables.
    pub fn minute(mut self, minute: Duration) -> Self {
        self.minute = minute;
        self
    }

    /// Into this store, which others use as well.
    pub fn store(mut self, store: &Store) -> Self {
        self.store = store.clone();
        self.with("ATLAS_POSTGRESQL_CONNECTION_STRING", &store.exporter())
    }

    /// Starts the host.
    pub async fn start(self) -> Hosted {
        let next = AtomicI64::new(Timestamp::now().as_second() / 60 * 60);
        let (host, emulator, folder) = match self.cloud {
            Cloud::Azure => self.azure().await,
            Cloud::Lambda => self.lambda().await,
        };
        Hosted {
            host,
            store: self.store,
            client: Client::new(),
            next,
            _emulator: Mutex::new(emulator),
            _folder: folder,
        }
    }

    async fn azure(&self) -> (Host, Emulator, Option<TempDir>) {
        let folder = app(self.minute);
        let mut options = azure::Options::new(folder.path());
        options.environment = self.environment.clone();
        // Slice and margin must fit below what the suite is told.
        let seconds = self.timeout.as_secs().max(300).to_string();
        options
            .environment
            .insert("ATLAS_FUNCTIONS_TIMEOUT_SECONDS".to_owned(), seconds);
        options.instances = self.workers;
        options.schedules = false;
        options.pace = azure::Pace {
            function_timeout: Some(self.timeout),
            // These tests kill more often than a host puts up with.
            errors_to_stop: 1_000,
            ..azure::Pace::fast()
        };
        let emulator = match self.queues {
            Queues::InProcess => {
                let url = format!("{{queue_endpoint}}/{WORK}");
                options
                    .environment
                    .insert("ATLAS_QUEUE_URL".to_owned(), url);
                Emulator::None
            }
            Queues::Emulator => {
                let azurite = Azurite::start().unwrap();
                let text = azurite.connection_string();
                let part = |name: &str| {
                    let prefix = format!("{name}=");
                    let found = text.split(';').find_map(|part| part.strip_prefix(&prefix));
                    found.unwrap().to_owned()
                };
                options.queue = azure::QueueService::Account {
                    endpoint: azurite.queues().to_owned(),
                    account: part("AccountName"),
                    key: part("AccountKey"),
                };
                options
                    .environment
                    .insert("ATLAS_QUEUE_CONNECTION_STRING".to_owned(), text);
                Emulator::Azurite(azurite)
            }
        };
        let host = azure::Host::start(options).await.unwrap();
        if is_told() {
            let mut events = host.events();
            tokio::spawn(async move {
                while let Ok(event) = events.recv().await {
                    tell(&format!("{event:?}"));
                }
            });
        }
        (Host::Azure(host), emulator, Some(folder))
    }

    async fn lambda(&self) -> (Host, Emulator, Option<TempDir>) {
        let mut options = lambda::Options::suite(&programs());
        options.environment.extend(self.environment.clone());
        let worker = options
            .functions
            .iter_mut()
            .find(|function| function.name == "worker");
        worker.unwrap().max_concurrency = self.workers;
        options.pace = lambda::Pace {
            // At least the time limit, or AWS refuses the mapping: what a dead worker had comes back after this.
            visibility: match self.minute {
                MINUTE => self.timeout,
                _ => lambda::Pace::default().visibility,
            },
            second: self.minute / 60,
            poll_wait: Duration::from_secs(1),
            timeout: self.timeout,
            schedule_retry_wait: Duration::from_secs(1),
            ..lambda::Pace::default()
        };
        let emulator = match self.queues {
            Queues::InProcess => Emulator::None,
            Queues::Emulator => {
                let moto = Moto::start().unwrap();
                options.queue = lambda::QueueService::Endpoint(moto.endpoint().to_owned());
                Emulator::Moto(moto)
            }
        };
        let host = lambda::Host::start(options).await.unwrap();
        if is_told() {
            let mut lines = host.lines();
            tokio::spawn(async move {
                while let Ok(line) = lines.recv().await {
                    tell(&format!("{}: {}", line.function, line.text));
                }
            });
        }
        (Host::Lambda(host), emulator, None)
    }
}

/// Whether somebody wants to see what the functions write: `ATLAS_TEST_LOG=1`.
fn is_told() -> bool {
    std::env::var_os("ATLAS_TEST_LOG").is_some()
}

fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Ends with the value.
#[expect(dead_code, reason = "held to be dropped")]
enum Emulator {
    None,
    Azurite(Azurite),
    Moto(Moto),
}

enum Host {
    Azure(azure::Host),
    Lambda(lambda::Host),
}

/// A running suite.
pub struct Hosted {
    host: Host,
    store: Store,
    client: Client,
    /// Unix seconds of the next occurrence of the schedule.
    next: AtomicI64,
    /// Locked only so that a suite can be shared.
    _emulator: Mutex<Emulator>,
    _folder: Option<TempDir>,
}

/// How an invocation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As it should.
    Succeeded,
    /// The function said that it failed.
    Failed,
    /// Its time was over.
    TimedOut,
    /// Its process was gone.
    Lost,
}

/// What goes wrong with the next messages, on either host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Delivered twice.
    Duplicate,
    /// Never delivered.
    Lose,
    /// Delivered a second later.
    Delay,
    /// The newest first.
    Reverse,
    /// Something unreadable comes along.
    Malformed,
    /// The function answered, and nobody heard it.
    DropResponse,
    /// Not deleted after a success.
    SkipDelete,
    /// The queue answers 503.
    QueueUnavailable,
}

/// A held event.
pub enum Gate {
    /// Of the Functions host.
    Azure(azure::Gate),
    /// Of the Lambda host.
    Lambda(lambda::Gate),
}

impl Gate {
    /// Waits until the event is held.
    pub async fn reached(&self) {
        let reached = async {
            match self {
                Self::Azure(gate) => gate.reached().await,
                Self::Lambda(gate) => {
                    gate.reached().await;
                }
            }
        };
        tokio::time::timeout(LIMIT, reached)
            .await
            .expect("nothing came to the gate");
    }

    /// Lets it go on.
    pub fn release(self) {
        match self {
            Self::Azure(gate) => gate.release(),
            Self::Lambda(gate) => gate.release(),
        }
    }
}

/// Where a message is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A function's message has arrived and is not stored.
    BeforeSend,
    /// It is stored and not answered for.
    AfterSend,
    /// A message is about to be deleted after a success.
    BeforeDelete,
    /// It was deleted.
    AfterDelete,
}

impl Hosted {
    /// Where the copy is.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The planner's timer fires for the next occurrence, a quarter of an hour after the last one.
    pub async fn plan_and_repair(&self) -> Ended {
        let at = self.next.fetch_add(900, Ordering::SeqCst);
        self.tick_at(at).await
    }

    /// The planner's timer fires for the same occurrence as last time.
    pub async fn tick_again(&self) -> Ended {
        self.tick_at(self.next.load(Ordering::SeqCst) - 900).await
    }

    /// The planner's timer fires twice at once for the next occurrence.
    pub async fn tick_twice(&self) -> [Ended; 2] {
        let at = self.next.fetch_add(900, Ordering::SeqCst);
        let (first, second) = tokio::join!(self.tick_at(at), self.tick_at(at));
        [first, second]
    }

    async fn tick_at(&self, seconds: i64) -> Ended {
        let at = Timestamp::from_second(seconds).unwrap() + SignedDuration::ZERO;
        match &self.host {
            Host::Azure(host) => {
                let invocation = host.fire_with("planner", Some(at), false).await.unwrap();
                of_azure(&invocation.outcome)
            }
            Host::Lambda(host) => of_lambda(&host.fire_at("planner", at).await.unwrap().outcome),
        }
    }

    /// The timer of the report fires.
    pub async fn report(&self) -> Ended {
        match &self.host {
            Host::Azure(host) => of_azure(&host.fire("report").await.unwrap().outcome),
            Host::Lambda(host) => of_lambda(&host.fire("watermark").await.unwrap().outcome),
        }
    }

    /// Calls a function of the Lambda host with an event (JSON).
    pub async fn invoke(&self, function: &str, event: &str) -> Ended {
        match &self.host {
            Host::Azure(_) => panic!("functions of Azure are called by their triggers"),
            Host::Lambda(host) => {
                let event = event.to_owned();
                of_lambda(&host.invoke(function, event).await.unwrap().outcome)
            }
        }
    }

    /// Waits until nothing is queued and nothing runs.
    pub async fn quiet(&self) {
        match &self.host {
            Host::Azure(host) => host.quiet(LIMIT).await.unwrap(),
            Host::Lambda(host) => host.quiet(LIMIT).await.unwrap(),
        }
    }

    /// A tick, and all that follows from it.
    pub async fn tick_and_work(&self) {
        assert_eq!(
            self.plan_and_repair().await,
            Ended::Succeeded,
            "the planner"
        );
        self.quiet().await;
    }

    /// How the worker's invocations ended so far.
    pub fn worked(&self) -> Vec<Ended> {
        match &self.host {
            Host::Azure(host) => {
                let of = host.invocations().into_iter();
                of.filter(|one| one.function == "worker")
                    .map(|one| of_azure(&one.outcome))
                    .collect()
            }
            Host::Lambda(host) => {
                let of = host.invocations().into_iter();
                of.filter(|one| one.function == "worker")
                    .map(|one| of_lambda(&one.outcome))
                    .collect()
            }
        }
    }

    /// The ids of the processes in which workers run.
    pub fn workers(&self) -> Vec<i32> {
        match &self.host {
            Host::Azure(host) => host.processes().iter().map(Process::id).collect(),
            Host::Lambda(host) => host
                .processes("worker")
                .iter()
                .map(|process| process.id)
                .collect(),
        }
    }

    /// Kills the processes in which workers run (SIGKILL).
    pub fn kill_workers(&self) {
        for process in self.workers() {
            let _ = signal(process, Signal::KILL);
        }
    }

    /// Holds the next event at a point.
    pub fn hold(&self, point: Point) -> Gate {
        match &self.host {
            Host::Azure(host) => Gate::Azure(host.hold(match point {
                Point::BeforeSend => azure::Point::BeforeSend,
                Point::AfterSend => azure::Point::AfterSend,
                Point::BeforeDelete => azure::Point::BeforeDelete,
                Point::AfterDelete => azure::Point::AfterDelete,
            })),
            Host::Lambda(host) => Gate::Lambda(host.hold(match point {
                Point::BeforeSend => lambda::Point::BeforeSend,
                Point::AfterSend => lambda::Point::AfterSend,
                Point::BeforeDelete => lambda::Point::BeforeDelete,
                Point::AfterDelete => lambda::Point::AfterDelete,
            })),
        }
    }

    /// Switches something on for the next events.
    pub fn trouble(&self, trouble: Trouble, times: u32) {
        match &self.host {
            Host::Azure(host) => {
                let fault = match trouble {
                    Trouble::Duplicate => azure::Fault::Duplicate,
                    Trouble::Lose => azure::Fault::Lose,
                    Trouble::Delay => azure::Fault::Delay(Duration::from_secs(1)),
                    Trouble::Reverse => azure::Fault::Reverse,
                    Trouble::Malformed => azure::Fault::Malformed,
                    Trouble::DropResponse => azure::Fault::DropResponse,
                    Trouble::SkipDelete => azure::Fault::SkipDelete,
                    Trouble::QueueUnavailable => azure::Fault::Unavailable,
                };
                host.faults().set(fault, azure::Times::Next(times));
            }
            Host::Lambda(host) => {
                let fault = match trouble {
                    Trouble::Duplicate => lambda::Fault::Duplicate,
                    Trouble::Lose => lambda::Fault::Lose,
                    Trouble::Delay => lambda::Fault::DelayDelivery(Duration::from_secs(1)),
                    Trouble::Reverse => lambda::Fault::Reverse,
                    Trouble::Malformed => lambda::Fault::Malformed,
                    Trouble::DropResponse => lambda::Fault::DropResponse,
                    Trouble::SkipDelete => lambda::Fault::SkipDelete,
                    Trouble::QueueUnavailable => lambda::Fault::QueueUnavailable,
                };
                host.faults().set(fault, lambda::Times::Next(times));
            }
        }
    }

    /// Puts a text into the queue of work.
    pub async fn put(&self, text: &str) {
        match &self.host {
            Host::Azure(host) => host.queue(WORK).put(text).await.unwrap(),
            Host::Lambda(host) => host.queue(WORK).unwrap().put(text).await.unwrap(),
        }
    }

    /// Puts a text into the queue of work on Azure, without the encoding that messages have there.
    pub async fn put_raw(&self, text: &str) {
        match &self.host {
            Host::Azure(host) => host.queue(WORK).put_raw(text).await.unwrap(),
            Host::Lambda(_) => panic!("a message of Amazon SQS is any text"),
        }
    }

    /// A request to the on-demand API or the watermark, with the platform's key.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        match &self.host {
            Host::Azure(host) => {
                let request = self.client.request(method, format!("{}{path}", host.url()));
                let key = match path.starts_with("/admin/") {
                    true => host.master_key(),
                    false => host.key(),
                };
                request.header("x-functions-key", key)
            }
            Host::Lambda(host) => {
                let function = if path.starts_with("/api/exports") {
                    "export"
                } else {
                    "watermark"
                };
                let base = host.url(function).unwrap();
                self.client
                    .request(method, format!("{}{path}", base.trim_end_matches('/')))
            }
        }
    }

    /// Sends a request that is answered with this status, and reads its JSON.
    pub async fn answers(&self, request: RequestBuilder, status: u16) -> Value {
        let answer = request.send().await.unwrap();
        let got = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        assert_eq!(got, status, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Asks for the state of a run until it has ended.
    pub async fn ended(&self, run: &str) -> Value {
        let begun = std::time::Instant::now();
        loop {
            let path = format!("/api/exports/{run}");
            let state = self.answers(self.request(Method::GET, &path), 200).await;
            if !state["ended"].is_null() {
                return state;
            }
            assert!(begun.elapsed() < LIMIT, "the run does not end: {state}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// No slice is left, every run has an end, and its counts are conserved.
    pub async fn assert_settled(&self) {
        let open = "SELECT count(*) FROM atlas_slices WHERE state <> 'done'";
        assert_eq!(self.store.number(open).await, 0, "slices that are not done");
        let running = "SELECT id, origin, started, cut FROM atlas_runs WHERE ended IS NULL";
        let running = self.store.query(running).await;
        assert!(running.is_empty(), "runs without an end: {running:?}");
        let lost = "SELECT count(*) FROM atlas_runs WHERE count_read
                    <> count_written + count_unchanged + count_filtered + count_quarantined";
        assert_eq!(
            self.store.number(lost).await,
            0,
            "runs whose counts do not add up"
        );
    }

    /// Ends the host and its processes.
    pub async fn stop(self) {
        match self.host {
            Host::Azure(host) => host.stop().await,
            Host::Lambda(host) => host.stop().await,
        }
    }
}

fn of_azure(outcome: &azure::Outcome) -> Ended {
    match outcome {
        azure::Outcome::Succeeded => Ended::Succeeded,
        azure::Outcome::Failed(_) => Ended::Failed,
        azure::Outcome::TimedOut => Ended::TimedOut,
        azure::Outcome::Lost => Ended::Lost,
    }
}

fn of_lambda(outcome: &lambda::Outcome) -> Ended {
    match outcome {
        lambda::Outcome::Succeeded => Ended::Succeeded,
        lambda::Outcome::Failed(_) | lambda::Outcome::Returned(_) => Ended::Failed,
        lambda::Outcome::TimedOut => Ended::TimedOut,
        lambda::Outcome::Lost => Ended::Lost,
    }
}

/// Where the programs are that were built beside the tests.
fn programs() -> PathBuf {
    program().parent().unwrap().to_owned()
}

/// The app folder as it is shipped, with the program under the name that `host.json` says, and with minutes that last this long
/// between the tries of a timer.
fn app(minute: Duration) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let shipped = atlas_machine::checkout()
        .unwrap()
        .join("functions/azure/app");
    for entry in std::fs::read_dir(shipped).unwrap() {
        let entry = entry.unwrap();
        let to = folder.path().join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            let text = std::fs::read_to_string(entry.path().join("function.json")).unwrap();
            let mut function: Value = serde_json::from_str(&text).unwrap();
            if let Some(delay) = function.pointer_mut("/retry/delayInterval") {
                assert_eq!(*delay, "00:00:30");
                *delay = format!("00:00:{:09.6}", minute.as_secs_f64() / 2.0).into();
            }
            std::fs::write(to.join("function.json"), function.to_string()).unwrap();
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
    std::os::unix::fs::symlink(
        programs().join("atlas-azure"),
        folder.path().join("handler"),
    )
    .unwrap();
    folder
}
