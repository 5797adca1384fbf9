//! `local-hosts azure`: the whole suite on this machine, with a line for each invocation.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::sync::broadcast::error::RecvError;

use super::error::HostError;
use super::{
    Event, Fault, Host, Invocation, Level, Options, Outcome, Pace, QueueService, Started, Times,
};
use crate::laptop::{self, Terms};

/// The handler beside this program.
const HANDLER: &str = "atlas-azure";

/// The timer that plans.
const PLANNER: &str = "planner";

/// A handler that is told to end may take so long to hand on what it has in work.
const HANDS_ON: Duration = Duration::from_secs(20);

/// Runs the function suite in a Functions host.
#[derive(Debug, Args)]
pub struct Azure {
    /// The configuration that the functions use.
    #[arg(short, long, default_value = "atlas.toml")]
    config: PathBuf,
    /// Handler processes.
    #[arg(long, default_value_t = 1)]
    instances: usize,
    /// Folder with host.json [default: functions/azure/app, here or above, with the handler beside this program].
    #[arg(long)]
    app: Option<PathBuf>,
    /// A connection string, or an endpoint that ends with a SAS [default: a queue service inside of this program].
    #[arg(long, env = "LOCAL_HOSTS_QUEUE", hide_env_values = true)]
    queue: Option<String>,
    /// Folder for what a host that is started later goes on with: messages, and the status of timers [default: .FILE.hosts
    /// beside the configuration FILE].
    #[arg(long)]
    state: Option<PathBuf>,
    /// Runs the planner at once, not first when its schedule says so.
    #[arg(long)]
    plan_now: bool,
    /// Retries, polls and hidden messages take a second or two instead of minutes.
    #[arg(long)]
    fast: bool,
    /// Something that goes wrong for the next N events, such as duplicate=3; one of duplicate, lose, reverse,
    /// drop-response, skip-delete, skip-release, stale-receipt, malformed, unavailable.
    #[arg(long = "fault", value_name = "NAME=N", value_parser = fault)]
    faults: Vec<(Fault, u32)>,
}

fn fault(text: &str) -> Result<(Fault, u32), String> {
    let (name, count) = text.split_once('=').unwrap_or((text, "1"));
    let fault = match name {
        "duplicate" => Fault::Duplicate,
        "lose" => Fault::Lose,
        "reverse" => Fault::Reverse,
        "drop-response" => Fault::DropResponse,
        "skip-delete" => Fault::SkipDelete,
        "skip-release" => Fault::SkipRelease,
        "stale-receipt" => Fault::StaleReceipt,
        "malformed" => Fault::Malformed,
        "unavailable" => Fault::Unavailable,
        _ => return Err(format!("there is no fault `{name}`")),
    };
    let count = count
        .parse()
        .map_err(|_| format!("`{count}` is not a number of events"))?;
    Ok((fault, count))
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// Why the host did not start.
pub async fn run(arguments: Azure) -> Result<(), HostError> {
    let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
    let (app, _assembled) = match &arguments.app {
        Some(app) => (app.clone(), None),
        None => {
            let folder = assemble()?;
            (folder.path().to_owned(), Some(folder))
        }
    };
    let mut options = Options::new(app);
    let config = arguments
        .config
        .canonicalize()
        .map_err(|source| HostError::Input {
            what: "the configuration",
            path: arguments.config.clone(),
            fix: "name it by --config",
            source,
        })?;
    options.environment = [
        ("ATLAS_CONFIG", config.to_string_lossy().into_owned()),
        ("ATLAS_QUEUE_URL", "{queue_endpoint}/export-work".to_owned()),
        ("FUNCTIONS_WORKER_RUNTIME", "Custom".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    // What the deployment sets: `function.json` names them.
    for (name, schedule) in [
        ("ATLAS_SCHEDULE_PLAN", "0 */15 * * * *"),
        ("ATLAS_SCHEDULE_REPORT", "0 */5 * * * *"),
    ] {
        let schedule = std::env::var(name).unwrap_or_else(|_| schedule.to_owned());
        options.environment.insert(name.to_owned(), schedule);
    }
    let terms = Terms::read(&config);
    options.environment.extend(terms.variables());
    options.instances = arguments.instances;
    let state = arguments
        .state
        .unwrap_or_else(|| laptop::state(&config, "azure"));
    options.state = Some(state);
    if let Some(queue) = &arguments.queue {
        options.queue = queue_service(queue);
    }
    if arguments.fast {
        options.pace = Pace::fast();
    }
    // Kinder than the real host: what is under way is handed on, and no lease is left behind.
    options.pace.terminate_first = Some(HANDS_ON);
    let host = tokio::select! {
        host = Host::start(options) => host?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    for (fault, count) in arguments.faults {
        host.faults().set(fault, Times::Next(count));
    }
    let console = Console::new();
    console.welcome(&host);
    let ended = tokio::select! {
        () = console.watch(&host) => Ok(()),
        ended = plan(&host, arguments.plan_now, &terms) => ended,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    console.say("stopping: what is under way is handed on (Ctrl-C ends it at once)");
    tokio::select! {
        () = host.stop() => {}
        _ = interrupt.recv() => {}
    }
    ended
}

/// Runs the planner where it must not wait for its schedule; does not end then.
async fn plan(host: &Host, now: bool, terms: &Terms) -> Result<(), HostError> {
    // Another app may have none, and only who asks for one is to hear of that.
    let has_planner = host.waits().iter().any(|(name, _)| *name == PLANNER);
    let follows = host.is_successor() && has_planner;
    if now || follows {
        host.start_by_hand(PLANNER).await?;
    }
    if follows {
        tokio::time::sleep(terms.all_leases()).await;
        host.start_by_hand(PLANNER).await?;
    }
    std::future::pending().await
}

fn signal(kind: tokio::signal::unix::SignalKind) -> Result<tokio::signal::unix::Signal, HostError> {
    tokio::signal::unix::signal(kind)
        .map_err(|error| HostError::system("listen for signals", error))
}

/// A connection string, or an endpoint as it is.
fn queue_service(text: &str) -> QueueService {
    let value = |name: &str| {
        text.split(';')
            .filter_map(|part| part.split_once('='))
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
    };
    match (value("AccountName"), value("AccountKey")) {
        (Some(account), Some(key)) => QueueService::Account {
            endpoint: value("QueueEndpoint")
                .unwrap_or_else(|| format!("https://{account}.queue.core.windows.net")),
            account,
            key,
        },
        _ => QueueService::Account {
            endpoint: text.to_owned(),
            account: String::new(),
            key: String::new(),
        },
    }
}

/// The app folder of the suite, with the handler where `host.json` looks for it.
fn assemble() -> Result<TempDir, HostError> {
    let here = std::env::current_dir()
        .map_err(|error| HostError::system("find the current folder", error))?;
    let source = here
        .ancestors()
        .map(|folder| folder.join("functions/azure/app"))
        .find(|folder| folder.join("host.json").is_file())
        .ok_or_else(|| HostError::Input {
            what: "the app folder",
            path: PathBuf::from("functions/azure/app"),
            fix: "start this in the repository, or name it by --app",
            source: std::io::ErrorKind::NotFound.into(),
        })?;
    let program = std::env::current_exe()
        .map_err(|error| HostError::system("find this program", error))?
        .with_file_name(HANDLER);
    if !program.is_file() {
        return Err(HostError::Input {
            what: "the handler",
            path: program,
            fix: "build it: cargo build -p atlas-azure",
            source: std::io::ErrorKind::NotFound.into(),
        });
    }
    let assembled =
        TempDir::new().map_err(|error| HostError::system("make a folder for the app", error))?;
    let name = super::app::executable(&source)?;
    copy(&source, assembled.path())
        .and_then(|()| std::os::unix::fs::symlink(&program, assembled.path().join(name)))
        .map_err(|error| HostError::system("copy the app folder", error))?;
    Ok(assembled)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            atlas_files::create_folders(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The output on the terminal.
struct Console {
    colours: bool,
}

impl Console {
    fn new() -> Self {
        Self {
            colours: std::io::stdout().is_terminal(),
        }
    }

    /// A console that is gone is no reason to end.
    fn say(&self, text: &str) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    fn welcome(&self, host: &Host) {
        self.say(&format!("ready {}", host.url()));
        if host.is_successor() {
            self.say(&format!(
                "took over {} messages of the host before; the planner looks for the rest",
                host.taken_over()
            ));
        }
        self.say(&format!(
            "queues {}",
            self.paint("2", host.queue_endpoint_shown())
        ));
        for (name, started) in host.functions() {
            let how = match started {
                Started::Timer(schedule) => format!(
                    "{schedule}   curl -X POST {}/admin/functions/{name} -H 'x-functions-key: {}'",
                    host.url(),
                    host.master_key()
                ),
                Started::Queue(queue) => format!("messages of {queue}"),
                Started::Http { methods, path } => format!(
                    "{}   curl {}{}{} -H 'x-functions-key: {}'",
                    if methods.is_empty() {
                        "any".to_owned()
                    } else {
                        methods.join(", ")
                    },
                    // What is read with an id is made without one.
                    if methods
                        .iter()
                        .any(|method| method.eq_ignore_ascii_case("post"))
                    {
                        "-X POST "
                    } else {
                        ""
                    },
                    host.url(),
                    path.split('{')
                        .next()
                        .unwrap_or(&path)
                        .trim_end_matches('/'),
                    host.key()
                ),
            };
            self.say(&format!("  {name:<12} {how}"));
        }
    }

    /// Prints what happens, and what is waited for whenever that has changed.
    async fn watch(&self, host: &Host) {
        let mut events = host.events();
        let mut every = tokio::time::interval(Duration::from_secs(1));
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut shown = String::new();
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => self.event(&event),
                    Err(RecvError::Lagged(count)) => self.say(&format!("({count} lines left out)")),
                    Err(RecvError::Closed) => return,
                },
                _ = every.tick() => {
                    let waits = waits(host).await;
                    if waits != shown {
                        self.say(&self.paint("36", &waits));
                        shown = waits;
                    }
                }
            }
        }
    }

    fn event(&self, event: &Event) {
        match event {
            Event::Started { .. } => {}
            Event::Ended(invocation) => self.ended(invocation),
            Event::Line {
                instance,
                level,
                text,
            } => {
                let code = match level {
                    Level::Information => "2",
                    Level::Warning => "2;33",
                    Level::Error => "2;31",
                };
                self.say(&self.paint(code, &format!("  {instance} | {text}")));
            }
            Event::Note(text) => self.say(&self.paint("33", &format!("host: {text}"))),
        }
    }

    fn ended(&self, invocation: &Invocation) {
        let took = invocation.ended.duration_since(invocation.started);
        let (code, outcome) = match &invocation.outcome {
            Outcome::Succeeded => ("32", "succeeded".to_owned()),
            Outcome::Failed(reason) => ("31", format!("failed: {reason}")),
            Outcome::TimedOut => ("31", "timed out: the process was killed".to_owned()),
            Outcome::Lost => ("31", "lost: the process ended under it".to_owned()),
        };
        self.say(&format!(
            "{}  {:<12} {:>2} {:>8} ms  {}",
            clock(invocation.ended),
            invocation.function,
            invocation.instance,
            took.as_millis(),
            self.paint(code, &outcome)
        ));
    }
}

fn clock(time: Timestamp) -> String {
    time.strftime("%H:%M:%S").to_string()
}

/// The next occurrences, the messages, and how many slots for work are taken.
async fn waits(host: &Host) -> String {
    let timers = host.waits().into_iter();
    let mut parts: Vec<String> = timers
        .map(|(name, next)| format!("{name} at {}", clock(next)))
        .collect();
    for name in host.queues() {
        parts.push(match host.queue(name).contents().await {
            Ok(contents) => format!(
                "{name}: {} waiting, {} in work or delayed",
                contents.visible, contents.invisible
            ),
            Err(_) => format!("{name}: does not answer"),
        });
    }
    parts.push(format!(
        "{} at work in {} handlers",
        host.running(),
        host.processes().len()
    ));
    format!("waits for: {}", parts.join("   "))
}
