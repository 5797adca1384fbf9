//! Failures on their way to the person: what happened, why, and the fix; and the exit code.

use std::error::Error as StdError;
use std::fmt;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use atlas_engine::ErrorKind;
use atlas_openehr::printable::printable_lines;
use atlas_runtime::settings::{ConfigError, Invalid, Mask, Place, Problem};
use atlas_runtime::telemetry::REPORT;
use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

/// How the program ends. The numbers stay stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Complete = 0,
    /// Something failed or was quarantined.
    Partial = 1,
    /// What was typed or configured cannot be used.
    Usage = 2,
    /// Source or store cannot be reached, or refuse.
    Unavailable = 4,
    /// A defect of Atlas.
    Internal = 5,
    /// Another run holds the store.
    Held = 6,
    Interrupted = 130,
    Terminated = 143,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::SourceUnreachable
            | ErrorKind::SourceBusy { .. }
            | ErrorKind::SourceDenied
            | ErrorKind::SourceUnsupported
            | ErrorKind::SourceUntrue
            | ErrorKind::SourceUnreadable
            | ErrorKind::SourceTooLarge
            | ErrorKind::StoreUnreachable
            | ErrorKind::StoreDenied
            | ErrorKind::StoreFull
            | ErrorKind::StoreNewer
            | ErrorKind::StoreCorrupt
            | ErrorKind::QueueUnreachable
            | ErrorKind::QueueDenied
            | ErrorKind::SecretUnavailable
            | ErrorKind::FutureWatermark => Self::Unavailable,
            ErrorKind::Held | ErrorKind::LostLease => Self::Held,
            ErrorKind::UnknownTemplate | ErrorKind::Usage => Self::Usage,
            ErrorKind::Interrupted => Self::Interrupted,
            ErrorKind::Internal => Self::Internal,
        }
    }
}

/// Why a command ended without its result.
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// What happened, with its causes.
    what: Box<dyn StdError + Send + Sync>,
    fix: Option<String>,
    problems: Vec<ConfigProblem>,
}

/// One problem with the configuration, with the text it is about.
struct ConfigProblem {
    problem: Problem,
    text: Option<Arc<NamedSource<String>>>,
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Caused {
    message: String,
    source: Box<dyn StdError + Send + Sync>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            exit,
            what: what.into(),
            fix: None,
            problems: Vec::new(),
        }
    }

    /// What was typed or configured cannot be used.
    pub(crate) fn usage(message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message.into()).fix(fix)
    }

    pub(crate) fn fix(self, fix: impl Into<String>) -> Self {
        Self {
            fix: Some(fix.into()),
            ..self
        }
    }

    pub(crate) fn exiting(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    pub(crate) fn because(self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let what = Caused {
            message: self.what.to_string(),
            source: cause.into(),
        };
        Self {
            what: Box::new(what),
            ..self
        }
    }

    /// The same without the secrets of a configuration.
    pub(crate) fn masked(self, mask: &Mask) -> Self {
        self.rewritten(|text| mask.apply(text))
    }

    fn rewritten(self, rewrite: impl Fn(&str) -> String) -> Self {
        let mut texts = self.causes();
        texts.insert(0, self.to_string());
        let texts = texts.iter().map(|text| rewrite(text));
        let what = texts.rev().fold(None, |source, message| {
            Some(match source {
                None => message.into(),
                Some(source) => Box::new(Caused { message, source }).into(),
            })
        });
        Self {
            what: what.unwrap_or(self.what),
            fix: self.fix.map(|fix| rewrite(&fix)),
            ..self
        }
    }

    /// Tells the person, on stderr.
    pub(crate) fn show(self) {
        tracing::error!(target: REPORT, exit_code = self.exit as u8, "{}", self.line());
        // A server's words can be among the causes; the colours around them are miette's.
        let shown = self.rewritten(|text| printable_lines(text).into_owned());
        let report = miette::Report::new(shown);
        // Nobody is left to tell when stderr is gone.
        let _ = writeln!(std::io::stderr(), "{report:?}");
    }

    /// What happened and its causes, in one line.
    fn line(&self) -> String {
        let what = std::iter::once(self.to_string()).chain(self.causes());
        what.collect::<Vec<_>>().join(": ")
    }

    fn causes(&self) -> Vec<String> {
        let causes = std::iter::successors(self.what.source(), |error| (*error).source());
        causes.map(ToString::to_string).collect()
    }

    /// The same as JSON.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let problem = |ConfigProblem { problem, .. }: &ConfigProblem| {
            let (line, column) = match problem.place {
                Place::File { line, column, .. } => (Some(line), Some(column)),
                _ => (None, None),
            };
            serde_json::json!({
                "key": problem.key, "rule": problem.rule, "fix": problem.fix,
                "line": line, "column": column,
            })
        };
        let problems: Vec<_> = self.problems.iter().map(problem).collect();
        serde_json::json!({
            "error": self.to_string(), "causes": self.causes(), "fix": self.fix,
            "problems": problems, "exit_code": self.exit as u8,
        })
    }
}

impl From<atlas_engine::Error> for Failure {
    fn from(error: atlas_engine::Error) -> Self {
        let fix = match (error.help(), error.kind()) {
            (Some(help), _) => Some(help.to_owned()),
            (None, ErrorKind::Internal) => Some(
                "this is a defect of Atlas: run it again with --log-level debug and report the lines".into(),
            ),
            (None, _) => None,
        };
        Self {
            fix,
            ..Self::new(error.kind().into(), error)
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        match error {
            ConfigError::Invalid(invalid) => invalid.into(),
            ConfigError::Unreadable { .. } => Self::new(Exit::Usage, error)
                .fix("write one with `atlas init`, or name one with `-c FILE`"),
        }
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        let path = invalid.path.display().to_string();
        let message = match invalid.problems.len() {
            1 => format!("the configuration `{path}` has a problem"),
            count => format!("the configuration `{path}` has {count} problems"),
        };
        let text = invalid
            .excerpt
            .map(|text| Arc::new(NamedSource::new(path, text)));
        let problem = |problem| ConfigProblem {
            problem,
            text: text.clone(),
        };
        Self {
            problems: invalid.problems.into_iter().map(problem).collect(),
            ..Self::new(Exit::Usage, message)
        }
    }
}

impl From<atlas_runtime::environment::DotEnvError> for Failure {
    fn from(error: atlas_runtime::environment::DotEnvError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<atlas_runtime::telemetry::TelemetryError> for Failure {
    fn from(error: atlas_runtime::telemetry::TelemetryError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.what.fmt(f)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.what.fmt(f)
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.what.source()
    }
}

impl Diagnostic for Failure {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.fix.as_ref().map(|fix| Box::new(fix) as _)
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        if self.problems.is_empty() {
            return None;
        }
        Some(Box::new(
            self.problems
                .iter()
                .map(|problem| problem as &dyn Diagnostic),
        ))
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The fix has a line of its own.
        Problem {
            fix: None,
            ..self.problem.clone()
        }
        .fmt(f)
    }
}

impl fmt::Debug for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StdError for ConfigProblem {}

impl Diagnostic for ConfigProblem {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.problem.fix.as_ref().map(|fix| Box::new(fix) as _)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.text.as_deref().map(|text| text as _)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        match &self.problem.place {
            Place::File { span, .. } if self.text.is_some() => Some(Box::new(std::iter::once(
                LabeledSpan::underline(span.clone()),
            ))),
            _ => None,
        }
    }
}
