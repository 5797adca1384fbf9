//! One error type for the whole engine: its kind says what to do, its action what was tried, its
//! source why, its fix what the person reading can do about it.

use std::borrow::Cow;
use std::time::Duration;

/// What the engine returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong, as far as it decides what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No connection to the source, or it broke, or the answer did not come in time.
    SourceUnreachable,
    /// The source asked for a pause (429, 503): it answers again later.
    SourceBusy {
        /// How long the source asked to be left alone, if it said so.
        retry_after: Option<Duration>,
    },
    /// The source refused the credentials or the rights behind them (401, 403).
    SourceDenied,
    /// The source answered, but not as an openEHR server that Atlas understands.
    SourceUnsupported,
    /// The source answered what was not asked, or less than there is: nothing can be concluded from what it says.
    SourceUntrue,
    /// The source failed (500) on this very request. A page fails like this when one
    /// of its compositions cannot be read back.
    SourceUnreadable,
    /// The answer is larger than the limit for one answer.
    SourceTooLarge,
    /// No connection to the store, or it broke. A commit may or may not have happened.
    StoreUnreachable,
    /// The store refused the credentials or the rights behind them, or is read-only.
    StoreDenied,
    /// The store has no room left.
    StoreFull,
    /// The store was written by a newer Atlas.
    StoreNewer,
    /// The store holds what Atlas would never have written.
    StoreCorrupt,
    /// No connection to the queue, or it broke, or it asked for a pause. The message may or may not have been sent.
    QueueUnreachable,
    /// The queue refused the credentials or the rights behind them, or is not there.
    QueueDenied,
    /// A reference to a secret that its vault does not give out.
    SecretUnavailable,
    /// A watermark lies after the source's own clock.
    FutureWatermark,
    /// Another run holds what this one needs.
    Held,
    /// The lease of a slice went to another worker: nothing more may be committed.
    LostLease,
    /// A stop was asked for before the run had begun to read.
    Interrupted,
    /// A template that the source does not have.
    UnknownTemplate,
    /// What was asked for does not fit together.
    Usage,
    /// A defect of Atlas.
    Internal,
}

/// What a run in one process does about an error of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InRun {
    /// The port has tried often enough: no other slice would fare better, so the run ends and the next one goes on.
    Stop,
    /// This slice cannot go on; others can.
    NextSlice,
}

/// What a worker or a planner does with the message whose work met an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InMessage {
    /// The queue delivers it again: the same work can succeed later.
    Again,
    /// Trying again cannot help: the slice or the run is marked as failed, for everybody to see.
    GiveUp,
}

/// What is done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Whether the same request can succeed later, without anybody doing anything.
    pub passes: bool,
    /// Whether the page is bisected until the culprit stands alone.
    pub bisects: bool,
    /// In a run in one process.
    pub run: InRun,
    /// Of a message.
    pub message: InMessage,
}

impl ErrorKind {
    /// The whole policy in one place.
    #[must_use]
    pub fn policy(self) -> Policy {
        let (passes, bisects, run, message) = match self {
            Self::SourceUnreachable
            | Self::SourceBusy { .. }
            | Self::StoreUnreachable
            | Self::QueueUnreachable => (true, false, InRun::Stop, InMessage::Again),
            Self::SourceDenied
            | Self::SourceUntrue
            | Self::StoreDenied
            | Self::StoreFull
            | Self::StoreNewer
            | Self::QueueDenied
            | Self::SecretUnavailable
            | Self::Interrupted
            | Self::Internal => (false, false, InRun::Stop, InMessage::Again),
            Self::SourceUnreadable | Self::SourceTooLarge => {
                (false, true, InRun::NextSlice, InMessage::GiveUp)
            }
            Self::LostLease | Self::Held => (false, false, InRun::NextSlice, InMessage::Again),
            Self::SourceUnsupported => (false, false, InRun::NextSlice, InMessage::GiveUp),
            Self::StoreCorrupt | Self::FutureWatermark | Self::UnknownTemplate | Self::Usage => {
                (false, false, InRun::Stop, InMessage::GiveUp)
            }
        };
        Policy {
            passes,
            bisects,
            run,
            message,
        }
    }

    /// Whether a page that fails like this is bisected until the culprit stands alone.
    #[must_use]
    pub fn bisects(self) -> bool {
        self.policy().bisects
    }
}

/// An error of the engine or of one of its ports. Holds no id of a patient, no content and no secret.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}")]
pub struct Error {
    kind: ErrorKind,
    action: Cow<'static, str>,
    fix: Option<Cow<'static, str>>,
    #[source]
    source: Option<Cause>,
}

impl Error {
    /// `action` completes the sentence "failed to …".
    pub fn new(kind: ErrorKind, action: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            action: action.into(),
            fix: None,
            source: None,
        }
    }

    /// The error that caused this one.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Cause>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// What the person reading can do, as a full sentence.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<Cow<'static, str>>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// Decides what happens next.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the person reading can do, if anything is known to help.
    #[must_use]
    pub fn help(&self) -> Option<&str> {
        self.fix.as_deref()
    }

    /// What happened and why, in one line: this error and its causes, joined.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}
