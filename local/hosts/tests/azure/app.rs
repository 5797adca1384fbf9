//! An app folder for a test, the echo handler in it, and what the handler wrote down.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use local_hosts::azure::{Event, Host, HostError, Invocation, Options, Outcome, Pace};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::broadcast::Receiver;
use tokio::time::timeout;

/// What is waited for comes long before this, or never.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The echo handler, which `cargo test` builds with the tests; a run of this test alone has to ask for it.
pub fn handler() -> &'static Path {
    static HANDLER: OnceLock<PathBuf> = OnceLock::new();
    HANDLER.get_or_init(|| {
        let own = std::env::current_exe().unwrap();
        let built = own.parent().unwrap().parent().unwrap();
        let handler = built.join("examples/echo_handler");
        if !handler.is_file() {
            let cargo = option_env!("CARGO").unwrap_or("cargo");
            let arguments = ["build", "-p", "local-hosts", "--example", "echo_handler"];
            assert!(
                Command::new(cargo)
                    .args(arguments)
                    .status()
                    .unwrap()
                    .success()
            );
        }
        handler
    })
}

pub struct App {
    folder: TempDir,
    pub options: Options,
}

impl App {
    /// One queue function `worker` on `work`, whose process may run one message at a time and is tried three times.
    pub fn new() -> Self {
        let app = Self::bare(json!({}));
        app.function("worker", &[queue_trigger("work")]);
        app
    }

    /// No functions; `more` replaces top-level members of host.json.
    pub fn bare(more: Value) -> Self {
        let folder = TempDir::new().unwrap();
        let root = folder.path().join("app");
        std::fs::create_dir(&root).unwrap();
        let mut host = json!({
            "version": "2.0",
            "functionTimeout": "00:01:00",
            "customHandler": { "description": { "defaultExecutablePath": "handler", "arguments": ["--for", "%ECHO_WHAT%"] } },
            "extensions": { "queues": { "batchSize": 1, "newBatchThreshold": 0, "maxDequeueCount": 3 } },
        });
        for (name, value) in more.as_object().unwrap() {
            host[name] = value.clone();
        }
        std::fs::write(root.join("host.json"), host.to_string()).unwrap();
        std::os::unix::fs::symlink(handler(), root.join("handler")).unwrap();
        let mut options = Options::new(&root);
        options.pace = Pace::fast();
        options.pace.retry_visibility = Some(Duration::ZERO);
        options.schedules = false;
        let path = folder.path().to_string_lossy().into_owned();
        options.environment = [
            ("ECHO_FOLDER", path.as_str()),
            ("ECHO_WHAT", "tests"),
            ("ECHO_QUEUE_URL", "{queue_endpoint}/work"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        Self { folder, options }
    }

    /// Adds a function with these bindings.
    pub fn function(&self, name: &str, bindings: &[Value]) {
        self.function_json(name, &json!({ "bindings": bindings }));
    }

    pub fn function_json(&self, name: &str, content: &Value) {
        let folder = self.options.app.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("function.json"), content.to_string()).unwrap();
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.options
            .environment
            .insert(name.to_owned(), value.to_owned());
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub async fn start(&self) -> Host {
        self.try_start().await.unwrap()
    }

    pub async fn try_start(&self) -> Result<Host, HostError> {
        timeout(LIMIT, Host::start(self.options.clone()))
            .await
            .unwrap()
    }

    fn lines(&self, file: &str) -> Vec<Value> {
        std::fs::read_to_string(self.folder.path().join(file))
            .unwrap_or_default()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// What each process found when it started.
    pub fn starts(&self) -> Vec<Value> {
        self.lines("starts")
    }

    /// What the host asked before the handler was ready.
    pub fn probes(&self) -> Vec<Value> {
        self.lines("probes")
    }

    /// What the handler was asked, the probes left out.
    pub fn requests(&self) -> Vec<Value> {
        self.lines("requests")
    }

    /// Waits until the handler has been asked so often.
    pub async fn asked(&self, count: usize) {
        let asked = async {
            while self.requests().len() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LIMIT, asked).await.unwrap();
    }
}

pub fn queue_trigger(queue: &str) -> Value {
    json!({ "type": "queueTrigger", "direction": "in", "name": "msg", "queueName": queue, "connection": "WorkStorage" })
}

pub fn queue_output(name: &str, queue: &str) -> Value {
    json!({ "type": "queue", "direction": "out", "name": name, "queueName": queue, "connection": "WorkStorage" })
}

pub fn http(route: &str, level: &str, methods: &[&str]) -> [Value; 2] {
    [
        json!({ "type": "httpTrigger", "direction": "in", "name": "req", "authLevel": level, "methods": methods, "route": route }),
        json!({ "type": "http", "direction": "out", "name": "res" }),
    ]
}

pub fn timer(schedule: &str) -> Value {
    json!({ "type": "timerTrigger", "direction": "in", "name": "timer", "schedule": schedule })
}

/// A message that tells the echo handler what to do.
pub fn command(what: &str, code: i64) -> String {
    json!({ "do": what, "code": code }).to_string()
}

/// The next invocation that ends.
pub async fn ended(events: &mut Receiver<Event>) -> Invocation {
    let next = async {
        loop {
            if let Event::Ended(invocation) = events.recv().await.unwrap() {
                return invocation;
            }
        }
    };
    timeout(LIMIT, next).await.unwrap()
}

/// How the message's only or next invocation ends.
pub async fn outcome(host: &Host, message: &str) -> Outcome {
    let mut events = host.events();
    host.queue("work").put(message).await.unwrap();
    ended(&mut events).await.outcome
}

pub async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(LIMIT, what).await.unwrap()
}
