//! The records that cross the ports. Times are instants in UTC, to the microsecond, as the source
//! commits them; intervals are half-open.

use std::ops::{AddAssign, Range};
use std::sync::Arc;
use std::time::Duration;

use atlas_openehr::id::{EhrId, ObjectId, ObjectVersion, TemplateId, VersionUid};
use atlas_openehr::json::{Checksum, Node, NodeId, Tape};
use atlas_openehr::time::Instant;
use serde::{Deserialize, Serialize};

/// Half-open interval of commit time: `from` belongs to it, `to` does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// First instant inside.
    pub from: Instant,
    /// First instant after.
    pub to: Instant,
}

impl Window {
    /// All of time.
    pub const EVER: Self = Self {
        from: Instant::EPOCH,
        to: Instant::MAX,
    };

    /// Whether no instant lies inside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.from >= self.to
    }
}

/// Which compositions a query is about. An empty list does not restrict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Templates, any of them.
    pub templates: Vec<TemplateId>,
    /// EHRs, any of them.
    pub ehrs: Vec<EhrId>,
    /// Commit times.
    pub window: Window,
}

/// The place of a composition in the order of the source: by commit time, ties by object id.
/// A cursor stands behind the composition that it names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    /// Commit time.
    pub committed: Instant,
    /// Versioned object, as lower-case text: the source compares it like this.
    pub object: ObjectId,
    /// The source's own text of the place, where `committed` is too coarse for it: a commit time finer than a microsecond, or
    /// a snapshot where the source is a database. Only the source reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
}

/// What the source says about one version, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// As the source said it; identity is object id and version number.
    pub uid: VersionUid,
    /// The EHR it belongs to.
    pub ehr: EhrId,
    /// Its template.
    pub template: TemplateId,
    /// When the source committed this version.
    pub committed: Instant,
    /// [`Cursor::position`] of this version, where the source has one.
    pub position: Option<String>,
    /// `creation`, `modification`, … as the source said it.
    pub change_type: String,
}

impl Meta {
    /// The cursor behind this composition.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor {
            committed: self.committed,
            object: self.uid.object_id().clone(),
            position: self.position.clone(),
        }
    }
}

/// One composition of a page.
#[derive(Debug, Clone)]
pub struct Row {
    /// What identifies and places it.
    pub meta: Meta,
    /// Where its canonical JSON lies in the page's tape.
    pub content: NodeId,
}

/// An answer of the source: its text is kept once, rows point into it.
#[derive(Debug, Default)]
pub struct Page {
    /// The whole answer.
    pub text: String,
    /// Where each value lies in `text`.
    pub tape: Tape,
    /// In the order of the source.
    pub rows: Vec<Row>,
    /// Rows that are no compositions as Atlas understands them (a uid of a branch, content that is no object, …). Each goes
    /// into quarantine by itself.
    pub misfits: Vec<Misfit>,
}

/// A row of an answer that is no composition as Atlas understands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// What could be read of it.
    pub meta: Meta,
    /// What is wrong with it; no ids, no content.
    pub detail: String,
}

impl Page {
    /// The canonical JSON of a row of this page.
    #[must_use]
    pub fn content(&self, row: &Row) -> Node<'_> {
        self.tape.node(&self.text, row.content)
    }
}

/// One line of a census.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CensusLine {
    /// The template.
    pub template: TemplateId,
    /// How many compositions of it were committed since the census' start.
    pub count: u64,
    /// The earliest commit time among them.
    pub first: Instant,
    /// The latest.
    pub last: Instant,
}

/// What was committed since some instant, by template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    /// The source's own clock when it answered.
    pub server_time: Instant,
    /// Only templates with at least one composition.
    pub lines: Vec<CensusLine>,
}

/// What a source was asked so far, by this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// HTTP requests, repeated ones included.
    pub requests: u64,
    /// Bytes of answers, after decompression.
    pub bytes: u64,
    /// Answers that asked for a pause (429, 503).
    pub busy: u64,
}

/// The format of `content` in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// FLAT JSON, as the source itself would answer.
    Preserve,
    /// FLAT JSON under names that SQL likes.
    Flatten,
    /// Canonical JSON, value for value.
    Canonical,
}

/// What a copy selects: each selection has watermarks of its own, so that a wider selection is
/// filled up from the beginning and a narrower one does not claim more than it read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// EHRs; empty = all.
    pub ehrs: Vec<EhrId>,
    /// Commit times from here on; `None` = from the beginning.
    pub from: Option<Instant>,
    /// Commit times before this; `None` = up to the cut of each run.
    pub to: Option<Instant>,
    /// Format of the copy: another format is another copy.
    pub format: Format,
}

/// Names the watermarks of one [`Selection`]: its format and 16 hexadecimal digits of its SHA-256, such as
/// `preserve-0123456789abcdef`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SelectionKey(pub String);

impl SelectionKey {
    /// What the keys of all selections in a format begin with.
    #[must_use]
    pub fn prefix(format: Format) -> String {
        format!("{}-", format.name())
    }
}

/// How many compositions took which way. `read = written + unchanged + filtered + quarantined`, always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Received from the source, or named by it and not readable.
    pub read: u64,
    /// New in the store, or replaced there.
    pub written: u64,
    /// The store had this version, or a newer one.
    pub unchanged: u64,
    /// Not meant for the store.
    pub filtered: u64,
    /// In quarantine.
    pub quarantined: u64,
}

impl Counts {
    /// Whether nothing was lost and nothing was invented on the way (promise P11).
    #[must_use]
    pub fn conserved(&self) -> bool {
        self.read == self.written + self.unchanged + self.filtered + self.quarantined
    }

    /// What was added since `earlier`, which must be an earlier state of the same counts.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            read: self.read.saturating_sub(earlier.read),
            written: self.written.saturating_sub(earlier.written),
            unchanged: self.unchanged.saturating_sub(earlier.unchanged),
            filtered: self.filtered.saturating_sub(earlier.filtered),
            quarantined: self.quarantined.saturating_sub(earlier.quarantined),
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.written += other.written;
        self.unchanged += other.unchanged;
        self.filtered += other.filtered;
        self.quarantined += other.quarantined;
    }
}

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
    /// Changes of this record so far: what compare-and-swap compares. A page that is committed adds one.
    pub step: u64,
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
}

/// A composition as it goes into the store; `content` is a range of the batch's text.
#[derive(Debug, Clone)]
pub struct NewRow {
    /// What identifies and places it.
    pub meta: Meta,
    /// Its content in the chosen format, in [`Batch::text`].
    pub content: Range<usize>,
    /// Of the content, in RFC 8785 form.
    pub checksum: Checksum,
}

/// The converted rows of a page. No two rows are of the same object.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// All contents, one after the other.
    pub text: String,
    /// In the order of the source.
    pub rows: Vec<NewRow>,
}

impl Batch {
    /// The content of a row of this batch.
    #[must_use]
    pub fn content(&self, row: &NewRow) -> &str {
        self.text.get(row.content.clone()).unwrap_or_default()
    }
}

/// Why a composition is in quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// The source names it and cannot read it back.
    Unreadable,
    /// Alone it is larger than the limit for one answer.
    TooLarge,
    /// It cannot be converted to the chosen format.
    Inconvertible,
    /// The store cannot hold this content.
    Unstorable,
}

/// A composition on its way into quarantine.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// What identifies and places it.
    pub meta: Meta,
    /// Why.
    pub reason: Reason,
    /// Status or path, for the person who looks into it; no content, no ids.
    pub detail: String,
}

/// A composition in quarantine. There is at most one entry for an object, of its newest version seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// What identifies and places it.
    pub meta: Meta,
    /// Why.
    pub reason: Reason,
    /// Status or path; no content, no ids.
    pub detail: String,
    /// The run that put it here.
    pub run: String,
    /// When it was first refused.
    pub since: Instant,
    /// When it was last tried.
    pub tried: Instant,
    /// How often it was tried.
    pub tries: u32,
}

/// Which entries of the quarantine are asked for. `None` does not restrict.
#[derive(Debug, Clone, Default)]
pub struct QuarantineFilter {
    /// Of this template.
    pub template: Option<TemplateId>,
    /// Tried last before this instant.
    pub tried_before: Option<Instant>,
    /// Of this object.
    pub object: Option<ObjectId>,
    /// At most so many.
    pub limit: Option<usize>,
}

/// A page on its way into the store, and what it means for its slice.
#[derive(Debug)]
pub struct Commit<'a> {
    /// The slice as the worker knows it: `id`, `step` and `fence` must be those in the store.
    pub slice: &'a Slice,
    /// Rows to keep; shared, so that a store that writes in another thread need not copy them.
    pub batch: &'a Arc<Batch>,
    /// Rows to put into quarantine.
    pub rejected: &'a [Rejected],
    /// Rows that were read and are not meant for the store.
    pub filtered: u64,
    /// The slice's cursor afterwards.
    pub cursor: Option<Cursor>,
    /// The slice's state afterwards.
    pub state: SliceState,
    /// The slice's lease afterwards: renewed while it goes on, `None` (with no owner) when it is released.
    pub lease_until: Option<Instant>,
    /// The run in which this happens.
    pub run: &'a str,
    /// The format of the batch.
    pub format: Format,
    /// When this happens.
    pub now: Instant,
}

impl Commit<'_> {
    /// Whether a slice still stands as the worker knows it.
    #[must_use]
    pub fn applies_to(&self, stands: &Slice) -> bool {
        (stands.fence, stands.step) == (self.slice.fence, self.slice.step)
    }

    /// Whether a slice stands as this very commit left it: only its answer got lost.
    #[must_use]
    pub fn was_applied_to(&self, stands: &Slice) -> bool {
        stands.fence == self.slice.fence
            && stands.step == self.slice.step + 1
            && stands.cursor == self.cursor
            && stands.state == self.state
    }

    /// The slice after this commit. `written` is how many rows replaced something or were new.
    #[must_use]
    pub fn apply(&self, stands: Slice, written: u64) -> Slice {
        let (rows, quarantined) = (self.batch.rows.len() as u64, self.rejected.len() as u64);
        let mut after = Slice {
            step: stands.step + 1,
            state: self.state,
            cursor: self.cursor.clone(),
            lease_until: self.lease_until,
            failure: None,
            ..stands
        };
        after.counts += Counts {
            read: rows + quarantined + self.filtered,
            written,
            unchanged: rows.saturating_sub(written),
            filtered: self.filtered,
            quarantined,
        };
        if after.lease_until.is_none() {
            after.owner = None;
        }
        after
    }
}

/// What became of a [`Commit`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "made once a page")]
pub enum Committed {
    /// Durable. The slice as it stands now.
    Done(Slice),
    /// The slice moved on under another fence or step. Nothing of this commit is in the store
    /// (a store without transactions may hold its rows, which are right by themselves).
    Lost,
}

/// How far a template is complete, for one selection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermark {
    /// The template.
    pub template: TemplateId,
    /// Every composition committed before this instant was seen, unless it became visible late: the watermark,
    /// "checked until".
    pub until: Instant,
    /// Every composition committed before this instant was looked for when it was at least the overlap old. Between
    /// here and `until`, the next run compares uids. Never after `until`.
    pub late_checked_until: Instant,
}

/// The name of the watermark up to which censuses over all templates have looked. Without it a run over all templates
/// looks from the beginning: the watermarks of a listed run say nothing about templates that were not on the list.
pub const ALL_TEMPLATES: &str = "*";

/// What the store holds of a template: "newest data", beside "checked until".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The template.
    pub template: TemplateId,
    /// Compositions, tombstones left out.
    pub compositions: u64,
    /// The latest commit time among them.
    pub newest: Option<Instant>,
}

/// A version that the store has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The newest version of the object in the store or in quarantine.
    pub version: ObjectVersion,
}

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

/// Incremental runs go on at the watermarks; full runs read everything again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// From the watermark, or from the beginning where there is none.
    Incremental,
    /// From the beginning.
    Full,
}

/// What a run is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Incremental or full.
    pub mode: Mode,
    /// Templates; empty = all that the source has compositions of.
    pub templates: Vec<TemplateId>,
    /// What belongs to the copy.
    pub selection: Selection,
}

impl Request {
    /// As a store keeps it.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// Reads what [`to_json`](Self::to_json) wrote; `None` for anything else.
    #[must_use]
    pub fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
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

/// A web template as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTemplate {
    /// The template.
    pub template: TemplateId,
    /// SHA-256 of `web_template`, hexadecimal.
    pub digest: String,
    /// As the source served it.
    pub web_template: String,
    /// FLAT path to SQL name, as JSON, where the format renames; empty otherwise.
    pub names: String,
    /// When it was fetched.
    pub fetched: Instant,
}

/// A small control record that all processes share: a lease with a value. Changed by compare-and-swap only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Unique in the store.
    pub name: String,
    /// Changes so far: what compare-and-swap compares.
    pub step: u64,
    /// Who holds it; `None` = nobody.
    pub owner: Option<String>,
    /// Until when the holder is left alone.
    pub until: Option<Instant>,
    /// JSON, or empty.
    pub value: String,
}

impl Record {
    /// As it is before anybody wrote it.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            step: 0,
            owner: None,
            until: None,
            value: String::new(),
        }
    }

    /// Whether somebody holds it at this instant.
    #[must_use]
    pub fn is_held(&self, now: Instant) -> bool {
        self.owner.is_some() && self.until.is_some_and(|until| until > now)
    }
}

/// Time-outs and limits of the slice protocol.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTerms {
    /// How long a worker is left alone after each checkpoint.
    pub duration: Duration,
}

impl Default for LeaseTerms {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(90),
        }
    }
}

/// Gives the variants of an enum the names by which configuration, stores and reports know them.
macro_rules! named {
    ($type:ident { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $type {
            /// The name in configuration, stores and reports.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The variant of that name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

named!(Format { Preserve => "preserve", Flatten => "flatten", Canonical => "canonical" });
named!(SliceKind { Read => "read", Compare => "compare", Retry => "retry" });
named!(SliceState { Open => "open", Done => "done", Failed => "failed" });
named!(Reason {
    Unreadable => "unreadable",
    TooLarge => "toolarge",
    Inconvertible => "inconvertible",
    Unstorable => "unstorable",
});
named!(Outcome {
    Complete => "complete",
    Partial => "partial",
    Interrupted => "interrupted",
    Failed => "failed",
    Cancelled => "cancelled",
});
named!(Origin { CommandLine => "commandline", Timer => "timer", OnDemand => "ondemand" });
named!(Mode { Incremental => "incremental", Full => "full" });
