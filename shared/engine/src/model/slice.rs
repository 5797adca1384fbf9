//! The unit of work, of exclusive lease and of checkpoint.

use std::collections::BTreeMap;

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use serde::{Deserialize, Serialize};

use super::{Counts, Cursor, SelectionKey, Window, named};

/// What a slice is worked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SliceKind {
    /// Reads the window page by page. Finished slices of this kind carry the watermark forward.
    Read,
    /// Compares the uids of a window that was read before, and fetches what the store lacks.
    Compare,
    /// Tries again what is due in quarantine.
    Retry,
}

/// Where a slice stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SliceState {
    /// Not finished: waiting, or in work under a lease.
    Open,
    /// Everything in its window is in the store or in quarantine.
    Done,
    /// Given up after repeated failures; `failure` says why. Blocks the watermark until it is done.
    Failed,
}

/// One template x one window of commit time: the unit of work, of exclusive lease and of checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// Unique in the store; two planners that decide the same give the same id.
    pub id: String,
    /// The run that planned it.
    pub run: String,
    /// The selection whose watermark it carries.
    pub selection: SelectionKey,
    /// The template.
    pub template: TemplateId,
    /// What is done with it.
    pub kind: SliceKind,
    /// Commit times.
    pub window: Window,
    /// The source's clock when it was planned: what was visible then is read.
    pub planned: Instant,
    /// How many compositions the source counted in the window when it was planned.
    pub expected: u64,
    /// Where it stands.
    pub state: SliceState,
    /// Changes of this record so far: what compare-and-swap compares.
    pub step: u64,
    /// Pages that were committed so far: what rows are landed under. Never goes back.
    pub page: u64,
    /// Raised by each worker that takes the slice; a commit under an older fence is refused.
    pub fence: u64,
    /// Who holds the lease; `None` = nobody.
    pub owner: Option<String>,
    /// Until when the holder is left alone.
    pub lease_until: Option<Instant>,
    /// The part of the slice that the next message may start, from 1: a worker that runs out of time adds one.
    pub part: u64,
    /// The highest `part` whose message is known to be in the queue; 0 = none is.
    pub sent_part: u64,
    /// When that message was sent.
    pub enqueued: Option<Instant>,
    /// When a page of it was committed last, by the ledger's clock; before the first page, when a worker took it first.
    pub moved: Option<Instant>,
    /// Compositions in the page that is tried next, as the last worker learnt it from the source; `None` = nobody knows better.
    pub next_page: Option<u64>,
    /// Behind the last composition that is durable; `None` = at the start of the window.
    pub cursor: Option<Cursor>,
    /// What became of the compositions so far.
    pub counts: Counts,
    /// Why it failed last, without any personal data.
    pub failure: Option<String>,
}

impl Slice {
    /// Whether somebody works on it at this instant.
    #[must_use]
    pub fn is_leased(&self, now: Instant) -> bool {
        self.owner.is_some() && self.lease_until.is_some_and(|until| until > now)
    }

    /// Whether it is not finished, and nobody works on it at this instant.
    #[must_use]
    pub fn is_free(&self, now: Instant) -> bool {
        self.state == SliceState::Open && !self.is_leased(now)
    }

    /// Whether it is free, and the message of the part that is due is not known to be on its way.
    #[must_use]
    pub fn is_waiting(&self, now: Instant) -> bool {
        self.is_free(now) && self.sent_part < self.part
    }

    /// Whether a worker has it at this instant, or a message for it is on its way. Of open slices, the others
    /// [wait](Self::is_waiting).
    #[must_use]
    pub fn is_under_way(&self, now: Instant) -> bool {
        self.state == SliceState::Open && !self.is_waiting(now)
    }

    /// Since when it stands still, if a message for it was sent, somebody took it, or it was given up: one that waits for its turn
    /// does not.
    #[must_use]
    pub fn still_since(&self) -> Option<Instant> {
        let was_begun = self.sent_part >= self.part || self.owner.is_some();
        let counts = match self.state {
            SliceState::Open => was_begun,
            SliceState::Failed => true,
            SliceState::Done => false,
        };
        self.moved.or(self.enqueued).filter(|_| counts)
    }
}

/// Which slices a ledger is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SliceFilter<'a> {
    /// Those of a run that are [waiting](Slice::is_waiting) for their turn, by template and window.
    Waiting {
        /// The run.
        run: &'a str,
        /// The ledger's clock.
        now: Instant,
    },
    /// Those of all selections that are [under way](Slice::is_under_way), by id.
    UnderWay {
        /// The ledger's clock.
        now: Instant,
    },
    /// Those of a selection that were given up, by id.
    Failed {
        /// The selection.
        selection: &'a SelectionKey,
    },
    /// Those of a template that were read to their end and whose window ends behind an instant, by window.
    Read {
        /// The selection.
        selection: &'a SelectionKey,
        /// The template.
        template: &'a TemplateId,
        /// Commit time.
        beyond: Instant,
    },
}

impl SliceFilter<'_> {
    /// Whether a slice is one of them.
    #[must_use]
    pub fn takes(&self, slice: &Slice) -> bool {
        match *self {
            Self::Waiting { run, now } => slice.run == run && slice.is_waiting(now),
            Self::UnderWay { now } => slice.is_under_way(now),
            Self::Failed { selection } => {
                &slice.selection == selection && slice.state == SliceState::Failed
            }
            Self::Read {
                selection,
                template,
                beyond,
            } => {
                &slice.selection == selection
                    && &slice.template == template
                    && slice.kind == SliceKind::Read
                    && slice.state == SliceState::Done
                    && slice.window.to > beyond
            }
        }
    }
}

/// Whose slices are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlicesOf<'a> {
    /// A selection's.
    Selection(&'a SelectionKey),
    /// A run's.
    Run(&'a str),
}

impl SlicesOf<'_> {
    /// Whether a slice is one of them.
    #[must_use]
    pub fn takes(&self, slice: &Slice) -> bool {
        match *self {
            Self::Selection(selection) => &slice.selection == selection,
            Self::Run(run) => slice.run == run,
        }
    }
}

/// Slices of one template, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SliceTotals {
    /// Open slices that nobody works on.
    pub waiting: u64,
    /// Open slices with a worker.
    pub in_work: u64,
    /// Finished ones that are not removed.
    pub done: u64,
    /// Given up.
    pub failed: u64,
    /// When the first of them was planned, by the source's clock.
    pub first_planned: Option<Instant>,
    /// Compositions that the plan counted in them.
    pub expected: u64,
    /// What became of the compositions so far.
    pub counts: Counts,
    /// Quarantined by slices that do not retry: what fails again when it is retried is no news.
    pub fresh_quarantine: u64,
    /// Why one of them failed last, without any personal data.
    pub failure: Option<String>,
    /// Since when that one stands still that has not moved for the longest time.
    pub still_since: Option<Instant>,
}

impl SliceTotals {
    /// Adds one slice, as it stands at an instant of the ledger's clock.
    pub fn add(&mut self, slice: &Slice, now: Instant) {
        match slice.state {
            SliceState::Open if slice.is_leased(now) => self.in_work += 1,
            SliceState::Open => self.waiting += 1,
            SliceState::Done => self.done += 1,
            SliceState::Failed => self.failed += 1,
        }
        self.first_planned = earliest(self.first_planned, Some(slice.planned));
        self.expected += slice.expected;
        self.counts += slice.counts;
        if slice.kind != SliceKind::Retry {
            self.fresh_quarantine += slice.counts.quarantined;
        }
        self.failure = slice.failure.clone().max(self.failure.take());
        self.still_since = earliest(self.still_since, slice.still_since());
    }

    /// All of them together.
    #[must_use]
    pub fn of_all(templates: &BTreeMap<TemplateId, Self>) -> Self {
        templates.values().fold(Self::default(), |mut sum, one| {
            sum.waiting += one.waiting;
            sum.in_work += one.in_work;
            sum.done += one.done;
            sum.failed += one.failed;
            sum.first_planned = earliest(sum.first_planned, one.first_planned);
            sum.expected += one.expected;
            sum.counts += one.counts;
            sum.fresh_quarantine += one.fresh_quarantine;
            sum.failure = sum.failure.max(one.failure.clone());
            sum.still_since = earliest(sum.still_since, one.still_since);
            sum
        })
    }

    /// Slices that are not finished and not given up.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.waiting + self.in_work
    }
}

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

named!(SliceKind { Read => "read", Compare => "compare", Retry => "retry" });
named!(SliceState { Open => "open", Done => "done", Failed => "failed" });
