//! `local-hosts lambda`: the whole suite on this machine, with a console.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args as Arguments;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::console::{self, Console};
use super::faults::{Fault, Times};
use super::host::Host;
use super::options::{Options, QueueService, Trigger};
use super::{HostError, Pace};
use crate::laptop::{self, Terms};

/// `--fast`: schedules, and everything that waits for minutes on AWS.
const FAST: Duration = Duration::from_secs(15);

/// Delay of the faults that delay something.
const DELAY: Duration = Duration::from_secs(5);

/// The function that plans.
const PLANNER: &str = "planner";

/// When the host ends, what is under way may take so long: a part of a slice, and the page that it has begun.
const FINISHES: Duration = Duration::from_secs(30);

/// Runs the functions as on AWS Lambda
#[derive(Debug, Arguments)]
pub struct Args {
    /// The configuration that the functions read
    #[arg(short, long, value_name = "FILE", default_value = "atlas.toml")]
    config: PathBuf,
    /// Folder of the functions' programs [default: the one of this program]
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
    /// Invocations of the worker at once, per queue
    #[arg(long, value_name = "N", default_value_t = 2)]
    concurrency: usize,
    /// Queue service that speaks SQS, such as moto [default: one in this process]
    #[arg(long, value_name = "URL")]
    queue: Option<String>,
    /// Folder for what a host that is started later goes on with: messages [default: .FILE.hosts beside the configuration FILE]
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Runs the planner at once, not first when its schedule says so
    #[arg(long)]
    plan_now: bool,
    /// Schedules every 15 seconds, failed messages again after 30
    #[arg(long)]
    fast: bool,
    /// Lets something go wrong N times: duplicate, lose, lose-answer, delay, reverse, malformed, refuse, unavailable,
    /// drop-response, delay-delete, skip-delete, fire-twice
    #[arg(long = "fault", value_name = "NAME=N", value_parser = fault)]
    faults: Vec<(Fault, Times)>,
}

/// Runs until `SIGINT` or `SIGTERM`.
///
/// # Errors
/// What kept the host from starting.
pub async fn run(args: Args) -> Result<(), HostError> {
    let config = std::path::absolute(&args.config)
        .ok()
        .filter(|config| config.is_file())
        .ok_or_else(|| {
            HostError::Options(format!(
                "there is no configuration {}; make one with `atlas init`",
                args.config.display()
            ))
        })?;
    let programs = match args.programs {
        Some(programs) => programs,
        None => std::env::current_exe()
            .ok()
            .and_then(|own| own.parent().map(Path::to_owned))
            .unwrap_or_default(),
    };
    // Children run in the folder of their program: a relative path would be another one there.
    let programs = std::path::absolute(&programs).unwrap_or(programs);
    let mut options = Options::suite(&programs);
    options.clock = true;
    options.environment.insert(
        "ATLAS_CONFIG".to_owned(),
        config.to_string_lossy().into_owned(),
    );
    let terms = Terms::read(&config);
    options.environment.extend(terms.variables());
    options.state = Some(
        args.state
            .unwrap_or_else(|| laptop::state(&config, "lambda")),
    );
    if let Some(url) = args.queue {
        options.queue = QueueService::Endpoint(url);
    }
    for function in &mut options.functions {
        if function.name == "worker" {
            function.max_concurrency = args.concurrency;
        }
        for trigger in &mut function.triggers {
            if let (true, Trigger::Schedule { every, .. }) = (args.fast, trigger) {
                *every = FAST;
            }
        }
    }
    if args.fast {
        options.pace = Pace {
            visibility: FAST * 2,
            timeout: FAST * 2,
            schedule_retry_wait: FAST,
            ..Pace::default()
        };
    }

    let mut signals = Signals::new()?;
    let host = Host::start(options.clone()).await?;
    for (fault, times) in args.faults {
        host.faults().set(fault, times);
    }
    let console = Console::new(&host, &options);
    let ended = tokio::select! {
        () = console.run() => Ok(()),
        ended = plan(&host, args.plan_now, &terms) => ended,
        () = signals.next() => Ok(()),
    };
    console::say("stopping: waits for what is under way (Ctrl-C ends it at once)");
    tokio::select! {
        () = host.finish() => {}
        () = tokio::time::sleep(FINISHES) => {}
        () = signals.next() => {}
    }
    host.stop().await;
    ended
}

/// Runs the planner where it must not wait for its schedule; does not end then.
async fn plan(host: &Host, now: bool, terms: &Terms) -> Result<(), HostError> {
    if now || host.is_successor() {
        host.fire(PLANNER).await?;
    }
    if host.is_successor() {
        tokio::time::sleep(terms.all_leases()).await;
        host.fire(PLANNER).await?;
    }
    std::future::pending().await
}

/// What tells the host to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, HostError> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(HostError::Signals)?,
            terminate: signal(SignalKind::terminate()).map_err(HostError::Signals)?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn fault(text: &str) -> Result<(Fault, Times), String> {
    let (name, times) = text.split_once('=').unwrap_or((text, ""));
    let fault = match name {
        "duplicate" => Fault::Duplicate,
        "lose" => Fault::Lose,
        "lose-answer" => Fault::LoseAnswer,
        "delay" => Fault::DelayDelivery(DELAY),
        "reverse" => Fault::Reverse,
        "malformed" => Fault::Malformed,
        "refuse" => Fault::QueueRefused,
        "unavailable" => Fault::QueueUnavailable,
        "drop-response" => Fault::DropResponse,
        "delay-delete" => Fault::DelayDelete(DELAY),
        "skip-delete" => Fault::SkipDelete,
        "fire-twice" => Fault::FireTwice,
        _ => return Err(format!("no fault is called `{name}`; --help names them")),
    };
    let times = match times {
        "" => Times::Always,
        times => Times::Next(
            times
                .parse()
                .map_err(|_| format!("`{times}` is not a number; leave it out for every time"))?,
        ),
    };
    Ok((fault, times))
}
