//! A host for an Azure Functions custom handler: it starts the shipped program and speaks only the wire protocol.
//!
//! ```text
//!   app folder ──► app ─┐                    ┌─ instance 0 ── handler process
//!                       │  timer ─────────┐  │
//!   schedule ───────────┼► listener ──────┼──┼─ instance 1 ── handler process ──┐
//!   HTTP ───────────────┼► front ─────────┘  │                                  │ SDK
//!                       │      wire: envelopes and answers                      ▼
//!                       └─ queue (client) ──► queue_server here, or Azurite, or an account
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | `app`, `route` | `host.json`, `function.json`, route templates |
//! | `wire` | the envelope of each trigger, what an answer means |
//! | `instance` | a process: ready, invoked, restarted, killed |
//! | `listener`, `timer`, `front` | the three triggers |
//! | `queue`, `queue_server` | the client of a queue service, and the in-process service |
//! | `faults` | what can be made to go wrong |
//! | `history` | invocations and events |
//! | `command` | `local-hosts azure` |

mod app;
pub mod command;
mod end;
mod error;
mod faults;
mod front;
mod history;
mod instance;
mod listener;
mod queue;
mod queue_server;
mod route;
mod timer;
mod wire;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

pub use end::{Down, End};
pub use error::HostError;
pub use faults::{Fault, Gate, Point, Times};
pub use history::{Event, Invocation, Level, Outcome, Reason};
pub use queue::{ClientError, QueueClient, QueueError, QueueFailure, QueueService, Received};
pub use queue_server::Contents;

use app::{App, Trigger};
use history::History;
use instance::Instance;
use queue_server::QueueServer;
use timer::Timer;

use crate::journal::{Journal, Left};
use crate::process::Process;

/// Stands for the queue service's endpoint in a value of the environment.
const QUEUE_ENDPOINT: &str = "{queue_endpoint}";

/// Between two looks at whether there is nothing left to do.
const LOOK: Duration = Duration::from_millis(20);

/// The app and how it is hosted. There is no `Debug`, because app settings can be secrets.
#[derive(Clone)]
pub struct Options {
    /// Folder with `host.json`.
    pub app: PathBuf,
    /// App settings. `{queue_endpoint}` in a value stands for the endpoint of the queue service, without a slash at its end.
    pub environment: BTreeMap<String, String>,
    /// Handler processes. With 0 only the front end and the queue service are there.
    pub instances: usize,
    /// Where the queues are.
    pub queue: QueueService,
    /// All intervals and limits.
    pub pace: Pace,
    /// How values are encoded for the handler.
    pub encoding: Encoding,
    /// Whether timers run by their schedule; otherwise only when they are fired.
    pub schedules: bool,
    /// Folder for the status of timers and the messages of the in-process queue service. Without it a host knows neither what it
    /// missed while it was off nor what the one before it left undone.
    pub state: Option<PathBuf>,
}

impl Options {
    /// One instance of an app with the in-process queue service, at the pace of the real host.
    #[must_use]
    pub fn new(app: impl Into<PathBuf>) -> Self {
        Self {
            app: app.into(),
            environment: BTreeMap::new(),
            instances: 1,
            queue: QueueService::InProcess,
            pace: Pace::default(),
            encoding: Encoding::Real,
            schedules: true,
            state: None,
        }
    }
}

/// How values in an envelope are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As the real host does: strings, numbers and arrays once more as JSON in a string.
    Real,
    /// As the examples in the published documentation show it.
    Docs,
}

/// Intervals and limits. The default is the real host's.
#[derive(Debug, Clone)]
pub struct Pace {
    /// How long a message is hidden while it is in work; renewed at half of it. Whole seconds.
    pub visibility: Duration,
    /// A renewal comes no earlier than this.
    pub renewal_min: Duration,
    /// Instead of `visibilityTimeout` of `host.json`. Whole seconds.
    pub retry_visibility: Option<Duration>,
    /// The first pause after an empty queue was found.
    pub poll_min: Duration,
    /// Instead of `maxPollingInterval` of `host.json`.
    pub poll_max: Option<Duration>,
    /// Instead of `functionTimeout` of `host.json`.
    pub function_timeout: Option<Duration>,
    /// After this long the load balancer gives up on a request.
    pub http_limit: Duration,
    /// How long a process may take until it answers `GET /`.
    pub readiness: Duration,
    /// How long what runs in an instance may go on when the instance is taken away.
    pub grace: Duration,
    /// SIGTERM before SIGKILL, and how long to wait in between. The real host sends none.
    pub terminate_first: Option<Duration>,
    /// With so many failures of its process an instance stops.
    pub errors_to_stop: u32,
    /// A failure this long ago does not count any more.
    pub error_memory: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            visibility: Duration::from_secs(600),
            renewal_min: Duration::from_secs(60),
            retry_visibility: None,
            poll_min: Duration::from_millis(100),
            poll_max: None,
            function_timeout: None,
            http_limit: Duration::from_secs(230),
            readiness: Duration::from_secs(30),
            grace: Duration::from_secs(3600),
            terminate_first: None,
            errors_to_stop: 3,
            error_memory: Duration::from_secs(1800),
        }
    }
}

impl Pace {
    /// Everything that is waited for lasts a second or two; limits on work stay.
    #[must_use]
    pub fn fast() -> Self {
        Self {
            visibility: Duration::from_secs(2),
            renewal_min: Duration::ZERO,
            retry_visibility: Some(Duration::from_secs(1)),
            poll_min: Duration::from_millis(10),
            poll_max: Some(Duration::from_millis(100)),
            grace: Duration::from_secs(2),
            ..Self::default()
        }
    }
}

/// What all parts of a host share.
struct Inner {
    app: App,
    pace: Pace,
    encoding: Encoding,
    /// App settings, complete.
    environment: BTreeMap<String, String>,
    history: History,
    switches: faults::Shared,
    queue: QueueClient,
    queue_endpoint: String,
    /// `None` if the queues are elsewhere.
    server: Option<QueueServer>,
    timers: BTreeMap<String, Timer>,
    instances: Mutex<Vec<Arc<Instance>>>,
    turn: AtomicUsize,
    /// To the handler.
    http: instance::Client,
    key: String,
    master_key: String,
    stop: CancellationToken,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

impl Inner {
    /// How long an invocation may take.
    fn timeout(&self) -> Duration {
        self.pace
            .function_timeout
            .or(self.app.timeout)
            .unwrap_or(Duration::MAX)
    }

    fn retry_visibility(&self) -> Duration {
        self.pace
            .retry_visibility
            .unwrap_or(self.app.queues.visibility_timeout)
    }

    fn poll_max(&self) -> Duration {
        self.pace
            .poll_max
            .unwrap_or(self.app.queues.max_polling_interval)
    }

    /// `Logs` of an answer are lines like those on standard output.
    fn log(&self, instance: usize, lines: &[String]) {
        for line in lines {
            self.history.tell(Event::Line {
                instance,
                level: Level::Information,
                text: line.clone(),
            });
        }
    }

    fn place(
        &self,
        name: &str,
        of: &'static str,
        fits: impl Fn(&Trigger) -> bool,
    ) -> Result<usize, HostError> {
        self.app
            .functions
            .iter()
            .position(|function| {
                function.name.eq_ignore_ascii_case(name) && fits(&function.trigger)
            })
            .ok_or_else(|| {
                let names = self.app.functions.iter().map(|f| f.name.as_str());
                HostError::Unknown {
                    name: name.to_owned(),
                    of,
                    known: names.collect::<Vec<_>>().join(", "),
                }
            })
    }
}

/// A running host. Dropping it kills its processes.
#[derive(Debug)]
pub struct Host {
    inner: Arc<Inner>,
    url: String,
    is_successor: bool,
    taken_over: usize,
    _stop: DropGuard,
    /// The queue service outlives the handlers, which hand on into it what they do not finish.
    _queues: DropGuard,
}

impl Host {
    /// Starts the queue service if it is the in-process one, makes the queues of the app, starts the instances, and answers
    /// when each of them is ready.
    ///
    /// # Errors
    /// Whatever of that did not work; nothing is left running then.
    pub async fn start(options: Options) -> Result<Self, HostError> {
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let stop_queues = CancellationToken::new();
        let queues_guard = stop_queues.clone().drop_guard();
        let (journal, left) = match (&options.state, &options.queue) {
            (Some(state), QueueService::InProcess) => {
                let (journal, left) = Journal::open(state)?;
                (Some(journal), left)
            }
            _ => (None, Left::default()),
        };
        let (is_successor, taken_over) = (left.is_successor, left.messages.len());
        let switches = faults::Shared::default();
        let (server, endpoint, queue) = match &options.queue {
            QueueService::InProcess => {
                let server =
                    QueueServer::start(Arc::clone(&switches), stop_queues, journal, left.messages)
                        .await?;
                let endpoint = server.endpoint().to_owned();
                let client = QueueClient::new(&endpoint, "", "")?;
                (Some(server), endpoint, client)
            }
            QueueService::Account {
                endpoint,
                account,
                key,
            } => {
                let client = QueueClient::new(endpoint, account, key)?;
                (None, endpoint.trim_end_matches('/').to_owned(), client)
            }
        };
        let environment: BTreeMap<String, String> = options
            .environment
            .iter()
            .map(|(name, value)| (name.clone(), with_endpoint(value, &endpoint)))
            .collect();
        let app = App::read(&options.app, &environment)?;
        for queue_name in app.functions.iter().filter_map(app::Function::queue) {
            queue.create(queue_name).await?;
        }
        let timers = app
            .functions
            .iter()
            .filter_map(|function| match &function.trigger {
                Trigger::Timer { schedule, .. } => Some((&function.name, schedule)),
                _ => None,
            })
            .map(|(name, schedule)| {
                let timer = Timer::new(options.state.as_deref(), name, schedule)?;
                Ok((name.clone(), timer))
            })
            .collect::<Result<_, HostError>>()?;
        let listen = |error| HostError::system("listen on a loopback port", error);
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(listen)?;
        let url = format!("http://{}", listener.local_addr().map_err(listen)?);
        let inner = Arc::new(Inner {
            http: instance::client(),
            app,
            pace: options.pace,
            encoding: options.encoding,
            environment,
            history: History::new(),
            switches,
            queue,
            queue_endpoint: endpoint,
            server,
            timers,
            instances: Mutex::default(),
            turn: AtomicUsize::new(0),
            key: Uuid::new_v4().simple().to_string(),
            master_key: Uuid::new_v4().simple().to_string(),
            stop: stop.clone(),
        });
        let router = front::router(Arc::clone(&inner));
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            // Serving ends with its task; an accept that failed is tried again inside.
            let _ = axum::serve(listener, router).await;
        }));
        let host = Self {
            inner,
            url,
            is_successor,
            taken_over,
            _stop: guard,
            _queues: queues_guard,
        };
        host.scale(options.instances).await?;
        if options.schedules {
            for (place, function) in host.inner.app.functions.iter().enumerate() {
                if matches!(function.trigger, Trigger::Timer { .. }) {
                    let follow = timer::follow(Arc::clone(&host.inner), place);
                    tokio::spawn(stop.clone().run_until_cancelled_owned(follow));
                }
            }
        }
        Ok(host)
    }

    /// Of the front end, without a slash at its end: HTTP triggers and the admin interface.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Of the queue service; a queue is one segment below it.
    #[must_use]
    pub fn queue_endpoint(&self) -> &str {
        &self.inner.queue_endpoint
    }

    /// The endpoint without its query, which can hold a signature.
    fn queue_endpoint_shown(&self) -> &str {
        let endpoint = self.queue_endpoint();
        endpoint
            .split_once('?')
            .map_or(endpoint, |(before, _)| before)
    }

    /// For functions with `authLevel: function`, in the header `x-functions-key` or the query parameter `code`.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.inner.key
    }

    /// For everything, the admin interface too.
    #[must_use]
    pub fn master_key(&self) -> &str {
        &self.inner.master_key
    }

    /// Each function's name with what starts it: `timer`, its queue, or its path below [`url`](Self::url).
    #[must_use]
    pub fn functions(&self) -> Vec<(String, Started)> {
        let app = &self.inner.app;
        app.functions
            .iter()
            .map(|function| {
                let by = match &function.trigger {
                    Trigger::Timer { schedule, .. } => Started::Timer(schedule.as_str().to_owned()),
                    Trigger::Queue { queue, .. } => Started::Queue(queue.clone()),
                    Trigger::Http { route, methods, .. } => Started::Http {
                        methods: methods.clone(),
                        path: format!("/{}/{}", app.prefix, route.text()).replace("//", "/"),
                    },
                };
                (function.name.clone(), by)
            })
            .collect()
    }

    /// Runs a timer's function now, as its schedule would, and answers how it ended (the last of its retries). Two runs
    /// never have the same occurrence.
    ///
    /// # Errors
    /// If there is no such timer.
    pub async fn fire(&self, function: &str) -> Result<Invocation, HostError> {
        self.fire_with(function, None, false).await
    }

    /// Like [`fire`](Self::fire), with the occurrence that is run, and whether it is past due.
    ///
    /// # Errors
    /// If there is no such timer.
    pub async fn fire_with(
        &self,
        function: &str,
        next: Option<Timestamp>,
        past_due: bool,
    ) -> Result<Invocation, HostError> {
        let place = self.timer(function)?;
        let found = &self.inner.app.functions[place];
        let ran = timer::run(&self.inner, found, next, past_due).await;
        ran.ok_or_else(|| not_a_timer(function))
    }

    /// Runs a timer's function as a person does by the admin interface: its schedule does not notice.
    ///
    /// # Errors
    /// If there is no such timer.
    pub async fn start_by_hand(&self, function: &str) -> Result<Invocation, HostError> {
        let place = self.timer(function)?;
        let found = &self.inner.app.functions[place];
        let ran = timer::by_hand(&self.inner, found).await;
        ran.ok_or_else(|| not_a_timer(function))
    }

    fn timer(&self, function: &str) -> Result<usize, HostError> {
        let is_timer = |trigger: &Trigger| matches!(trigger, Trigger::Timer { .. });
        self.inner.place(function, "with a timer", is_timer)
    }

    /// Whether a host before this one used the state.
    #[must_use]
    pub fn is_successor(&self) -> bool {
        self.is_successor
    }

    /// Messages that the host before this one left in the in-process queue service.
    #[must_use]
    pub fn taken_over(&self) -> usize {
        self.taken_over
    }

    /// Each timer with the occurrence that it waits for.
    #[must_use]
    pub fn waits(&self) -> Vec<(&str, Timestamp)> {
        let functions = self.inner.app.functions.iter();
        functions
            .filter_map(|function| match &function.trigger {
                Trigger::Timer { schedule, .. } => {
                    let next = timer::occurrence(schedule, Timestamp::now())?;
                    Some((function.name.as_str(), next))
                }
                _ => None,
            })
            .collect()
    }

    /// Invocations under way.
    #[must_use]
    pub fn running(&self) -> usize {
        self.inner.history.works().0
    }

    /// The handler processes that there are, by instance.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        lock(&self.inner.instances)
            .iter()
            .filter_map(|instance| instance.process())
            .collect()
    }

    /// What has ended so far, in that order.
    #[must_use]
    pub fn invocations(&self) -> Vec<Invocation> {
        self.inner.history.ended()
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.history.events()
    }

    /// A queue, whether it is there or not.
    #[must_use]
    pub fn queue(&self, name: &str) -> Queue<'_> {
        Queue {
            inner: &self.inner,
            name: name.to_owned(),
        }
    }

    /// The names of the queues that functions empty.
    #[must_use]
    pub fn queues(&self) -> Vec<&str> {
        self.inner
            .app
            .functions
            .iter()
            .filter_map(app::Function::queue)
            .collect()
    }

    /// Waits until nothing runs and the queues that functions empty are empty, hidden messages included.
    ///
    /// # Errors
    /// If that is not so after `limit`, or the queue service does not answer.
    pub async fn quiet(&self, limit: Duration) -> Result<(), HostError> {
        let end = tokio::time::Instant::now() + limit;
        loop {
            let before = self.inner.history.works();
            let mut left = 0;
            let mut depths = Vec::new();
            for queue in self.queues() {
                // Looked up behind the service's back where that is possible: faults are for host and handler.
                let count = match &self.inner.server {
                    Some(server) => Some(server.contents(queue).texts.len() as u64),
                    None => self.inner.queue.count(queue).await.ok(),
                };
                left += count.unwrap_or(1);
                depths.push(match count {
                    Some(count) => format!("{queue} holds {count}"),
                    None => format!("{queue} does not answer"),
                });
            }
            let after = self.inner.history.works();
            // What began and ended meanwhile could have filled a queue behind our back.
            if left == 0 && after.0 == 0 && before == after {
                return Ok(());
            }
            if tokio::time::Instant::now() >= end {
                return Err(HostError::NotQuiet {
                    limit,
                    running: after.0,
                    queues: depths.join(", "),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Makes it so many instances: starts new ones and answers when they are ready, or takes the last ones away as a
    /// platform does.
    ///
    /// # Errors
    /// If a new instance did not get ready.
    pub async fn scale(&self, instances: usize) -> Result<(), HostError> {
        let inner = &self.inner;
        let (added, retired) = {
            let mut all = lock(&inner.instances);
            let kept = instances.min(all.len());
            let retired = all.split_off(kept);
            let added: Vec<_> = (all.len()..instances)
                .map(|index| Instance::start(inner, index))
                .collect();
            all.extend(added.iter().cloned());
            (added, retired)
        };
        for instance in &added {
            for (place, function) in inner.app.functions.iter().enumerate() {
                if function.queue().is_some() {
                    let listen = listener::listen(Arc::clone(inner), Arc::clone(instance), place);
                    instance.tasks.spawn(listen);
                }
            }
        }
        futures::future::join_all(retired.iter().map(|one| one.retire(inner.pace.grace))).await;
        for instance in added {
            instance
                .settled()
                .await
                .map_err(|reason| HostError::NotReady {
                    instance: instance.index,
                    reason,
                })?;
        }
        Ok(())
    }

    /// The switches for what can go wrong.
    #[must_use]
    pub fn faults(&self) -> Faults<'_> {
        Faults(&self.inner)
    }

    /// Holds the next event at a point until the gate is released or dropped.
    #[must_use]
    pub fn hold(&self, point: Point) -> Gate {
        self.inner.switches.hold(point)
    }

    /// Ends as the real host does on SIGTERM: it takes nothing more, waits for what is under way as long as its patience lasts, and
    /// is gone. The handlers get no signal. They live on as orphans, whose ids this answers, and nobody hears their answers.
    pub async fn leave(self, patience: Duration) -> Vec<i32> {
        let instances = std::mem::take(&mut *lock(&self.inner.instances));
        for instance in &instances {
            instance.dispatch.cancel();
            instance.tasks.close();
        }
        let under_way = futures::future::join_all(instances.iter().map(|one| one.tasks.wait()));
        // Whatever is under way then is lost.
        let _ = tokio::time::timeout(patience, under_way).await;
        let processes = instances.iter().filter_map(|instance| instance.process());
        let orphans = processes
            .inspect(Process::leave_alone)
            .map(|process| process.id())
            .collect();
        self.inner.stop.cancel();
        futures::future::join_all(instances.iter().map(|one| one.retire(Duration::ZERO))).await;
        orphans
    }

    /// Ends the processes at once, or as [`Pace::terminate_first`] says, and answers when they are gone. The in-process queue
    /// service is there until then.
    pub async fn stop(self) {
        let instances = std::mem::take(&mut *lock(&self.inner.instances));
        self.inner.stop.cancel();
        futures::future::join_all(instances.iter().map(|one| one.retire(Duration::ZERO))).await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(server) = &self.inner.server {
            server.close();
        }
    }
}

/// What starts a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    /// A schedule, six fields.
    Timer(String),
    /// Messages of a queue.
    Queue(String),
    /// Requests to a path; no methods means all.
    Http {
        /// Upper case.
        methods: Vec<String>,
        /// Template, with its prefix.
        path: String,
    },
}

/// One queue.
#[derive(Debug)]
pub struct Queue<'a> {
    inner: &'a Inner,
    name: String,
}

impl Queue<'_> {
    /// The messages in the queue, counted.
    ///
    /// # Errors
    /// If the queue service does not answer.
    pub async fn contents(&self) -> Result<Contents, QueueError> {
        if let Some(server) = &self.inner.server {
            return Ok(server.contents(&self.name));
        }
        let texts = self.inner.queue.peek(&self.name).await?;
        let count = self.inner.queue.count(&self.name).await?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Ok(Contents {
            visible: texts.len(),
            invisible: count.saturating_sub(texts.len()),
            texts,
        })
    }

    /// What the messages in it say: their encoding undone where that is possible.
    ///
    /// # Errors
    /// If the queue service does not answer.
    pub async fn messages(&self) -> Result<Vec<String>, QueueError> {
        let texts = self.contents().await?.texts;
        Ok(texts
            .into_iter()
            .map(|text| self.inner.decode(&text).unwrap_or(text))
            .collect())
    }

    /// Puts a message, encoded as `messageEncoding` says.
    ///
    /// # Errors
    /// If the queue service does not take it.
    pub async fn put(&self, message: &str) -> Result<(), QueueError> {
        self.put_raw(&self.inner.encode(message.as_bytes())).await
    }

    /// Puts a text as it is.
    ///
    /// # Errors
    /// If the queue service does not take it.
    pub async fn put_raw(&self, text: &str) -> Result<(), QueueError> {
        self.inner.queue.put(&self.name, text, Duration::ZERO).await
    }
}

/// The switches of a host. They can be set at any time.
#[derive(Debug)]
pub struct Faults<'a>(&'a Inner);

impl Faults<'_> {
    /// Sets a fault for the next events that match it; it replaces an earlier setting of the same fault.
    pub fn set(&self, fault: Fault, times: Times) {
        self.0.switches.set(fault, times);
    }

    /// Ends a fault; its duration is not looked at.
    pub fn clear(&self, fault: Fault) {
        self.0.switches.clear(fault);
    }

    /// Ends all faults.
    pub fn clear_all(&self) {
        self.0.switches.clear_all();
    }

    /// How often a fault has struck; its duration is not looked at.
    #[must_use]
    pub fn fired(&self, fault: Fault) -> u64 {
        self.0.switches.fired(fault)
    }

    /// Kills the process of an instance (SIGKILL); `false` if there is none.
    #[must_use]
    pub fn kill(&self, instance: usize) -> bool {
        self.signal(instance, rustix::process::Signal::KILL)
    }

    /// Stops the process of an instance (SIGSTOP) until it is thawed; `false` if there is none.
    #[must_use]
    pub fn freeze(&self, instance: usize) -> bool {
        self.signal(instance, rustix::process::Signal::STOP)
    }

    /// Lets the process of an instance go on (SIGCONT); `false` if there is none.
    #[must_use]
    pub fn thaw(&self, instance: usize) -> bool {
        self.signal(instance, rustix::process::Signal::CONT)
    }

    /// Stops the process of an instance for a time; `false` if there is none.
    pub async fn freeze_for(&self, instance: usize, time: Duration) -> bool {
        let Some(process) = self.process(instance) else {
            return false;
        };
        let frozen = process.signal(rustix::process::Signal::STOP);
        tokio::time::sleep(time).await;
        frozen && process.signal(rustix::process::Signal::CONT)
    }

    /// Puts the clock of the in-process queue service forward: what is hidden or delayed for less becomes visible.
    pub fn advance_queue_clock(&self, by: Duration) {
        if let Some(server) = &self.0.server {
            server.advance(by);
        }
    }

    fn process(&self, instance: usize) -> Option<Process> {
        lock(&self.0.instances)
            .iter()
            .find(|one| one.index == instance)
            .and_then(|one| one.process())
    }

    fn signal(&self, instance: usize, signal: rustix::process::Signal) -> bool {
        self.process(instance)
            .is_some_and(|process| process.signal(signal))
    }
}

fn not_a_timer(function: &str) -> HostError {
    HostError::Unknown {
        name: function.to_owned(),
        of: "with a timer",
        known: String::new(),
    }
}

/// Puts the endpoint into a setting; a SAS in it goes to the end, behind the queue's name.
fn with_endpoint(value: &str, endpoint: &str) -> String {
    if !value.contains(QUEUE_ENDPOINT) {
        return value.to_owned();
    }
    let (base, signature) = endpoint.split_once('?').unwrap_or((endpoint, ""));
    let made = value.replace(QUEUE_ENDPOINT, base.trim_end_matches('/'));
    if signature.is_empty() {
        made
    } else {
        format!("{made}?{signature}")
    }
}

/// Nothing is left half done while a lock is held, so a panic elsewhere does not spoil what it guards.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
