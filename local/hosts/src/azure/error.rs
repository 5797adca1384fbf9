//! Errors of the host itself. A function that fails is an outcome, not an error.

use std::path::PathBuf;
use std::time::Duration;

use super::end::Down;
use super::queue::{ClientError, QueueError};

/// Why the host did not start, or could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file of the app folder could not be read.
    #[error(
        "failed to read {path}; an app folder holds host.json and one folder with function.json for each function"
    )]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file of the app folder is not what the real host reads.
    #[error("{path} is refused, as the real host would refuse it")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A file of the app folder says something that does not work.
    #[error("{path}: {problem}")]
    App {
        /// The file.
        path: PathBuf,
        /// The problem, and the correct form.
        problem: String,
    },
    /// A file that the command line needs.
    #[error("failed to find {what} at {path}; {fix}")]
    Input {
        /// Which one.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What helps.
        fix: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// `%NAME%` stands for a setting that is not there.
    #[error(
        "{path} mentions the app setting `{name}`, which is not set; add it to the environment of the host"
    )]
    Setting {
        /// The file.
        path: PathBuf,
        /// The setting.
        name: String,
    },
    /// No port on this machine, or no client for one.
    #[error("failed to {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The queue service did not do it.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// No client of the queue service can be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The folder of the state cannot be used.
    #[error(transparent)]
    Journal(#[from] crate::JournalError),
    /// An instance did not come up.
    #[error("instance {instance} is not ready: {reason}")]
    NotReady {
        /// Its number, from 0.
        instance: usize,
        /// Why, and what helps.
        reason: Down,
    },
    /// There is no such function.
    #[error("the app has no function `{name}` {of}; it has {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Of which kind it should have been.
        of: &'static str,
        /// The names that there are.
        known: String,
    },
    /// There was still something to do.
    #[error("not quiet after {limit:?}: {running} running; {queues}")]
    NotQuiet {
        /// How long was waited.
        limit: Duration,
        /// Invocations under way.
        running: usize,
        /// Each queue with what is in it.
        queues: String,
    },
}

impl HostError {
    pub(super) fn system(
        action: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::System {
            action,
            source: source.into(),
        }
    }
}
