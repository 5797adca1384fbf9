//! The records of runs.

use atlas_openehr::time::Instant;
use serde::{Deserialize, Serialize};

use super::{Counts, Mode, Request, SelectionKey, named};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Everything up to the cut is in the store.
    Complete,
    /// Something failed or went into quarantine.
    Partial,
    /// Stopped by a signal or its budget; the next run goes on.
    Interrupted,
    /// Nothing could be done.
    Failed,
    /// A person took it back; what was written stays.
    Cancelled,
}

/// Who asked for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A person at the command line, whose process plans it, works it and ends it.
    CommandLine,
    /// The planner's schedule. Workers end it with its last slice.
    Timer,
    /// The on-demand API. Workers plan it, work it and end it.
    OnDemand,
}

/// The record of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// A time-ordered uuid; of the schedule `timer/` and the occurrence, on demand a uuid made of the idempotency key.
    pub id: String,
    /// Who asked for it.
    pub origin: Origin,
    /// What was asked for; `None` in records of programs that did not keep it.
    pub request: Option<Request>,
    /// Its selection.
    pub selection: SelectionKey,
    /// Full or incremental.
    pub mode: Mode,
    /// When it began.
    pub started: Instant,
    /// When it ended; `None` while it runs, or if it was killed.
    pub ended: Option<Instant>,
    /// Commit times up to here were looked at; `None` until the census was answered.
    pub cut: Option<Instant>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// What became of the compositions.
    pub counts: Counts,
    /// Why it could not be planned, without personal data.
    pub failure: Option<String>,
}

named!(Outcome {
    Complete => "complete",
    Partial => "partial",
    Interrupted => "interrupted",
    Failed => "failed",
    Cancelled => "cancelled",
});
named!(Origin { CommandLine => "commandline", Timer => "timer", OnDemand => "ondemand" });
