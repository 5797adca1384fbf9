//! The host: starts everything, and is what tests and the command line hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::types::QueueAttributeName;
use bytes::Bytes;
use futures::future::join_all;
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::error::HostError;
use super::faults::{Faults, Gate, Gates, Point};
use super::function::{Function, Keys, Process, Shared};
use super::history::{History, Invocation, Line};
use super::http::{self, Urls};
use super::mapping::Mapping;
use super::options::{Options, QueueService, QueueSpec, REGION, Trigger};
use super::queue_server::{self, Server};
use super::queue_store::{Counts, Store, Watched};
use super::schedule::Schedule;
use crate::journal::{Journal, Left};

/// Between two looks at whether everything is quiet.
const LOOK: Duration = Duration::from_millis(20);

/// A running host. Dropped, it kills its processes.
pub struct Host {
    functions: Arc<BTreeMap<String, Arc<Function>>>,
    schedules: Vec<Schedule>,
    queues: Queues,
    endpoint: String,
    http: SocketAddr,
    faults: Faults,
    gates: Gates,
    history: Arc<History>,
    is_successor: bool,
    taken_over: usize,
    stop: CancellationToken,
    _servers: Vec<AbortOnDropHandle<()>>,
}

/// The queues, wherever they are.
struct Queues {
    client: Client,
    /// Of the queues of this process.
    store: Option<Arc<Store>>,
    /// Name and address, in the order of the options.
    urls: Vec<(String, String)>,
}

/// A queue of the host.
pub struct Queue<'a> {
    queues: &'a Queues,
    name: &'a str,
    url: &'a str,
}

impl Host {
    /// Opens the ports, makes the queues, starts polling and, if asked for, the clock. Processes start with their first event.
    ///
    /// # Errors
    /// The options are wrong, or a port, a queue or a process could not be made.
    pub async fn start(options: Options) -> Result<Self, HostError> {
        check(&options)?;
        let faults = Faults::default();
        let gates = Gates::default();
        let history = Arc::new(History::default());
        let keys = Keys::default();
        let stop = CancellationToken::new();
        let mut servers = Vec::new();

        let (journal, left) = match (&options.state, &options.queue) {
            (Some(state), QueueService::InProcess) => {
                let (journal, left) = Journal::open(state)?;
                (Some(journal), left)
            }
            _ => (None, Left::default()),
        };
        let (is_successor, taken_over) = (left.is_successor, left.messages.len());
        let (endpoint, store) = match &options.queue {
            QueueService::Endpoint(url) => (url.trim_end_matches('/').to_owned(), None),
            QueueService::InProcess => {
                let (listener, address) = listen().await?;
                let store = Arc::new(Store::new(
                    faults.clone(),
                    journal,
                    left.messages,
                    options.pace.second,
                ));
                let of = Arc::clone(&keys);
                let server = Server {
                    store: Arc::clone(&store),
                    faults: faults.clone(),
                    gates: gates.clone(),
                    senders: Arc::new(move |key| {
                        let keys = of.lock().unwrap_or_else(PoisonError::into_inner);
                        keys.get(key).copied()
                    }),
                    address,
                };
                servers.push(spawn(queue_server::serve(listener, server)));
                (format!("http://{address}"), Some(store))
            }
        };
        let client = client(&endpoint);
        let urls = create(&client, &options).await?;
        let queues = Queues {
            client,
            store,
            urls,
        };

        let shared = Shared {
            pace: options.pace.clone(),
            freeze: options.freeze,
            faults: faults.clone(),
            history: Arc::clone(&history),
            keys,
        };
        let queue_url = queues.urls.first().map_or("", |(_, url)| url);
        let mut functions = BTreeMap::new();
        for spec in options.functions {
            let mut environment = BTreeMap::from([
                ("AWS_ENDPOINT_URL".to_owned(), endpoint.clone()),
                // A variable of this shell for this service alone would win over the one for all.
                ("AWS_ENDPOINT_URL_SQS".to_owned(), endpoint.clone()),
            ]);
            for (name, value) in options.environment.iter().chain(&spec.environment) {
                let value = value
                    .replace("{queue_endpoint}", &endpoint)
                    .replace("{queue_url}", queue_url);
                environment.insert(name.clone(), value);
            }
            let name = spec.name.clone();
            let function = Function::new(spec, environment, shared.clone());
            functions.insert(name, Arc::new(function));
        }

        let mut schedules = Vec::new();
        let mut with_url = BTreeMap::new();
        for (name, function) in &functions {
            for trigger in &function.spec.triggers {
                match trigger {
                    Trigger::Schedule { every, input } => {
                        let schedule = Schedule {
                            function: Arc::clone(function),
                            every: *every,
                            input: input.clone(),
                            faults: faults.clone(),
                            history: Arc::clone(&history),
                        };
                        if options.clock {
                            tokio::spawn(schedule.clone().run(stop.clone()));
                        }
                        schedules.push(schedule);
                    }
                    Trigger::Url => {
                        with_url.insert(name.clone(), Arc::clone(function));
                    }
                    Trigger::Queue {
                        name: queue,
                        batch_size,
                    } => {
                        let url = queues.url(queue)?.to_owned();
                        let mapping = Mapping {
                            function: Arc::clone(function),
                            client: queues.client.clone(),
                            arn: arn(&queues.client, &url).await?,
                            url,
                            batch_size: i32::try_from(*batch_size).unwrap_or(1),
                            faults: faults.clone(),
                            gates: gates.clone(),
                            history: Arc::clone(&history),
                        };
                        tokio::spawn(Arc::new(mapping).run(stop.clone()));
                    }
                }
            }
        }
        let (listener, http) = listen().await?;
        let urls = Urls {
            functions: Arc::new(with_url),
            limit: options.pace.http,
        };
        servers.push(spawn(http::serve(listener, urls)));

        Ok(Self {
            functions: Arc::new(functions),
            schedules,
            queues,
            endpoint,
            http,
            faults,
            gates,
            history,
            is_successor,
            taken_over,
            stop,
            _servers: servers,
        })
    }

    /// The Function URL of a function, without a slash at its end.
    ///
    /// # Errors
    /// There is no such function, or it has no URL.
    pub fn url(&self, function: &str) -> Result<String, HostError> {
        let has = self.function(function)?.spec.triggers.iter();
        if !has
            .into_iter()
            .any(|trigger| matches!(trigger, Trigger::Url))
        {
            return Err(HostError::NoFunction(function.to_owned(), "a URL"));
        }
        Ok(format!("http://{}/{function}", self.http))
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

    /// Each function with a schedule, and when it fires next.
    #[must_use]
    pub fn waits(&self) -> Vec<(&str, Timestamp)> {
        let schedules = self.schedules.iter();
        schedules
            .map(|schedule| {
                let (at, _) = schedule.next(Timestamp::now());
                (schedule.function.spec.name.as_str(), at)
            })
            .collect()
    }

    /// Invocations under way.
    #[must_use]
    pub fn running(&self) -> usize {
        self.history.running.borrow().1
    }

    /// Address of the queue service.
    #[must_use]
    pub fn queue_endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Fires the schedule of a function now and waits for the end. A failure is not delivered again.
    ///
    /// # Errors
    /// There is no such function, or it has no schedule.
    pub async fn fire(&self, function: &str) -> Result<Invocation, HostError> {
        self.fire_at(function, Timestamp::now()).await
    }

    /// Like [`fire`](Self::fire), with the scheduled time given.
    ///
    /// # Errors
    /// As [`fire`](Self::fire).
    pub async fn fire_at(&self, function: &str, at: Timestamp) -> Result<Invocation, HostError> {
        Ok(self.schedule(function)?.fire(at).await)
    }

    /// Fires the schedule of a function twice at once, both with the same scheduled time.
    ///
    /// # Errors
    /// As [`fire`](Self::fire).
    pub async fn fire_twice(
        &self,
        function: &str,
        at: Timestamp,
    ) -> Result<[Invocation; 2], HostError> {
        let schedule = self.schedule(function)?;
        Ok(futures::join!(schedule.fire(at), schedule.fire(at)).into())
    }

    /// Invokes a function with an event (JSON) and waits for its end.
    ///
    /// # Errors
    /// There is no such function.
    pub async fn invoke(
        &self,
        function: &str,
        event: impl Into<Bytes>,
    ) -> Result<Invocation, HostError> {
        let function = self.function(function)?;
        let done = function
            .invoke(Uuid::new_v4().to_string(), event.into())
            .await;
        Ok(done.invocation)
    }

    /// The processes of a function, those that wait for an event included. Empty if there is no such function.
    #[must_use]
    pub fn processes(&self, function: &str) -> Vec<Process> {
        self.functions
            .get(function)
            .map(|function| function.processes())
            .unwrap_or_default()
    }

    /// What has ended so far, in order; the last ten thousand.
    #[must_use]
    pub fn invocations(&self) -> Vec<Invocation> {
        self.history.all()
    }

    /// What ends from now on.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Invocation> {
        self.history.subscribe()
    }

    /// What the functions write from now on.
    #[must_use]
    pub fn lines(&self) -> broadcast::Receiver<Line> {
        self.history.lines.subscribe()
    }

    /// A queue.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn queue<'a>(&'a self, name: &'a str) -> Result<Queue<'a>, HostError> {
        Ok(Queue {
            url: self.queues.url(name)?,
            queues: &self.queues,
            name,
        })
    }

    /// Messages in all queues together.
    ///
    /// # Errors
    /// The queue service does not answer.
    pub async fn depth(&self) -> Result<Counts, HostError> {
        let mut all = Counts::default();
        for (name, _) in &self.queues.urls {
            let counts = self.queue(name)?.counts().await?;
            all.visible += counts.visible;
            all.in_flight += counts.in_flight;
            all.delayed += counts.delayed;
        }
        Ok(all)
    }

    /// Waits until nothing is queued, delayed or running.
    ///
    /// # Errors
    /// [`HostError::NotQuiet`] at the limit; the queue service does not answer.
    pub async fn quiet(&self, limit: Duration) -> Result<(), HostError> {
        let until = Instant::now() + limit;
        loop {
            let before = *self.history.running.borrow();
            let depth = self.depth().await?;
            let (started, running) = *self.history.running.borrow();
            // What began and ended while the queues were looked at may have sent messages behind our back.
            if before == (started, 0) && running == 0 && depth.total() == 0 {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(HostError::NotQuiet {
                    limit,
                    visible: depth.visible,
                    in_flight: depth.in_flight,
                    delayed: depth.delayed,
                    running,
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What can be made to go wrong.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Holds the next event at a point. Sends can be held only in the queue of this process.
    #[must_use]
    pub fn hold(&self, point: Point) -> Gate {
        self.gates.hold(point)
    }

    /// Kills a process of a function with `SIGKILL`; `false` if there is none of this id.
    #[must_use]
    pub fn kill(&self, process: i32) -> bool {
        let found = self.environment(process);
        found.is_some_and(|environment| environment.process.signal(Signal::KILL))
    }

    /// Stops a process with `SIGSTOP` for a while, whatever it is doing; `false` if there is none of this id. Returns at once.
    #[must_use]
    pub fn pause(&self, process: i32, time: Duration) -> bool {
        let Some(environment) = self.environment(process) else {
            return false;
        };
        environment.pause(true);
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            environment.pause(false);
        });
        true
    }

    /// Ends a [`pause`](Self::pause) early; `false` if there is no process of this id.
    #[must_use]
    pub fn resume(&self, process: i32) -> bool {
        let found = self.environment(process);
        found
            .inspect(|environment| environment.pause(false))
            .is_some()
    }

    /// Ends the processes of a function that wait for an event, as Lambda does after some minutes: `SIGTERM` first if they
    /// asked for it. Waits for their end.
    ///
    /// # Errors
    /// There is no such function.
    pub async fn retire(&self, function: &str) -> Result<(), HostError> {
        self.function(function)?.retire().await;
        Ok(())
    }

    /// Stops polling and the clock, and answers when nothing is under way any more. The processes are still there then.
    pub async fn finish(&self) {
        self.stop.cancel();
        let mut running = self.history.running.subscribe();
        // The sender lives as long as the host.
        let _ = running.wait_for(|(_, now)| *now == 0).await;
    }

    /// Stops polling and the clock and ends all processes as [`retire`](Self::retire) does, busy ones, too.
    pub async fn stop(self) {
        self.stop.cancel();
        join_all(self.functions.values().map(|function| function.stop())).await;
    }

    fn function(&self, name: &str) -> Result<&Arc<Function>, HostError> {
        self.functions
            .get(name)
            .ok_or_else(|| HostError::NoFunction(name.to_owned(), "this name"))
    }

    fn schedule(&self, function: &str) -> Result<&Schedule, HostError> {
        self.schedules
            .iter()
            .find(|schedule| schedule.function.spec.name == function)
            .ok_or_else(|| HostError::NoFunction(function.to_owned(), "a schedule"))
    }

    fn environment(&self, process: i32) -> Option<Arc<super::environment::Environment>> {
        self.functions
            .values()
            .find_map(|function| function.environment(process))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
        for function in self.functions.values() {
            function.kill();
        }
        if let Some(store) = &self.queues.store {
            store.close();
        }
    }
}

impl Queues {
    fn url(&self, name: &str) -> Result<&str, HostError> {
        self.urls
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, url)| url.as_str())
            .ok_or_else(|| HostError::NoQueue(name.to_owned()))
    }
}

impl Queue<'_> {
    /// Its address.
    #[must_use]
    pub fn url(&self) -> &str {
        self.url
    }

    /// Its messages by state. No fault touches this.
    ///
    /// # Errors
    /// The queue service does not answer.
    pub async fn counts(&self) -> Result<Counts, HostError> {
        if let Some(store) = &self.queues.store {
            return store
                .counts(self.name)
                .map_err(|_| HostError::NoQueue(self.name.to_owned()));
        }
        let answer = self
            .queues
            .client
            .get_queue_attributes()
            .queue_url(self.url)
            .attribute_names(QueueAttributeName::All)
            .send()
            .await
            .map_err(|error| HostError::queue("count the messages of a queue", error))?;
        let count = |name| -> Option<u64> { answer.attributes()?.get(&name)?.parse().ok() };
        Ok(Counts {
            visible: count(QueueAttributeName::ApproximateNumberOfMessages).unwrap_or_default(),
            in_flight: count(QueueAttributeName::ApproximateNumberOfMessagesNotVisible)
                .unwrap_or_default(),
            delayed: count(QueueAttributeName::ApproximateNumberOfMessagesDelayed)
                .unwrap_or_default(),
        })
    }

    /// What CloudWatch would show of it; `None` for a queue that is not of this process.
    #[must_use]
    pub fn watched(&self) -> Option<Watched> {
        self.queues.store.as_ref()?.watched(self.name).ok()
    }

    /// Puts a text into it as it is. No fault touches this.
    ///
    /// # Errors
    /// The queue service does not take it.
    pub async fn put(&self, text: &str) -> Result<(), HostError> {
        if let Some(store) = &self.queues.store {
            return store
                .put(self.name, "HOST", text, None, None)
                .map(drop)
                .map_err(|_| HostError::Options("a message has 1 to 1048576 bytes".to_owned()));
        }
        self.queues
            .client
            .send_message()
            .queue_url(self.url)
            .message_body(text)
            .send()
            .await
            .map(drop)
            .map_err(|error| HostError::queue("put a message into a queue", error))
    }
}

/// What AWS checks when the functions and mappings are made.
fn check(options: &Options) -> Result<(), HostError> {
    let wrong = |why: String| Err(HostError::Options(why));
    let mut names = BTreeSet::new();
    let queues: BTreeSet<&str> = options
        .queues
        .iter()
        .map(|queue| queue.name.as_str())
        .collect();
    for function in &options.functions {
        let name = function.name.as_str();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || !name.chars().all(plain) || !names.insert(name) {
            return wrong(format!(
                "function `{name}`: names are letters, digits, `-` and `_`, and differ"
            ));
        }
        if !function.program.is_file() {
            return Err(HostError::NoProgram(function.program.clone()));
        }
        let timeout = function.timeout.unwrap_or(options.pace.timeout);
        for trigger in &function.triggers {
            let Trigger::Queue {
                name: queue,
                batch_size,
            } = trigger
            else {
                continue;
            };
            if !queues.contains(queue.as_str()) {
                return Err(HostError::NoQueue(queue.clone()));
            }
            if !(1..=10).contains(batch_size) || function.max_concurrency == 0 {
                return wrong(format!(
                    "function `{name}`: the batch size is 1 to 10, the concurrency at least 1"
                ));
            }
            if options.pace.visibility < timeout {
                return wrong(format!(
                    "function `{name}`: the visibility of its queue ({:?}) is shorter than its time limit ({timeout:?})",
                    options.pace.visibility
                ));
            }
        }
    }
    for queue in &options.queues {
        if let Some(redrive) = &queue.redrive
            && !queues.contains(redrive.to.as_str())
        {
            return Err(HostError::NoQueue(redrive.to.clone()));
        }
    }
    Ok(())
}

async fn listen() -> Result<(TcpListener, SocketAddr), HostError> {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .map_err(HostError::Listen)?;
    let address = listener.local_addr().map_err(HostError::Listen)?;
    Ok((listener, address))
}

fn spawn(server: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(server))
}

/// Does not retry: the caller decides what a failure means.
fn client(endpoint: &str) -> Client {
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new("HOST", "local", None, None, "local"))
        .retry_config(RetryConfig::disabled())
        .build();
    Client::from_conf(config)
}

/// Makes the queues, dead-letter queues first, and answers name and address in the order of the options.
async fn create(client: &Client, options: &Options) -> Result<Vec<(String, String)>, HostError> {
    let visibility = options.pace.visibility.as_secs_f64().ceil().max(1.0);
    let mut urls: BTreeMap<&str, String> = BTreeMap::new();
    let (last, first): (Vec<&QueueSpec>, Vec<&QueueSpec>) = options
        .queues
        .iter()
        .partition(|queue| queue.redrive.is_some());
    for queue in first.into_iter().chain(last) {
        let mut request = client.create_queue().queue_name(&queue.name).attributes(
            QueueAttributeName::VisibilityTimeout,
            visibility.to_string(),
        );
        if let Some(redrive) = &queue.redrive {
            let Some(dead) = urls.get(redrive.to.as_str()) else {
                return Err(HostError::Options(format!(
                    "queue `{}`: its dead-letter queue has one of its own",
                    queue.name
                )));
            };
            let policy = json!({
                "deadLetterTargetArn": arn(client, dead).await?,
                "maxReceiveCount": redrive.after,
            });
            request = request.attributes(QueueAttributeName::RedrivePolicy, policy.to_string());
        }
        let made = request
            .send()
            .await
            .map_err(|error| HostError::queue("make a queue", error))?;
        urls.insert(&queue.name, made.queue_url.unwrap_or_default());
    }
    Ok(options
        .queues
        .iter()
        .filter_map(|queue| Some((queue.name.clone(), urls.get(queue.name.as_str())?.clone())))
        .collect())
}

async fn arn(client: &Client, url: &str) -> Result<String, HostError> {
    let answer = client
        .get_queue_attributes()
        .queue_url(url)
        .attribute_names(QueueAttributeName::QueueArn)
        .send()
        .await
        .map_err(|error| HostError::queue("ask for the name of a queue", error))?;
    let arn = answer
        .attributes()
        .and_then(|all| all.get(&QueueAttributeName::QueueArn));
    Ok(arn.cloned().unwrap_or_default())
}
