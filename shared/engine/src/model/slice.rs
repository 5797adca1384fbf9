//! The unit of work, of exclusive lease and of checkpoint.

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

named!(SliceKind { Read => "read", Compare => "compare", Retry => "retry" });
named!(SliceState { Open => "open", Done => "done", Failed => "failed" });
