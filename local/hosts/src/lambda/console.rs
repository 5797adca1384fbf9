//! The output on the terminal: one line per invocation, like Lambda's own report, and between them what the
//! functions write.

use std::io::{IsTerminal, Write};

use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;

use super::history::{Invocation, Line, Outcome};
use super::host::Host;
use super::options::{Options, Trigger};

/// Colours of a terminal; empty texts elsewhere.
struct Colours {
    dim: &'static str,
    good: &'static str,
    bad: &'static str,
    end: &'static str,
}

const COLOURS: Colours = Colours {
    dim: "\u{1b}[2m",
    good: "\u{1b}[32m",
    bad: "\u{1b}[31m",
    end: "\u{1b}[0m",
};

const PLAIN: Colours = Colours {
    dim: "",
    good: "",
    bad: "",
    end: "",
};

pub(super) struct Console<'a> {
    host: &'a Host,
    options: &'a Options,
    ended: Receiver<Invocation>,
    lines: Receiver<Line>,
    colours: Colours,
}

impl<'a> Console<'a> {
    pub(super) fn new(host: &'a Host, options: &'a Options) -> Self {
        let plain = !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some();
        Self {
            host,
            options,
            ended: host.watch(),
            lines: host.lines(),
            colours: if plain { PLAIN } else { COLOURS },
        }
    }

    /// Prints events, and what is waited for whenever that has changed, until the output is closed.
    pub(super) async fn run(mut self) {
        if self.welcome().is_err() {
            return;
        }
        let mut every = tokio::time::interval(Duration::from_secs(1));
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waits = String::new();
        loop {
            let shown = tokio::select! {
                _ = every.tick() => self.waits(&mut waits).await,
                ended = self.ended.recv() => self.ended(ended).await,
                line = self.lines.recv() => self.line(line),
            };
            if shown.is_err() {
                return;
            }
        }
    }

    fn welcome(&self) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        let Colours { dim, end, .. } = self.colours;
        if self.host.is_successor() {
            writeln!(
                out,
                "took over {} messages of the host before; the planner looks for the rest",
                self.host.taken_over()
            )?;
        }
        writeln!(out, "queue     {}", self.host.queue_endpoint())?;
        for function in &self.options.functions {
            for trigger in &function.triggers {
                let name = &function.name;
                match trigger {
                    Trigger::Schedule { every, .. } => {
                        writeln!(out, "{name:<9} every {} s", every.as_secs())?;
                    }
                    Trigger::Queue { name: queue, .. } => {
                        let most = function.max_concurrency;
                        writeln!(out, "{name:<9} from {queue}, {most} at once")?;
                    }
                    Trigger::Url => {
                        let url = self.host.url(name).unwrap_or_default();
                        let (method, path) = first_call(name);
                        writeln!(out, "{name:<9} curl {method}{url}{path}")?;
                    }
                }
            }
        }
        writeln!(
            out,
            "{dim}{:<12}  {:<9}  {:>9}  {:>8}  {:>6}  {:<7}  outcome (Ctrl-C ends){end}",
            "time", "function", "duration", "init", "memory", "queued"
        )?;
        out.flush()
    }

    /// The next occurrences, the messages, and how many slots for work are taken.
    async fn waits(&self, shown: &mut String) -> std::io::Result<()> {
        let mut parts: Vec<String> = self
            .host
            .waits()
            .into_iter()
            .map(|(name, at)| format!("{name} at {}", at.strftime("%H:%M:%S")))
            .collect();
        for queue in &self.options.queues {
            let counts = match self.host.queue(&queue.name) {
                Ok(of) => of.counts().await.ok(),
                Err(_) => None,
            };
            parts.push(match counts {
                Some(counts) => format!(
                    "{}: {} waiting, {} in work or delayed",
                    queue.name,
                    counts.visible,
                    counts.in_flight + counts.delayed
                ),
                None => format!("{}: does not answer", queue.name),
            });
        }
        let slots = self.options.functions.iter();
        let slots = slots
            .filter(|function| {
                let mut triggers = function.triggers.iter();
                triggers.any(|trigger| matches!(trigger, Trigger::Queue { .. }))
            })
            .map(|function| function.max_concurrency);
        parts.push(format!(
            "{} at work, {} slots for messages of each queue",
            self.host.running(),
            slots.sum::<usize>()
        ));
        let waits = format!("waits for: {}", parts.join("   "));
        if waits == *shown {
            return Ok(());
        }
        let Colours { dim, end, .. } = self.colours;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{dim}{waits}{end}")?;
        *shown = waits;
        out.flush()
    }

    async fn ended(&self, ended: Result<Invocation, RecvError>) -> std::io::Result<()> {
        let invocation = match ended {
            Ok(invocation) => invocation,
            Err(RecvError::Lagged(missed)) => return self.missed(missed),
            Err(RecvError::Closed) => return Ok(()),
        };
        let depth = self
            .host
            .depth()
            .await
            .map(|depth| depth.total().to_string());
        let Colours { good, bad, end, .. } = self.colours;
        let (colour, outcome) = match &invocation.outcome {
            Outcome::Succeeded => (good, "succeeded".to_owned()),
            Outcome::Failed(reason) | Outcome::Returned(reason) => {
                (bad, format!("failed: {reason}"))
            }
            Outcome::TimedOut => {
                let seconds = invocation.duration.as_secs_f64();
                (bad, format!("task timed out after {seconds:.2} seconds"))
            }
            Outcome::Lost => (bad, "lost".to_owned()),
        };
        let ms = |time: std::time::Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "{:<12}  {:<9}  {:>9}  {:>8}  {:>6}  {:<7}  {colour}{outcome}{end}",
            invocation.ended.strftime("%H:%M:%S%.3f").to_string(),
            invocation.function,
            ms(invocation.duration),
            invocation.init.map(ms).unwrap_or_default(),
            invocation
                .memory
                .map(|bytes| format!("{} MB", bytes >> 20))
                .unwrap_or_default(),
            depth.unwrap_or_else(|_| "?".to_owned()),
        )?;
        out.flush()
    }

    fn line(&self, line: Result<Line, RecvError>) -> std::io::Result<()> {
        let line = match line {
            Ok(line) => line,
            Err(RecvError::Lagged(missed)) => return self.missed(missed),
            Err(RecvError::Closed) => return Ok(()),
        };
        let Colours { dim, end, .. } = self.colours;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{dim}{:>12}  {}{end}", line.function, line.text)?;
        out.flush()
    }

    fn missed(&self, lines: u64) -> std::io::Result<()> {
        let Colours { dim, end, .. } = self.colours;
        writeln!(std::io::stdout(), "{dim}({lines} lines not shown){end}")
    }
}

/// A console that is gone is no reason to end.
pub(super) fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// What of a function's URL a person calls first, as options and path of `curl`.
fn first_call(function: &str) -> (&'static str, &'static str) {
    match function {
        "export" => ("-X POST ", "/api/exports"),
        "watermark" => ("", "/api/watermark"),
        _ => ("", "/"),
    }
}
