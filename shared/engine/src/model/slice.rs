//! The unit of work, of exclusive lease and of checkpoint.

use std::collections::BTreeMap;

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use serde::{Deserialize, Serialize};

use super::{Counts, Cursor, PageCounts, SelectionKey, Window, named};

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

/// One of several templates that share a slice, because none of them would fill one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The template.
    pub template: TemplateId,
    /// How many compositions of it the source counted in the window when it was planned.
    pub expected: u64,
    /// Whether it has a slice of its own by now, and is not read by this one any more: it could not go on.
    pub taken_out: bool,
    /// What became of its compositions in this slice so far.
    #[serde(flatten)]
    pub counts: Counts,
}

/// One template x one window of commit time, or several small templates that share it: the unit of work, of exclusive lease and of
/// checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// Unique in the store; two planners that decide the same give the same id.
    pub id: String,
    /// The run that planned it.
    pub run: String,
    /// The selection whose watermark it carries.
    pub selection: SelectionKey,
    /// The template; of several, the first one.
    pub template: TemplateId,
    /// The templates that share it, by name; empty = it has one template only. Only slices that read are shared.
    pub members: Vec<Member>,
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
    /// A slice of one template that nobody has begun, and in which nothing is expected.
    #[must_use]
    pub fn new(
        id: String,
        run: String,
        selection: SelectionKey,
        template: TemplateId,
        kind: SliceKind,
        window: Window,
        planned: Instant,
    ) -> Self {
        Self {
            id,
            run,
            selection,
            template,
            members: Vec::new(),
            kind,
            window,
            planned,
            expected: 0,
            state: SliceState::Open,
            step: 0,
            page: 0,
            fence: 0,
            owner: None,
            lease_until: None,
            part: 1,
            sent_part: 0,
            enqueued: None,
            moved: None,
            next_page: None,
            cursor: None,
            counts: Counts::default(),
            failure: None,
        }
    }

    /// Whether several templates share it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        !self.members.is_empty()
    }

    /// The templates that it reads.
    pub fn templates(&self) -> impl Iterator<Item = &TemplateId> {
        let alone = Some(&self.template).filter(|_| !self.is_shared());
        let members = self.members.iter().filter(|member| !member.taken_out);
        alone
            .into_iter()
            .chain(members.map(|member| &member.template))
    }

    /// Whether it reads a template.
    #[must_use]
    pub fn reads(&self, template: &TemplateId) -> bool {
        self.kind == SliceKind::Read && self.templates().any(|read| read == template)
    }

    /// What it says of each of its templates, those that were taken out included.
    pub fn lines(&self) -> impl Iterator<Item = SliceLine<'_>> {
        let alone = SliceLine {
            template: &self.template,
            expected: self.expected,
            counts: self.counts,
            is_read: true,
        };
        let members = self.members.iter().map(|member| SliceLine {
            template: &member.template,
            expected: member.expected,
            counts: member.counts,
            is_read: !member.taken_out,
        });
        Some(alone)
            .filter(|_| !self.is_shared())
            .into_iter()
            .chain(members)
    }

    /// Adds what a page adds.
    pub(super) fn count(&mut self, page: &PageCounts) {
        self.counts += page.all;
        for member in &mut self.members {
            if let Some(counts) = page.members.get(&member.template) {
                member.counts += *counts;
            }
        }
    }

    /// The slice without a member that could not go on, and the slice that this one gets, which begins anew. `None` if it has no
    /// such member.
    #[must_use]
    pub fn without(&self, template: &TemplateId) -> Option<(Self, Self)> {
        let mut rest = self.clone();
        let member = rest
            .members
            .iter_mut()
            .find(|member| &member.template == template && !member.taken_out)?;
        member.taken_out = true;
        let own = Self {
            expected: member.expected,
            ..Self::new(
                format!("{template}/{}", self.id),
                self.run.clone(),
                self.selection.clone(),
                template.clone(),
                self.kind,
                self.window,
                self.planned,
            )
        };
        Some((rest, own))
    }

    /// The slice without any of its members, and the slices that they get, each of which begins anew.
    #[must_use]
    pub fn apart(&self) -> (Self, Vec<Self>) {
        let mut rest = self.clone();
        let mut own = Vec::new();
        for member in &self.members {
            if let Some((less, one)) = rest.without(&member.template) {
                rest = less;
                own.push(one);
            }
        }
        (rest, own)
    }

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

/// What a slice says of one of its templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceLine<'a> {
    /// The template.
    pub template: &'a TemplateId,
    /// How many compositions of it the source counted in the window when it was planned.
    pub expected: u64,
    /// What became of them so far.
    pub counts: Counts,
    /// Whether the slice reads it, and it has no slice of its own by now.
    pub is_read: bool,
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
    /// Those of a template alone that were read to their end and whose window ends behind an instant, by window.
    Read {
        /// The selection.
        selection: &'a SelectionKey,
        /// The template.
        template: &'a TemplateId,
        /// Commit time.
        beyond: Instant,
    },
    /// Those of several templates that were read to their end and whose window ends behind an instant, by window.
    ReadTogether {
        /// The selection.
        selection: &'a SelectionKey,
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
                    && !slice.is_shared()
                    && slice.kind == SliceKind::Read
                    && slice.state == SliceState::Done
                    && slice.window.to > beyond
            }
            Self::ReadTogether { selection, beyond } => {
                &slice.selection == selection
                    && slice.is_shared()
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

/// Slices of one template, or all of them, counted.
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
    fn add(&mut self, slice: &Slice, line: SliceLine<'_>, now: Instant) {
        match slice.state {
            SliceState::Open if slice.is_leased(now) => self.in_work += 1,
            SliceState::Open => self.waiting += 1,
            SliceState::Done => self.done += 1,
            SliceState::Failed => self.failed += 1,
        }
        self.first_planned = earliest(self.first_planned, Some(slice.planned));
        self.expected += line.expected;
        self.counts += line.counts;
        if slice.kind != SliceKind::Retry {
            self.fresh_quarantine += line.counts.quarantined;
        }
        self.failure = slice.failure.clone().max(self.failure.take());
        self.still_since = earliest(self.still_since, slice.still_since());
    }

    fn join(&mut self, other: &Self) {
        self.waiting += other.waiting;
        self.in_work += other.in_work;
        self.done += other.done;
        self.failed += other.failed;
        self.first_planned = earliest(self.first_planned, other.first_planned);
        self.expected += other.expected;
        self.counts += other.counts;
        self.fresh_quarantine += other.fresh_quarantine;
        self.failure = self.failure.take().max(other.failure.clone());
        self.still_since = earliest(self.still_since, other.still_since);
    }

    /// Slices that are not finished and not given up.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.waiting + self.in_work
    }
}

/// How slices stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// All of them, each counted once.
    pub all: SliceTotals,
    /// By template: a slice that several share counts for each of them.
    pub templates: BTreeMap<TemplateId, SliceTotals>,
}

impl Totals {
    /// Of those that have one template each, as a database counts them.
    #[must_use]
    pub fn of_templates(templates: BTreeMap<TemplateId, SliceTotals>) -> Self {
        let mut all = SliceTotals::default();
        for totals in templates.values() {
            all.join(totals);
        }
        Self { all, templates }
    }

    /// Adds one slice, as it stands at an instant of the ledger's clock.
    pub fn add(&mut self, slice: &Slice, now: Instant) {
        for line in slice.lines() {
            let totals = self.templates.entry(line.template.clone()).or_default();
            totals.add(slice, line, now);
        }
        let whole = SliceLine {
            template: &slice.template,
            expected: slice.expected,
            counts: slice.counts,
            is_read: true,
        };
        self.all.add(slice, whole, now);
    }
}

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

named!(SliceKind { Read => "read", Compare => "compare", Retry => "retry" });
named!(SliceState { Open => "open", Done => "done", Failed => "failed" });
