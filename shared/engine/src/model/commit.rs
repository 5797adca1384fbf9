//! A page on its way into the store, and what it means for its slice.

use std::collections::BTreeMap;
use std::sync::Arc;

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;

use crate::seeded::{Bug, planted};

use super::{
    Batch, Counts, Cursor, Format, Landed, LandedPage, Landing, PageCounts, Reason, RefusedRow,
    Rejected, Slice, SliceState, Way,
};

/// A page on its way into the store, and what it means for its slice.
#[derive(Debug, Clone)]
pub struct Commit<'a> {
    /// The slice as the worker knows it: `id`, `step` and `fence` must be those in the store.
    pub slice: &'a Slice,
    /// Rows to keep; shared, so that a store that writes in another thread need not copy them.
    pub batch: &'a Arc<Batch>,
    /// Compositions to put into quarantine.
    pub rejected: &'a [Rejected],
    /// Compositions that were read and are not meant for the store, by template.
    pub filtered: &'a BTreeMap<TemplateId, u64>,
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
    /// The number of this page in its slice.
    #[must_use]
    pub fn page(&self) -> u64 {
        self.slice.page + 1
    }

    /// Whether a slice still stands as the worker knows it.
    #[must_use]
    pub fn applies_to(&self, stands: &Slice) -> bool {
        (stands.fence, stands.step) == (self.slice.fence, self.slice.step)
            || planted(Bug::FenceUnchecked)
    }

    /// Whether a slice stands as this very commit left it: only its answer got lost.
    #[must_use]
    pub fn was_applied_to(&self, stands: &Slice) -> bool {
        stands.fence == self.slice.fence
            && stands.step == self.slice.step + 1
            && stands.page == self.page()
            && stands.cursor == self.cursor
            && stands.state == self.state
    }

    /// Its rows, as they are landed. `quarantined` are those of the rejected that get or keep an entry: of the others the copy
    /// holds a newer version.
    #[must_use]
    pub fn landing<'r>(&self, quarantined: impl IntoIterator<Item = &'r Rejected>) -> Landing<'_> {
        Landing {
            slice: self.slice,
            page: self.page(),
            cursor: self.cursor.as_ref(),
            batch: self.batch,
            beside: self.beside(quarantined),
            run: self.run,
            format: self.format,
            now: self.now,
        }
    }

    fn beside<'r>(&self, quarantined: impl IntoIterator<Item = &'r Rejected>) -> PageCounts {
        let is_shared = self.slice.is_shared();
        let mut beside = PageCounts::default();
        for (template, filtered) in self.filtered {
            let counts = Counts {
                read: *filtered,
                filtered: *filtered,
                ..Counts::default()
            };
            beside.add(template, counts, is_shared);
        }
        for rejected in self.rejected {
            let counts = Counts {
                read: 1,
                unchanged: 1,
                ..Counts::default()
            };
            beside.add(&rejected.meta.template, counts, is_shared);
        }
        for rejected in quarantined {
            let entry = |counts: &mut Counts| {
                counts.unchanged -= 1;
                counts.quarantined += 1;
            };
            entry(&mut beside.all);
            beside.members.get_mut(&rejected.meta.template).map(entry);
        }
        beside
    }

    /// The slice after this commit, whose rows were landed with `counts` (see [`counts_of`]).
    #[must_use]
    pub fn apply(&self, stands: Slice, counts: &PageCounts) -> Slice {
        let mut after = Slice {
            step: stands.step + 1,
            page: self.page(),
            state: self.state,
            cursor: self.cursor.clone(),
            lease_until: self.lease_until,
            moved: Some(self.now),
            failure: None,
            ..stands
        };
        after.count(counts);
        if after.lease_until.is_none() {
            after.owner = None;
        }
        after
    }
}

impl Commit<'_> {
    /// The batch without rows that the store refuses, and everything that is rejected then.
    #[must_use]
    pub fn set_aside(&self, refused: &[RefusedRow]) -> (Arc<Batch>, Vec<Rejected>) {
        let mut batch = Batch::clone(self.batch);
        let mut rejected = self.rejected.to_vec();
        for (index, row) in self.batch.rows.iter().enumerate() {
            if let Some(RefusedRow { detail, .. }) =
                refused.iter().find(|refused| refused.index == index)
            {
                rejected.push(Rejected {
                    meta: row.meta.clone(),
                    key: row.key.clone(),
                    reason: Reason::Unstorable,
                    detail: detail.clone(),
                });
            }
        }
        let mut index = 0..;
        batch.rows.retain(|_| {
            let index = index.next();
            refused.iter().all(|refused| Some(refused.index) != index)
        });
        (Arc::new(batch), rejected)
    }
}

/// What a page adds to its slice's counts.
#[must_use]
pub fn counts_of(landing: &Landing<'_>, landed: &[Landed]) -> PageCounts {
    let mut page = landing.beside.clone();
    for (row, landed) in landing.batch.rows.iter().zip(landed) {
        let mut counts = Counts {
            read: 1,
            ..Counts::default()
        };
        let way = if planted(Bug::OutcomeTakenForCount) {
            Way::Inserted
        } else {
            landed.way(row)
        };
        match way {
            Way::Inserted => {
                counts.written += 1;
                counts.inserted += 1;
            }
            Way::Replaced => counts.written += 1,
            Way::Deleted => counts.deleted += 1,
            Way::Unchanged => counts.unchanged += 1,
        }
        page.add(&row.meta.template, counts, landing.slice.is_shared());
    }
    page
}

impl LandedPage {
    /// The slice with this page committed to it; as it is if it knows of this page already.
    #[must_use]
    pub fn adopt(&self, slice: Slice) -> Slice {
        if self.page <= slice.page {
            return slice;
        }
        let mut after = Slice {
            page: self.page,
            cursor: self.cursor.clone(),
            ..slice
        };
        after.count(&self.counts);
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
