//! How many compositions took which way.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use atlas_openehr::id::TemplateId;
use serde::{Deserialize, Serialize};

/// How many compositions took which way. `read = written + unchanged + filtered + quarantined + deleted`, always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Received from the source, or named by it and not readable, or found deleted there.
    pub read: u64,
    /// New in the store, or replaced there.
    pub written: u64,
    /// Of those written, how many the copy did not hold before, or held as tombstones.
    #[serde(default)]
    pub inserted: u64,
    /// The store had this version, or a newer one.
    pub unchanged: u64,
    /// Not meant for the store.
    pub filtered: u64,
    /// In quarantine.
    pub quarantined: u64,
    /// Made tombstones.
    #[serde(default)]
    pub deleted: u64,
}

impl Counts {
    /// Whether nothing was lost and nothing was invented on the way (promise P11).
    #[must_use]
    pub fn conserved(&self) -> bool {
        let ways = self.written + self.unchanged + self.filtered + self.quarantined + self.deleted;
        self.read == ways && self.inserted <= self.written
    }

    /// What was added since `earlier`, which must be an earlier state of the same counts.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            read: self.read.saturating_sub(earlier.read),
            written: self.written.saturating_sub(earlier.written),
            inserted: self.inserted.saturating_sub(earlier.inserted),
            unchanged: self.unchanged.saturating_sub(earlier.unchanged),
            filtered: self.filtered.saturating_sub(earlier.filtered),
            quarantined: self.quarantined.saturating_sub(earlier.quarantined),
            deleted: self.deleted.saturating_sub(earlier.deleted),
        }
    }
}

/// What a page adds to the counts of its slice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCounts {
    /// All of it.
    #[serde(flatten)]
    pub all: Counts,
    /// By template, where several share the slice; else empty.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<TemplateId, Counts>,
}

impl PageCounts {
    /// Adds what became of compositions of a template, by its name if the slice is shared.
    pub(super) fn add(&mut self, template: &TemplateId, counts: Counts, is_shared: bool) {
        self.all += counts;
        if is_shared {
            *self.members.entry(template.clone()).or_default() += counts;
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.written += other.written;
        self.inserted += other.inserted;
        self.unchanged += other.unchanged;
        self.filtered += other.filtered;
        self.quarantined += other.quarantined;
        self.deleted += other.deleted;
    }
}
