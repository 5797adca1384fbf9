//! A function: as many processes as it has events at once, each taking one event at a time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use jiff::Timestamp;
use rustix::process::Signal;
use tokio::time::Instant;

use super::environment::{Ended, Environment, Recipe};
use super::faults::Faults;
use super::history::{History, Invocation, Line, Outcome};
use super::options::{FunctionSpec, Pace};
use crate::process::{self, Lines};

/// Numbers the processes of this host.
static ENVIRONMENTS: AtomicU64 = AtomicU64::new(1);

/// Access key ids of processes.
pub(super) type Keys = Arc<Mutex<BTreeMap<String, i32>>>;

/// A process of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub id: i32,
    /// Whether it waits for an event, frozen or not.
    pub idle: bool,
}

/// A function and its processes.
pub(super) struct Function {
    pub(super) spec: FunctionSpec,
    pub(super) pace: Pace,
    freeze: bool,
    environment: BTreeMap<String, String>,
    faults: Faults,
    history: Arc<History>,
    keys: Keys,
    /// All that have started, the one used last at the end.
    environments: Mutex<Vec<Arc<Environment>>>,
    /// Processes that have not asked for their first event yet.
    starting: Mutex<Vec<process::Process>>,
    /// No process is started any more.
    closed: AtomicBool,
}

/// What all functions of a host share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) pace: Pace,
    pub(super) freeze: bool,
    pub(super) faults: Faults,
    pub(super) history: Arc<History>,
    pub(super) keys: Keys,
}

/// An invocation that ended, and how its answer is to be read.
pub(super) struct Done {
    pub(super) invocation: Invocation,
    pub(super) content_type: String,
}

impl Function {
    pub(super) fn new(
        spec: FunctionSpec,
        environment: BTreeMap<String, String>,
        shared: Shared,
    ) -> Self {
        Self {
            spec,
            environment,
            pace: shared.pace,
            freeze: shared.freeze,
            faults: shared.faults,
            history: shared.history,
            keys: shared.keys,
            environments: Mutex::default(),
            starting: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.spec.timeout.unwrap_or(self.pace.timeout)
    }

    /// Runs one event to its end and remembers it, even if the caller goes away meanwhile.
    pub(super) async fn invoke(self: &Arc<Self>, id: String, event: Bytes) -> Done {
        let function = Arc::clone(self);
        let lost = self.lost(&id);
        let run = tokio::spawn(async move {
            let _running = function.history.run();
            let done = function.run(id, event).await;
            function.history.add(&done.invocation);
            done
        });
        // The task only fails to end when the whole runtime goes down.
        run.await.unwrap_or(lost)
    }

    /// Runs one event to its end, on an idle process or on a new one. The caller puts it into the history.
    pub(super) async fn run(&self, id: String, event: Bytes) -> Done {
        if self.closed.load(Ordering::Relaxed) {
            return self.lost(&id);
        }
        let environment = match self.take() {
            Some(environment) => environment,
            None => match self.start().await {
                Ok(environment) => environment,
                Err(reason) => {
                    let mut done = self.lost(&id);
                    done.invocation.outcome = Outcome::Failed(reason);
                    return done;
                }
            },
        };
        let init = environment.is_new().then_some(environment.init);
        let (started, clock) = (Timestamp::now(), Instant::now());
        let (ended, memory) = environment.invoke(&id, event, self.timeout()).await;
        let process = environment.process.id();
        self.put_back(environment);
        let mut done = Done {
            invocation: Invocation {
                id,
                function: self.spec.name.clone(),
                started,
                ended: Timestamp::now(),
                duration: clock.elapsed(),
                init,
                memory,
                process: Some(process),
                outcome: Outcome::Lost,
                answer: None,
            },
            content_type: String::new(),
        };
        done.invocation.outcome = match ended {
            Ended::Answered { body, content_type } => {
                done.invocation.answer = Some(body);
                done.content_type = content_type;
                Outcome::Succeeded
            }
            Ended::Failed(reason) => Outcome::Failed(reason),
            Ended::TimedOut => Outcome::TimedOut,
            Ended::Lost => Outcome::Lost,
        };
        done
    }

    /// The idle process that was used last, and only for this caller.
    fn take(&self) -> Option<Arc<Environment>> {
        let mut environments = self.lock();
        environments.retain(|environment| environment.process.status().is_none());
        environments
            .iter()
            .rfind(|environment| environment.claim())
            .cloned()
    }

    async fn start(&self) -> Result<Arc<Environment>, String> {
        let key = format!("LOCAL{:011}", ENVIRONMENTS.fetch_add(1, Ordering::Relaxed));
        let started = Environment::start(
            key.clone(),
            Recipe {
                spec: &self.spec,
                environment: &self.environment,
                pace: &self.pace,
                faults: &self.faults,
                lines: self.lines(),
                started: &|key, process| {
                    self.keys().insert(key.to_owned(), process.id());
                    self.starting().push(process.clone());
                    if self.closed.load(Ordering::Relaxed) {
                        let _ = process.signal(Signal::KILL);
                    }
                },
            },
        )
        .await;
        let mut starting = self.starting();
        match started {
            Ok(environment) => {
                let environment = Arc::new(environment);
                starting.retain(|process| process.id() != environment.process.id());
                self.lock().push(Arc::clone(&environment));
                Ok(environment)
            }
            Err(reason) => {
                starting.retain(|process| process.status().is_none());
                self.keys().remove(&key);
                Err(reason)
            }
        }
    }

    fn put_back(&self, environment: Arc<Environment>) {
        let mut environments = self.lock();
        environments.retain(|other| !Arc::ptr_eq(other, &environment));
        if environment.process.status().is_some() {
            self.keys().remove(&environment.key);
            return;
        }
        if self.freeze {
            environment.freeze();
        }
        environment.release();
        environments.push(environment);
    }

    /// Passes the lines of a process to the listeners.
    fn lines(&self) -> Lines {
        let (history, function) = (Arc::clone(&self.history), self.spec.name.clone());
        Arc::new(move |stream, text| {
            // There may be no listener.
            let _ = history.lines.send(Line {
                function: function.clone(),
                stream,
                text: text.to_owned(),
            });
        })
    }

    /// The processes that there are, those that have just been started included.
    pub(super) fn processes(&self) -> Vec<Process> {
        let starting = self.starting();
        let starting = starting.iter().map(|process| (process, false));
        let environments = self.lock();
        let running = environments
            .iter()
            .map(|environment| (&environment.process, environment.is_idle()));
        running
            .chain(starting)
            .filter(|(process, _)| process.status().is_none())
            .map(|(process, idle)| Process {
                id: process.id(),
                idle,
            })
            .collect()
    }

    /// The process of an id.
    pub(super) fn environment(&self, process: i32) -> Option<Arc<Environment>> {
        let environments = self.lock();
        let found = environments
            .iter()
            .find(|environment| environment.process.id() == process);
        found.cloned()
    }

    /// Ends the processes that wait for an event, as Lambda does after a while.
    pub(super) async fn retire(&self) {
        let idle: Vec<_> = {
            let mut environments = self.lock();
            environments
                .extract_if(.., |environment| environment.claim())
                .collect()
        };
        join_all(idle.iter().map(|idle| idle.shut_down(self.pace.shutdown))).await;
    }

    /// Ends all processes, busy or not.
    pub(super) async fn stop(&self) {
        let all = self.close();
        join_all(all.iter().map(|one| one.shut_down(self.pace.shutdown))).await;
    }

    /// The same at once, and without waiting.
    pub(super) fn kill(&self) {
        for environment in self.close() {
            let _ = environment.process.signal(Signal::KILL);
        }
    }

    fn close(&self) -> Vec<Arc<Environment>> {
        self.closed.store(true, Ordering::Relaxed);
        for process in self.starting().drain(..) {
            let _ = process.signal(Signal::KILL);
        }
        self.lock().drain(..).collect()
    }

    /// An invocation that no process has seen.
    fn lost(&self, id: &str) -> Done {
        let now = Timestamp::now();
        Done {
            invocation: Invocation {
                id: id.to_owned(),
                function: self.spec.name.clone(),
                started: now,
                ended: now,
                duration: Duration::ZERO,
                init: None,
                memory: None,
                process: None,
                outcome: Outcome::Lost,
                answer: None,
            },
            content_type: String::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Environment>>> {
        self.environments
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn starting(&self) -> MutexGuard<'_, Vec<process::Process>> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys(&self) -> MutexGuard<'_, BTreeMap<String, i32>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
