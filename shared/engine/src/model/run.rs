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
    /// Changes of this record so far: what compare-and-swap compares.
    pub step: u64,
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

/// Where a run stands.
///
/// ```text
///  asked ──► planned ──► ended
///    └─────────┴──► cancelled
/// ```
/// No way leads back, and none leads out of the last two: that is what the methods of [`Run`] that change it are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunPhase {
    /// Nobody has planned it to its end.
    Asked,
    /// Its slices are in the store.
    Planned,
    /// Nothing is left to do for it.
    Ended,
    /// A person took it back.
    Cancelled,
}

impl Run {
    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> RunPhase {
        match (self.ended, self.outcome, self.cut) {
            (Some(_), Some(Outcome::Cancelled), _) => RunPhase::Cancelled,
            (Some(_), ..) => RunPhase::Ended,
            (None, _, Some(_)) => RunPhase::Planned,
            (None, _, None) => RunPhase::Asked,
        }
    }

    /// Whether something can still become of it.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        matches!(self.phase(), RunPhase::Asked | RunPhase::Planned)
    }

    /// Planned up to `cut`; `None` if that is over.
    #[must_use]
    pub fn planned(&self, cut: Instant) -> Option<Self> {
        (self.phase() == RunPhase::Asked).then(|| Self {
            cut: Some(cut),
            ..self.clone()
        })
    }

    /// Ended, or cancelled if that is its outcome; `None` if it was already.
    #[must_use]
    pub fn ended(&self, at: Instant, outcome: Outcome, counts: Counts) -> Option<Self> {
        self.is_unfinished().then(|| Self {
            ended: Some(at),
            outcome: Some(outcome),
            counts,
            ..self.clone()
        })
    }
}

named!(Outcome {
    Complete => "complete",
    Partial => "partial",
    Interrupted => "interrupted",
    Failed => "failed",
    Cancelled => "cancelled",
});
named!(Origin { CommandLine => "commandline", Timer => "timer", OnDemand => "ondemand" });
