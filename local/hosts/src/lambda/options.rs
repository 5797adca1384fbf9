//! What the host runs, and how fast its clocks go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Region of everything on this machine.
pub(super) const REGION: &str = "eu-west-1";

/// Account of everything on this machine.
pub(super) const ACCOUNT: &str = "000000000000";

/// Queue of work of Atlas; the same names and numbers stand in `atlas_runtime::suite` and in the Terraform module.
const WORK_QUEUE: &str = "export-work";
const DEAD_QUEUE: &str = "export-work-poison";
const MAX_RECEIVES: u32 = 5;

/// What the host runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The functions. Names are unique.
    pub functions: Vec<FunctionSpec>,
    /// The queues, made at the start if they are missing. `{queue_url}` is the first one.
    pub queues: Vec<QueueSpec>,
    /// Who serves the queues.
    pub queue: QueueService,
    /// Variables of every function. In a value, `{queue_endpoint}` and `{queue_url}` are replaced.
    pub environment: BTreeMap<String, String>,
    /// How fast the clocks go.
    pub pace: Pace,
    /// Whether schedules fire by the clock. Without, only [`Host::fire`](super::Host::fire) fires them.
    pub clock: bool,
    /// Folder for the messages of the in-process queue service. Without it a host does not know what the one before it left.
    pub state: Option<PathBuf>,
    /// Whether a process is stopped (`SIGSTOP`) between invocations, as Lambda does.
    pub freeze: bool,
}

/// A function: one program, run in as many processes as there are invocations at once.
#[derive(Debug, Clone)]
pub struct FunctionSpec {
    /// Its name: letters, digits, `-` and `_`.
    pub name: String,
    /// The program, as it is shipped for Lambda.
    pub program: PathBuf,
    /// What invokes it.
    pub triggers: Vec<Trigger>,
    /// Its time limit; without one, [`Pace::timeout`].
    pub timeout: Option<Duration>,
    /// `MaximumConcurrency` of each of its queues: invocations at once.
    pub max_concurrency: usize,
    /// Variables of this function only, replaced as in [`Options::environment`], which they override.
    pub environment: BTreeMap<String, String>,
}

/// What invokes a function.
#[derive(Debug, Clone)]
pub enum Trigger {
    /// EventBridge Scheduler.
    Schedule {
        /// Fires when the clock is at a multiple of this (UTC).
        every: Duration,
        /// The event (JSON). `<aws.scheduler.…>` is replaced.
        input: String,
    },
    /// An event source mapping that reports single failures.
    Queue {
        /// Name of the queue.
        name: String,
        /// Messages in one event: 1 to 10.
        batch_size: usize,
    },
    /// A Function URL.
    Url,
}

/// A queue.
#[derive(Debug, Clone)]
pub struct QueueSpec {
    /// Its name.
    pub name: String,
    /// Where a message goes that was received too often; that queue stands in the list, too.
    pub redrive: Option<Redrive>,
}

/// A redrive policy.
#[derive(Debug, Clone)]
pub struct Redrive {
    /// Name of the dead-letter queue.
    pub to: String,
    /// `maxReceiveCount`.
    pub after: u32,
}

/// Who serves the queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueService {
    /// The queue server of this process, on its own port. Faults and gates of the queue work only here.
    InProcess,
    /// Something that speaks the protocol of SQS at this address, such as moto.
    Endpoint(String),
}

/// Durations that are minutes on AWS and may be seconds in a test. The default is AWS' own.
#[derive(Debug, Clone)]
pub struct Pace {
    /// A message that was received and not deleted comes back after this long. Whole seconds, at least one.
    pub visibility: Duration,
    /// How long a second of visibility or of a delay lasts in the queue of this process, whoever asks for it.
    pub second: Duration,
    /// How long one request for messages waits for one. Whole seconds, at most 20.
    pub poll_wait: Duration,
    /// Time limit of an invocation.
    pub timeout: Duration,
    /// Time limit from the start of a process to its first request for an event.
    pub init: Duration,
    /// From `SIGTERM` to `SIGKILL`, for a process that registered an extension. Others get no `SIGTERM`.
    pub shutdown: Duration,
    /// Time limit of a request to a Function URL.
    pub http: Duration,
    /// How often a scheduled event that failed is delivered again.
    pub schedule_retries: u32,
    /// How long before the first of them; the second waits twice as long, and so on.
    pub schedule_retry_wait: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            visibility: Duration::from_secs(1800),
            second: Duration::from_secs(1),
            poll_wait: Duration::from_secs(20),
            timeout: Duration::from_secs(300),
            init: Duration::from_secs(10),
            shutdown: Duration::from_millis(500),
            http: Duration::from_secs(30),
            schedule_retries: 2,
            schedule_retry_wait: Duration::from_secs(60),
        }
    }
}

impl FunctionSpec {
    /// A function without triggers, two invocations at once.
    #[must_use]
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            triggers: Vec::new(),
            timeout: None,
            max_concurrency: 2,
            environment: BTreeMap::new(),
        }
    }

    /// The same with one more trigger.
    #[must_use]
    pub fn on(mut self, trigger: Trigger) -> Self {
        self.triggers.push(trigger);
        self
    }
}

impl QueueSpec {
    /// A queue and its dead-letter queue.
    #[must_use]
    pub fn pair(name: &str, dead: &str, after: u32) -> Vec<Self> {
        vec![
            Self {
                name: name.to_owned(),
                redrive: Some(Redrive {
                    to: dead.to_owned(),
                    after,
                }),
            },
            Self {
                name: dead.to_owned(),
                redrive: None,
            },
        ]
    }
}

impl Options {
    /// Functions with no queues yet, in-process, at the pace of AWS; schedules fire only when they are told to.
    #[must_use]
    pub fn new(functions: Vec<FunctionSpec>) -> Self {
        Self {
            functions,
            queues: Vec::new(),
            queue: QueueService::InProcess,
            environment: BTreeMap::new(),
            pace: Pace::default(),
            clock: false,
            state: None,
            freeze: true,
        }
    }

    /// The four functions of Atlas: programs `atlas-lambda-planner`, `-worker`, `-watermark` and `-export` in a folder.
    #[must_use]
    pub fn suite(programs: &Path) -> Self {
        let function =
            |name: &str| FunctionSpec::new(name, programs.join(format!("atlas-lambda-{name}")));
        let schedule = |asks: &str, minutes: u64| Trigger::Schedule {
            every: Duration::from_secs(minutes * 60),
            input: format!(r#"{{"atlas":"{asks}","scheduled":"<aws.scheduler.scheduled-time>"}}"#),
        };
        let queue = |name: &str| Trigger::Queue {
            name: name.to_owned(),
            batch_size: 1,
        };
        Self {
            queues: QueueSpec::pair(WORK_QUEUE, DEAD_QUEUE, MAX_RECEIVES),
            environment: BTreeMap::from([("ATLAS_QUEUE_URL".to_owned(), "{queue_url}".to_owned())]),
            ..Self::new(vec![
                function("planner").on(schedule("plan", 15)),
                function("worker")
                    .on(queue(WORK_QUEUE))
                    .on(queue(DEAD_QUEUE)),
                function("watermark")
                    .on(schedule("report", 5))
                    .on(Trigger::Url),
                function("export").on(Trigger::Url),
            ])
        }
    }
}
