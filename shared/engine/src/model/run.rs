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
    /// Commit times before this belong to it; `None` until somebody began to plan it. Never changes after that.
    pub cut: Option<Instant>,
    /// The source's clock when the cut was made.
    pub source_clock: Option<Instant>,
    /// Whether all its slices are in the store.
    pub planned: bool,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// What became of the compositions.
    pub counts: Counts,
    /// Why it could not be planned, without personal data.
    pub failure: Option<String>,
}

/// Up to where a run reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Commit times before this belong to the run.
    pub at: Instant,
    /// The source's clock when it was made: what was visible then is read.
    pub source_clock: Instant,
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
    /// Nobody has planned it to its end. Once it has its cut, slices of it can be in work already.
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
        match (self.ended, self.outcome, self.planned) {
            (Some(_), Some(Outcome::Cancelled), _) => RunPhase::Cancelled,
            (Some(_), ..) => RunPhase::Ended,
            (None, _, true) => RunPhase::Planned,
            (None, _, false) => RunPhase::Asked,
        }
    }

    /// Whether something can still become of it.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        matches!(self.phase(), RunPhase::Asked | RunPhase::Planned)
    }

    /// With the cut that it has from here on; `None` if it has one, or nothing can become of it.
    #[must_use]
    pub fn with_cut(&self, cut: Cut) -> Option<Self> {
        (self.phase() == RunPhase::Asked && self.cut.is_none()).then(|| Self {
            cut: Some(cut.at),
            source_clock: Some(cut.source_clock),
            ..self.clone()
        })
    }

    /// Its cut, once it has one.
    #[must_use]
    pub fn made_cut(&self) -> Option<Cut> {
        Some(Cut {
            at: self.cut?,
            source_clock: self.source_clock?,
        })
    }

    /// Planned to its end; `None` if that is over.
    #[must_use]
    pub fn planned(&self) -> Option<Self> {
        (self.phase() == RunPhase::Asked && self.cut.is_some()).then(|| Self {
            planned: true,
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
