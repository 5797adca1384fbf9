//! The app folder, read as the real host reads it: `host.json` and one `function.json` for each function.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use serde::{Deserialize, Deserializer};

use super::error::HostError;
use super::route::Route;

/// The functions of an app folder.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) root: PathBuf,
    /// Absolute if it is in the app folder, else a name for PATH.
    pub(crate) executable: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) folder: PathBuf,
    /// How HTTP requests reach functions that have nothing but them.
    pub(crate) raw: Option<Raw>,
    /// `None`: without an end.
    pub(crate) timeout: Option<Duration>,
    pub(crate) prefix: String,
    pub(crate) queues: QueueSettings,
    pub(crate) functions: Vec<Function>,
}

/// A raw request goes to its own path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Raw {
    /// The answer is collected before it is handed on.
    Forward,
    /// The answer is streamed.
    Proxy,
}

/// `extensions.queues`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct QueueSettings {
    pub(crate) batch_size: u32,
    new_batch_threshold: Option<u32>,
    pub(crate) max_dequeue_count: u32,
    #[serde(deserialize_with = "span")]
    pub(crate) visibility_timeout: Duration,
    #[serde(deserialize_with = "span")]
    pub(crate) max_polling_interval: Duration,
    pub(crate) message_encoding: MessageEncoding,
}

/// How a message lies in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MessageEncoding {
    Base64,
    None,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            batch_size: 16,
            new_batch_threshold: None,
            max_dequeue_count: 5,
            visibility_timeout: Duration::ZERO,
            max_polling_interval: Duration::from_secs(60),
            message_encoding: MessageEncoding::Base64,
        }
    }
}

impl QueueSettings {
    /// The next batch is taken when at most so many messages are in work.
    pub(crate) fn threshold(&self) -> u32 {
        self.new_batch_threshold.unwrap_or_else(|| {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            (self.batch_size / 2).saturating_mul(u32::try_from(processors).unwrap_or(u32::MAX))
        })
    }
}

/// One folder of the app.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) trigger: Trigger,
    pub(crate) outputs: Vec<Output>,
    pub(crate) retry: Option<Retry>,
}

impl Function {
    /// Whether raw HTTP can be used: one `httpTrigger` and one `http` output, nothing else.
    pub(crate) fn only_http(&self) -> bool {
        matches!(self.trigger, Trigger::Http { .. })
            && matches!(
                self.outputs.as_slice(),
                [Output {
                    kind: OutputKind::Http,
                    ..
                }]
            )
    }

    /// The queue that it empties.
    pub(crate) fn queue(&self) -> Option<&str> {
        match &self.trigger {
            Trigger::Queue { queue, .. } => Some(queue),
            _ => None,
        }
    }
}

/// What starts a function. `name` is the binding's.
#[derive(Debug)]
pub(crate) enum Trigger {
    Timer {
        name: String,
        schedule: Box<Cron>,
        /// Whether its status is kept and sent: `useMonitor`, but not for a schedule that fires more often than once a minute.
        monitor: bool,
        at_start: bool,
    },
    Queue {
        name: String,
        queue: String,
    },
    Http {
        name: String,
        level: AuthLevel,
        /// Upper case; empty means all.
        methods: Vec<String>,
        route: Route,
    },
}

/// Which key a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AuthLevel {
    Anonymous,
    #[default]
    Function,
    Admin,
}

/// Where an output goes.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) name: String,
    pub(crate) kind: OutputKind,
    /// `dataType: binary`: a string is not taken for base64.
    pub(crate) binary: bool,
}

#[derive(Debug)]
pub(crate) enum OutputKind {
    Http,
    Queue(String),
}

/// `retry` of a timer.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "strategy", rename_all = "camelCase")]
pub(crate) enum Retry {
    #[serde(rename_all = "camelCase")]
    FixedDelay {
        max_retry_count: u32,
        #[serde(deserialize_with = "span")]
        delay_interval: Duration,
    },
    #[serde(rename_all = "camelCase")]
    ExponentialBackoff {
        max_retry_count: u32,
        #[serde(deserialize_with = "span")]
        minimum_interval: Duration,
        #[serde(deserialize_with = "span")]
        maximum_interval: Duration,
    },
}

impl Retry {
    pub(crate) fn most(&self) -> u32 {
        match self {
            Self::FixedDelay {
                max_retry_count, ..
            }
            | Self::ExponentialBackoff {
                max_retry_count, ..
            } => *max_retry_count,
        }
    }

    /// How long to wait before retry number `count`, from 1.
    pub(crate) fn delay(&self, count: u32) -> Duration {
        match self {
            Self::FixedDelay { delay_interval, .. } => *delay_interval,
            Self::ExponentialBackoff {
                minimum_interval,
                maximum_interval,
                ..
            } => minimum_interval
                .saturating_mul(2_u32.saturating_pow(count.saturating_sub(1)))
                .min(*maximum_interval),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HostJson {
    version: String,
    function_timeout: Option<String>,
    custom_handler: CustomHandler,
    #[serde(default)]
    extensions: Extensions,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CustomHandler {
    description: Description,
    #[serde(default)]
    enable_forwarding_http_request: bool,
    #[serde(default)]
    enable_proxying_http_request: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Description {
    default_executable_path: String,
    #[serde(default)]
    working_directory: String,
    #[serde(default)]
    arguments: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Extensions {
    http: Http,
    queues: QueueSettings,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Http {
    route_prefix: String,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            route_prefix: "api".to_owned(),
        }
    }
}

#[derive(Deserialize)]
struct FunctionJson {
    bindings: Vec<Binding>,
    retry: Option<Retry>,
}

/// The kinds of bindings that this host has; the real one has more.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum Binding {
    #[serde(rename = "timerTrigger", rename_all = "camelCase")]
    Timer {
        name: String,
        direction: In,
        schedule: String,
        #[serde(default = "yes")]
        use_monitor: bool,
        #[serde(default)]
        run_on_startup: bool,
    },
    #[serde(rename = "queueTrigger", rename_all = "camelCase")]
    QueueTrigger {
        name: String,
        direction: In,
        queue_name: String,
    },
    #[serde(rename = "httpTrigger", rename_all = "camelCase")]
    HttpTrigger {
        name: String,
        direction: In,
        #[serde(default)]
        auth_level: AuthLevel,
        #[serde(default)]
        methods: Vec<String>,
        route: Option<String>,
    },
    #[serde(rename = "http")]
    Http { name: String, direction: Out },
    #[serde(rename = "queue", rename_all = "camelCase")]
    Queue {
        name: String,
        direction: Out,
        queue_name: String,
        data_type: Option<String>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum In {
    In,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Out {
    Out,
}

fn yes() -> bool {
    true
}

impl App {
    /// Reads a folder; `settings` are the app settings that `%NAME%` stands for.
    pub(crate) fn read(
        root: &Path,
        settings: &BTreeMap<String, String>,
    ) -> Result<Self, HostError> {
        let root = root.canonicalize().map_err(|source| HostError::Read {
            path: root.to_owned(),
            source,
        })?;
        let path = root.join("host.json");
        let host: HostJson = json(&path)?;
        let app = |problem: String| HostError::App {
            path: path.clone(),
            problem,
        };
        if host.version != "2.0" {
            return Err(app(format!("version is `{}`, not `2.0`", host.version)));
        }
        let queues = host.extensions.queues;
        if !(1..=32).contains(&queues.batch_size) {
            return Err(app("extensions.queues.batchSize is not 1 to 32".to_owned()));
        }
        let timeout = match host.function_timeout.as_deref() {
            None => Some(Duration::from_secs(1800)),
            Some("-1") => None,
            Some(text) => Some(time_span(text).ok_or_else(|| {
                app(format!(
                    "functionTimeout is `{text}`, not such as `00:10:00`"
                ))
            })?),
        };
        let handler = host.custom_handler;
        let raw = match (
            handler.enable_proxying_http_request,
            handler.enable_forwarding_http_request,
        ) {
            (true, _) => Some(Raw::Proxy),
            (false, true) => Some(Raw::Forward),
            (false, false) => None,
        };
        let given = PathBuf::from(expand(
            &handler.description.default_executable_path,
            settings,
            &path,
        )?);
        let inside = root.join(&given);
        let executable = if inside.is_file() { inside } else { given };
        let arguments = handler
            .description
            .arguments
            .iter()
            .map(|argument| expand(argument, settings, &path))
            .collect::<Result<_, _>>()?;
        let functions = functions(&root, settings)?;
        Ok(Self {
            executable,
            arguments,
            folder: root.join(&handler.description.working_directory),
            raw,
            timeout,
            prefix: host
                .extensions
                .http
                .route_prefix
                .trim_matches('/')
                .to_owned(),
            queues,
            functions,
            root,
        })
    }
}

/// Which executable an app folder names, which need not be there yet.
pub(crate) fn executable(root: &Path) -> Result<String, HostError> {
    let host: HostJson = json(&root.join("host.json"))?;
    Ok(host.custom_handler.description.default_executable_path)
}

fn functions(root: &Path, settings: &BTreeMap<String, String>) -> Result<Vec<Function>, HostError> {
    let read = |source| HostError::Read {
        path: root.to_owned(),
        source,
    };
    let mut functions: Vec<Function> = Vec::new();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root)
        .map_err(read)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(read)?;
    folders.sort();
    for folder in folders {
        let path = folder.join("function.json");
        if !path.is_file() {
            continue;
        }
        let name = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let function = function(name, &path, settings)?;
        if let Some(other) = functions.iter().find(|other| conflict(other, &function)) {
            return Err(HostError::App {
                path,
                problem: format!("its route is also that of `{}`", other.name),
            });
        }
        functions.push(function);
    }
    Ok(functions)
}

fn function(
    name: String,
    path: &Path,
    settings: &BTreeMap<String, String>,
) -> Result<Function, HostError> {
    let app = |problem: String| HostError::App {
        path: path.to_owned(),
        problem,
    };
    let read: FunctionJson = json(path)?;
    let mut triggers = Vec::new();
    let mut outputs = Vec::new();
    for binding in read.bindings {
        match binding {
            Binding::Timer {
                name,
                direction: In::In,
                schedule,
                use_monitor,
                run_on_startup,
            } => {
                let schedule = ncrontab(&expand(&schedule, settings, path)?).map_err(app)?;
                triggers.push(Trigger::Timer {
                    name,
                    monitor: use_monitor && !super::timer::is_often(&schedule),
                    schedule: Box::new(schedule),
                    at_start: run_on_startup,
                });
            }
            Binding::QueueTrigger {
                name,
                direction: In::In,
                queue_name,
            } => triggers.push(Trigger::Queue {
                name,
                queue: expand(&queue_name, settings, path)?,
            }),
            Binding::HttpTrigger {
                name: binding,
                direction: In::In,
                auth_level,
                methods,
                route,
            } => {
                let route = Route::parse(route.as_deref().unwrap_or(&name)).map_err(app)?;
                let first = route.text().split('/').next().unwrap_or_default();
                if ["admin", "runtime"]
                    .iter()
                    .any(|taken| first.eq_ignore_ascii_case(taken))
                {
                    return Err(app(format!(
                        "the route `{}` begins with `{first}`, which is the host's own",
                        route.text()
                    )));
                }
                triggers.push(Trigger::Http {
                    name: binding,
                    level: auth_level,
                    methods: methods.iter().map(|m| m.to_ascii_uppercase()).collect(),
                    route,
                });
            }
            Binding::Http {
                name,
                direction: Out::Out,
            } => outputs.push(Output {
                name,
                kind: OutputKind::Http,
                binary: false,
            }),
            Binding::Queue {
                name,
                direction: Out::Out,
                queue_name,
                data_type,
            } => outputs.push(Output {
                name,
                kind: OutputKind::Queue(expand(&queue_name, settings, path)?),
                binary: data_type.is_some_and(|kind| kind.eq_ignore_ascii_case("binary")),
            }),
        }
    }
    let trigger = triggers
        .pop()
        .filter(|_| triggers.is_empty())
        .ok_or_else(|| app("a function has exactly one trigger".to_owned()))?;
    Ok(Function {
        name,
        trigger,
        outputs,
        retry: read.retry,
    })
}

fn conflict(one: &Function, other: &Function) -> bool {
    match (&one.trigger, &other.trigger) {
        (
            Trigger::Http { methods, route, .. },
            Trigger::Http {
                methods: others,
                route: another,
                ..
            },
        ) => {
            route.conflicts(another)
                && (methods.is_empty()
                    || others.is_empty()
                    || methods.iter().any(|method| others.contains(method)))
        }
        _ => false,
    }
}

fn json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, HostError> {
    let text = std::fs::read(path).map_err(|source| HostError::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|source| HostError::Json {
        path: path.to_owned(),
        source,
    })
}

/// Six fields, seconds first; day of month and day of week must both match.
fn ncrontab(text: &str) -> Result<Cron, String> {
    CronParser::builder()
        .seconds(Seconds::Required)
        .year(Year::Disallowed)
        .dom_and_dow(true)
        .build()
        .parse(text)
        .map_err(|error| {
            format!("the schedule `{text}` is not six fields with seconds first, such as `0 */15 * * * *`: {error}")
        })
}

/// Replaces each `%NAME%` by the setting of that name, or the variable of this process.
fn expand(
    text: &str,
    settings: &BTreeMap<String, String>,
    path: &Path,
) -> Result<String, HostError> {
    let mut made = String::new();
    let mut rest = text;
    while let Some((before, name, after)) = rest.split_once('%').and_then(|(before, more)| {
        more.split_once('%')
            .map(|(name, after)| (before, name, after))
    }) {
        let value = settings
            .get(name)
            .cloned()
            .or_else(|| std::env::var(name).ok())
            .ok_or_else(|| HostError::Setting {
                path: path.to_owned(),
                name: name.to_owned(),
            })?;
        made.push_str(before);
        made.push_str(&value);
        rest = after;
    }
    made.push_str(rest);
    Ok(made)
}

/// `hh:mm:ss` or `d.hh:mm:ss`, as .NET writes it, with an optional fraction.
fn time_span(text: &str) -> Option<Duration> {
    let mut fields = text.split(':');
    let (hours, minutes, seconds) = (fields.next()?, fields.next()?, fields.next()?);
    let (days, hours) = hours.split_once('.').unwrap_or(("0", hours));
    let seconds: f64 = seconds.parse().ok()?;
    let whole = days
        .parse::<u64>()
        .ok()?
        .checked_mul(24)?
        .checked_add(hours.parse::<u64>().ok()?)?
        .checked_mul(60)?
        .checked_add(minutes.parse::<u64>().ok()?)?
        .checked_mul(60)?;
    let fraction = Duration::try_from_secs_f64(seconds).ok()?;
    fields
        .next()
        .is_none()
        .then(|| Duration::from_secs(whole) + fraction)
}

fn span<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    time_span(&text)
        .ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not a time such as 00:01:00")))
}
