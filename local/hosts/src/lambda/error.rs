//! Errors of the host itself. A function that fails is an outcome, not an error.

use std::path::PathBuf;
use std::time::Duration;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why the host cannot do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The options do not fit together.
    #[error("the options do not fit together: {0}")]
    Options(String),
    /// A program is not where it should be.
    #[error(
        "there is no program {}; build the functions first, such as with `cargo build -p atlas-planner`",
        .0.display()
    )]
    NoProgram(PathBuf),
    /// The folder of the state cannot be used.
    #[error(transparent)]
    Journal(#[from] crate::JournalError),
    /// No port on this machine could be opened.
    #[error("failed to listen on 127.0.0.1")]
    Listen(#[source] std::io::Error),
    /// Signals of the system cannot be listened for.
    #[error("failed to listen for signals")]
    Signals(#[source] std::io::Error),
    /// A request to the queue failed.
    #[error("failed to {action}")]
    Queue {
        /// Completes the sentence "failed to …".
        action: &'static str,
        /// What the client said.
        #[source]
        source: Cause,
    },
    /// No function of this name, or it has no such trigger.
    #[error("no function `{0}` with {1}; look at the functions in the options")]
    NoFunction(String, &'static str),
    /// No queue of this name.
    #[error("no queue `{0}`; look at the queues in the options")]
    NoQueue(String),
    /// Something is still queued, delayed or running.
    #[error(
        "not quiet after {limit:?}: {visible} messages visible, {in_flight} in flight, {delayed} delayed, {running} invocations running"
    )]
    NotQuiet {
        /// How long was waited.
        limit: Duration,
        /// Messages that can be received.
        visible: u64,
        /// Messages that were received and not deleted.
        in_flight: u64,
        /// Messages that were sent with a delay.
        delayed: u64,
        /// Invocations.
        running: usize,
    },
}

impl HostError {
    pub(super) fn queue(action: &'static str, source: impl Into<Cause>) -> Self {
        Self::Queue {
            action,
            source: source.into(),
        }
    }
}
