//! What the tests share: the program, quick options, moto, and waits with a limit.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use local_hosts::lambda::{
    FunctionSpec, Host, Invocation, Line, Options, Pace, QueueService, QueueSpec, Trigger,
};
use serde_json::Value;
use tokio::sync::broadcast::Receiver;
use uuid::Uuid;

/// Long enough for anything that will happen, on a machine that is busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A time limit that ends what hangs, and a visibility that ends soon after.
pub(crate) const SHORT: Duration = Duration::from_secs(3);

/// The program of the functions.
pub(crate) fn echo() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let echo = own.ancestors().nth(2).unwrap().join("examples/echo_lambda");
    assert!(
        echo.is_file(),
        "build it first: cargo build -p local-hosts --examples"
    );
    echo
}

/// One function.
pub(crate) fn function(name: &str) -> FunctionSpec {
    FunctionSpec::new(name, echo())
}

/// A function that starts in its own way.
pub(crate) fn starting(name: &str, init: &str) -> FunctionSpec {
    let mut function = function(name);
    function.environment = BTreeMap::from([("ECHO_INIT".to_owned(), init.to_owned())]);
    function
}

/// A host of some functions, without queues.
pub(crate) async fn host(functions: Vec<FunctionSpec>) -> Host {
    Host::start(Options::new(functions)).await.unwrap()
}

/// A worker on a queue with a dead-letter queue after two receives; the names are new, since moto is shared.
pub(crate) struct Work {
    pub(crate) options: Options,
    pub(crate) queue: String,
    pub(crate) dead: String,
}

impl Work {
    pub(crate) fn new(service: QueueService, batch_size: usize, max_concurrency: usize) -> Self {
        let queue = format!("work-{}", Uuid::new_v4().simple());
        let dead = format!("{queue}-poison");
        let mut worker = function("worker").on(Trigger::Queue {
            name: queue.clone(),
            batch_size,
        });
        worker.max_concurrency = max_concurrency;
        let mut options = Options::new(vec![worker]);
        options.queues = QueueSpec::pair(&queue, &dead, 2);
        options.queue = service;
        options
            .environment
            .insert("ECHO_QUEUE_URL".to_owned(), "{queue_url}".to_owned());
        options.pace = Pace {
            visibility: Duration::from_secs(60),
            timeout: Duration::from_secs(60),
            poll_wait: Duration::from_secs(1),
            ..Pace::default()
        };
        Self {
            options,
            queue,
            dead,
        }
    }

    /// With messages that come back soon.
    pub(crate) fn short(mut self) -> Self {
        self.options.pace.visibility = SHORT;
        self.options.pace.timeout = SHORT;
        self
    }

    pub(crate) async fn start(&self) -> Host {
        Host::start(self.options.clone()).await.unwrap()
    }
}

/// The next invocation that ends.
pub(crate) async fn next(ended: &mut Receiver<Invocation>) -> Invocation {
    within(ended.recv()).await.unwrap()
}

/// Waits for a line that begins like this, and answers the rest of it.
pub(crate) async fn line(lines: &mut Receiver<Line>, begin: &str) -> String {
    within(async {
        loop {
            let line = lines.recv().await.unwrap();
            if let Some(rest) = line.text.strip_prefix(begin) {
                return rest.trim().to_owned();
            }
        }
    })
    .await
}

pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what)
        .await
        .expect("this takes too long")
}

/// Looks until something holds.
pub(crate) async fn until(mut holds: impl AsyncFnMut() -> bool) {
    within(async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// What a function answered.
pub(crate) fn answer(invocation: &Invocation) -> Value {
    let answer = invocation.answer.as_ref();
    serde_json::from_slice(answer.unwrap_or_else(|| panic!("no answer: {invocation:?}"))).unwrap()
}

/// A letter for what a process does: `T` is stopped. `None` when it is gone.
pub(crate) fn state(process: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit(')').next()?.trim().chars().next()
}

/// A client as the functions have one, without its own repeats.
pub(crate) fn client(endpoint: &str) -> Client {
    Client::from_conf(
        aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .endpoint_url(endpoint)
            .credentials_provider(Credentials::new("TEST", "test", None, None, "test"))
            .retry_config(aws_sdk_sqs::config::retry::RetryConfig::disabled())
            .build(),
    )
}

/// Both queue services.
pub(crate) fn services() -> [QueueService; 2] {
    [
        QueueService::InProcess,
        QueueService::Endpoint(moto().to_owned()),
    ]
}

/// Serves on a free port until its standard input ends: it cannot outlive this process.
const MOTO: &str = "
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
from moto.server import main
main(['-H', '127.0.0.1', '-p', '0'])
";

const MOTO_VERSION: &str = "5.2.5";

/// Address of moto, started once for all tests of this process.
pub(crate) fn moto() -> &'static str {
    static SERVER: LazyLock<(String, Mutex<Child>)> = LazyLock::new(|| {
        let mut child = Command::new(python())
            .args(["-c", MOTO])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let url = lines
            .find_map(|line| Some(line.unwrap().split_once("Running on ")?.1.trim().to_owned()))
            .expect("moto does not say where it runs");
        std::thread::spawn(move || lines.for_each(drop));
        (url, Mutex::new(child))
    });
    &SERVER.0
}

/// A Python that has moto: made once, kept in the folder for temporary files.
fn python() -> PathBuf {
    let kept = std::env::temp_dir().join(format!("atlas-moto-{MOTO_VERSION}"));
    let python = kept.join("bin/python");
    if !python.exists() {
        let new = tempfile::tempdir().unwrap().keep();
        run(Command::new("python3").args(["-m", "venv"]).arg(&new));
        run(Command::new(new.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet"])
            .arg(format!("moto[server]=={MOTO_VERSION}")));
        // Another process may have been faster; its work is as good.
        if std::fs::rename(&new, &kept).is_err() {
            std::fs::remove_dir_all(&new).unwrap();
        }
    }
    python
}

fn run(command: &mut Command) {
    let output = command.output().expect("python3 is needed");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
}
