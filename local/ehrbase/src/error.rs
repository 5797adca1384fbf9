//! What can go wrong with a server for tests, and what the person reading does about it.

use std::borrow::Cow;
use std::path::Path;

/// The answer of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a server could not be started or asked: what was tried, what kind of
/// failure it is, how it is repaired, and the cause where there is one.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}{}", fix.as_deref().map(|fix| format!("; {fix}")).unwrap_or_default())]
pub struct Error {
    kind: ErrorKind,
    action: Cow<'static, str>,
    fix: Option<Cow<'static, str>>,
    #[source]
    source: Option<BoxError>,
}

/// The kinds of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A program this machine needs is not installed.
    Missing,
    /// A file or a process could not be made, read or ended.
    System,
    /// A server did not start; the message ends with the tail of its log.
    Start,
    /// A server could not be reached, or its answer not be understood.
    Connection,
    /// A server answered a request with this HTTP status.
    Status(u16),
    /// An environment variable or a file of the corpus is not what it should be.
    Input,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, action: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            action: action.into(),
            fix: None,
            source: None,
        }
    }

    pub(crate) fn fix(mut self, fix: impl Into<Cow<'static, str>>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    pub(crate) fn because(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<atlas_machine::Missing> for Error {
    fn from(missing: atlas_machine::Missing) -> Self {
        Self::new(ErrorKind::Missing, missing.action).fix(missing.fix)
    }
}

/// Names the action in the error of a call that failed.
pub(crate) trait Context<T> {
    fn context(self, kind: ErrorKind, action: impl Into<Cow<'static, str>>) -> Result<T>;
}

impl<T, E: Into<BoxError>> Context<T> for std::result::Result<T, E> {
    fn context(self, kind: ErrorKind, action: impl Into<Cow<'static, str>>) -> Result<T> {
        self.map_err(|error| Error::new(kind, action).because(error))
    }
}

/// An error and all its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// The last lines of a server's log, for the error that says it did not start.
pub(crate) fn log_tail(log: &Path) -> String {
    let text = match std::fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(its log {} cannot be read: {error})", log.display()),
    };
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
