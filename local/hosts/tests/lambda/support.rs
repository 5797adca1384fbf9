//! What the tests share: the program, quick options, moto, and waits with a limit.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use atlas_emulators::Moto;
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
    _service: Service,
}

impl Work {
    pub(crate) fn new(
        service: impl Into<Service>,
        batch_size: usize,
        max_concurrency: usize,
    ) -> Self {
        let service = service.into();
        let queue = format!("work-{}", Uuid::new_v4().simple());
        let dead = format!("{queue}-poison");
        let mut worker = function("worker").on(Trigger::Queue {
            name: queue.clone(),
            batch_size,
        });
        worker.max_concurrency = max_concurrency;
        let mut options = Options::new(vec![worker]);
        options.queues = QueueSpec::pair(&queue, &dead, 2);
        options.queue = service.queue.clone();
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
            _service: service,
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

/// A queue service, kept alive by whoever tests with it.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) queue: QueueService,
    _moto: Option<Arc<Mutex<Moto>>>,
}

impl From<QueueService> for Service {
    fn from(queue: QueueService) -> Self {
        Self { queue, _moto: None }
    }
}

/// Both queue services.
pub(crate) fn services() -> [Service; 2] {
    [QueueService::InProcess.into(), moto()]
}

/// One moto for all tests that run at once; it ends with the last of them.
pub(crate) fn moto() -> Service {
    static RUNNING: Mutex<Weak<Mutex<Moto>>> = Mutex::new(Weak::new());
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let moto = running.upgrade().unwrap_or_else(|| {
        let moto = Arc::new(Mutex::new(Moto::start().unwrap()));
        *running = Arc::downgrade(&moto);
        moto
    });
    let endpoint = moto.lock().unwrap().endpoint().to_owned();
    Service {
        queue: QueueService::Endpoint(endpoint),
        _moto: Some(moto),
    }
}
