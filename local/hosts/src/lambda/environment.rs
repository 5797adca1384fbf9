//! One execution environment: a process, its Runtime API, and the signals that freeze, thaw and end it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::faults::Faults;
use super::options::{FunctionSpec, Pace, REGION};
use super::runtime_api::{self, Answer, Delivery, RuntimeApi};
use crate::process::{Lines, Process, Program};

/// Memory that Lambda would give, in MiB. Told to the process, not enforced.
const MEMORY_MIB: &str = "512";

/// How an invocation ended, as far as the process shows.
#[derive(Debug)]
pub(super) enum Ended {
    Answered {
        body: Bytes,
        content_type: String,
    },
    Failed(String),
    TimedOut,
    /// The process ended first, or its answer was lost.
    Lost,
}

/// Why the process is stopped; it runs if neither holds.
#[derive(Debug, Default)]
struct Stops {
    frozen: bool,
    paused: bool,
}

/// A running process that takes one event after the other.
#[derive(Debug)]
pub(super) struct Environment {
    /// Its access key id, by which the queue knows it.
    pub(super) key: String,
    /// From the start to the first request for an event.
    pub(super) init: Duration,
    pub(super) process: Process,
    api: Arc<RuntimeApi>,
    delivered: AtomicU64,
    busy: AtomicBool,
    stops: Mutex<Stops>,
    _server: AbortOnDropHandle<()>,
}

/// What all environments of a function are made from.
pub(super) struct Recipe<'a> {
    pub(super) spec: &'a FunctionSpec,
    pub(super) environment: &'a BTreeMap<String, String>,
    pub(super) pace: &'a Pace,
    pub(super) faults: &'a Faults,
    pub(super) lines: Lines,
    /// Told as soon as there is a process.
    pub(super) started: &'a (dyn Fn(&str, &Process) + Send + Sync),
}

impl Environment {
    /// Starts the process and waits for its first request for an event.
    ///
    /// # Errors
    /// Why there is none: the reason of the invocation that wanted it.
    pub(super) async fn start(key: String, recipe: Recipe<'_>) -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .map_err(|error| format!("Host.Listen: {error}"))?;
        let address = listener
            .local_addr()
            .map_err(|error| format!("Host.Listen: {error}"))?;
        let api = Arc::new(RuntimeApi::new(&recipe.spec.name, recipe.faults.clone()));
        let server =
            AbortOnDropHandle::new(tokio::spawn(runtime_api::serve(listener, Arc::clone(&api))));

        let folder = recipe.spec.program.parent().unwrap_or(Path::new("."));
        let mut program = Program::new(&recipe.spec.program, folder);
        program.environment = variables(&recipe, &key, &address.to_string());
        let begun = Instant::now();
        let process = Process::start(&program, recipe.lines)
            .map_err(|error| format!("Runtime.InvalidEntrypoint: {error}"))?;
        (recipe.started)(&key, &process);
        let init = recipe.pace.init;
        let failure = tokio::select! {
            biased;
            () = api.asked(1) => None,
            error = api.init_error() => Some(error),
            status = process.ended() => Some(format!("Runtime.ExitError: {}", exit(status))),
            () = tokio::time::sleep(init) => Some(format!(
                "Sandbox.Timedout: no request for an event within {:.2} seconds",
                init.as_secs_f64()
            )),
        };
        let environment = Self {
            key,
            init: begun.elapsed(),
            process,
            api,
            delivered: AtomicU64::new(0),
            busy: AtomicBool::new(true),
            stops: Mutex::default(),
            _server: server,
        };
        match failure {
            None => Ok(environment),
            Some(reason) => {
                environment.kill().await;
                Err(reason)
            }
        }
    }

    /// Whether it waits for an event.
    pub(super) fn is_idle(&self) -> bool {
        !self.busy.load(Ordering::Relaxed)
    }

    /// Takes the environment if it is idle. The caller that gets `true` is the only one that may use it.
    pub(super) fn claim(&self) -> bool {
        !self.busy.swap(true, Ordering::Relaxed)
    }

    /// Lets the next one take it.
    pub(super) fn release(&self) {
        self.busy.store(false, Ordering::Relaxed);
    }

    /// Whether no event was delivered to it yet.
    pub(super) fn is_new(&self) -> bool {
        self.delivered.load(Ordering::Relaxed) == 0
    }

    /// Delivers an event and waits for its end, and then for the process to ask for the next one.
    /// Afterwards the process is idle or gone. Answers its peak memory in bytes, too.
    pub(super) async fn invoke(
        &self,
        id: &str,
        event: Bytes,
        timeout: Duration,
    ) -> (Ended, Option<u64>) {
        self.stop(|stops| stops.frozen = false);
        let delivered = self.delivered.fetch_add(1, Ordering::Relaxed) + 1;
        let deadline = Instant::now() + timeout;
        let answer = self.api.deliver(Delivery {
            id: id.to_owned(),
            event,
            timeout,
        });
        let ended = tokio::select! {
            biased;
            answer = answer => match answer {
                Ok(Answer::Response { body, content_type }) => Ended::Answered { body, content_type },
                Ok(Answer::Error { kind, message }) => Ended::Failed(format!("{kind}: {message}")),
                Ok(Answer::Dropped) | Err(_) => Ended::Lost,
            },
            _ = self.process.ended() => Ended::Lost,
            () = tokio::time::sleep_until(deadline) => Ended::TimedOut,
        };
        // Read before the process is killed at its deadline: the file ends with it.
        let memory = peak_memory(self.process.id());
        // The invocation lasts until the process is ready for the next one.
        tokio::select! {
            biased;
            () = self.api.asked(delivered + 1) => {}
            _ = self.process.ended() => {}
            () = tokio::time::sleep_until(deadline) => self.kill().await,
        }
        (ended, memory)
    }

    /// Stops the process until the next event.
    pub(super) fn freeze(&self) {
        self.stop(|stops| stops.frozen = true);
    }

    /// Stops the process, or ends such a stop, whatever else happens to it.
    pub(super) fn pause(&self, paused: bool) {
        self.stop(|stops| stops.paused = paused);
    }

    fn stop(&self, change: impl FnOnce(&mut Stops)) {
        let mut stops = self.stops.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut stops);
        let signal = if stops.frozen || stops.paused {
            Signal::STOP
        } else {
            Signal::CONT
        };
        // A process that is gone needs no signal.
        let _ = self.process.signal(signal);
    }

    /// Ends the process as Lambda does when it needs an environment no longer.
    pub(super) async fn shut_down(&self, limit: Duration) {
        if self.api.has_extension() {
            self.stop(|stops| *stops = Stops::default());
            let _ = self.process.signal(Signal::TERM);
            if tokio::time::timeout(limit, self.process.ended())
                .await
                .is_ok()
            {
                return;
            }
        }
        self.kill().await;
    }

    /// Ends the process at once.
    pub(super) async fn kill(&self) {
        let _ = self.process.signal(Signal::KILL);
        self.process.ended().await;
    }
}

/// What Lambda tells a process, and what keeps the SDK away from the account of the person at this machine.
fn variables(recipe: &Recipe<'_>, key: &str, address: &str) -> BTreeMap<String, String> {
    let name = recipe.spec.name.as_str();
    let root = recipe.spec.program.parent().unwrap_or(Path::new("."));
    let mut variables: BTreeMap<String, String> = [
        ("AWS_ACCESS_KEY_ID", key),
        ("AWS_SECRET_ACCESS_KEY", "local"),
        ("AWS_SESSION_TOKEN", "local"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ("AWS_REGION", REGION),
        ("AWS_DEFAULT_REGION", REGION),
        ("TZ", ":UTC"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    variables.extend(recipe.environment.clone());
    let lambda = [
        ("AWS_LAMBDA_RUNTIME_API", address),
        ("AWS_LAMBDA_FUNCTION_NAME", name),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", MEMORY_MIB),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", &format!("/aws/lambda/{name}")),
        ("AWS_LAMBDA_LOG_STREAM_NAME", key),
        ("AWS_EXECUTION_ENV", "AWS_Lambda_provided.al2023"),
        ("LAMBDA_TASK_ROOT", &root.to_string_lossy()),
        ("LAMBDA_RUNTIME_DIR", &root.to_string_lossy()),
        ("_HANDLER", "bootstrap"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    variables.extend(lambda);
    variables
}

/// How a process ended, for a person.
fn exit(status: Option<std::process::ExitStatus>) -> String {
    match status {
        Some(status) => format!("the process ended with {status}"),
        None => "the process ended".to_owned(),
    }
}

/// Peak resident memory of a process in bytes.
fn peak_memory(process: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
