//! The output on the terminal: one line per invocation, like Lambda's own report, and between them what the
//! functions write.

use std::io::{IsTerminal, Write};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

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

    /// Prints events until a signal comes, or until the output is closed.
    pub(super) async fn run(mut self) {
        let (Ok(mut interrupt), Ok(mut terminate)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
        ) else {
            tracing::error!("failed to listen for signals");
            return;
        };
        if self.welcome().is_err() {
            return;
        }
        loop {
            let shown = tokio::select! {
                _ = interrupt.recv() => return,
                _ = terminate.recv() => return,
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
            Outcome::Failed(reason) => (bad, format!("failed: {reason}")),
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

/// What of a function's URL a person calls first, as options and path of `curl`.
fn first_call(function: &str) -> (&'static str, &'static str) {
    match function {
        "export" => ("-X POST ", "/api/exports"),
        "watermark" => ("", "/api/watermark"),
        _ => ("", "/"),
    }
}
