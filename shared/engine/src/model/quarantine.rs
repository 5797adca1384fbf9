//! What could not be copied, and why. Always by the ids of the source.

use atlas_openehr::id::{ObjectId, TemplateId};
use atlas_openehr::time::Instant;
use serde::{Deserialize, Serialize};

use super::{Meta, RowKey, named};

/// Why a composition is in quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// The source names it and cannot read it back, or it is no composition that Atlas understands.
    Unreadable,
    /// Alone it is larger than the limit for one answer.
    TooLarge,
    /// It cannot be converted to the chosen format.
    Inconvertible,
    /// The store cannot hold this content.
    Unstorable,
}

named!(Reason {
    Unreadable => "unreadable",
    TooLarge => "toolarge",
    Inconvertible => "inconvertible",
    Unstorable => "unstorable",
});

/// A composition on its way into quarantine.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// What identifies and places it.
    pub meta: Meta,
    /// Where its row would lie in the copy.
    pub key: RowKey,
    /// Why.
    pub reason: Reason,
    /// Status or path, for the person who looks into it; no content, no ids.
    pub detail: String,
}

impl Rejected {
    /// In a copy that shows ids as they are.
    #[must_use]
    pub fn new(meta: Meta, reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            key: meta.key(),
            meta,
            reason,
            detail: detail.into(),
        }
    }
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
    /// In how many runs it was tried.
    pub tries: u32,
    /// The run that tried it last.
    pub tried_by: String,
}

/// The place of an entry in the order of the quarantine: the longest untried first, ties by object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct QuarantinePlace {
    /// When it was last tried.
    pub tried: Instant,
    /// Its object.
    pub object: ObjectId,
}

impl Quarantined {
    /// Its place in the order of the quarantine.
    #[must_use]
    pub fn place(&self) -> QuarantinePlace {
        QuarantinePlace {
            tried: self.tried,
            object: self.meta.uid.object_id().clone(),
        }
    }
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
    /// Behind this place.
    pub after: Option<QuarantinePlace>,
}

/// How many entries of a template have a reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineCount {
    /// The template.
    pub template: TemplateId,
    /// The reason.
    pub reason: Reason,
    /// How many.
    pub entries: u64,
    /// When the oldest of them was first refused.
    pub oldest: Instant,
}
