//! The copy: keys, rows, what landing a page answers, and what is read back.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use atlas_openehr::json::Checksum;
use atlas_openehr::time::Instant;
use serde::{Deserialize, Serialize};

use crate::seeded::{Bug, planted};

use super::{Cursor, Format, Meta, PageCounts, Slice, Window, named};

/// Names a row as the copy shows it. What the source calls it is known to ledger and quarantine only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowKey {
    /// Versioned object: at most one row of a copy has it.
    pub object: ObjectId,
    /// The EHR, for stores that keep their rows by it.
    pub ehr: EhrId,
    /// The template, for stores that keep their rows by it.
    pub template: TemplateId,
}

impl Meta {
    /// The key of its row in a copy that shows ids as they are.
    #[must_use]
    pub fn key(&self) -> RowKey {
        RowKey {
            object: self.uid.object_id().clone(),
            ehr: self.ehr.clone(),
            template: self.template.clone(),
        }
    }
}

/// Why a composition is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeleteReason {
    /// Deleted at the source.
    Deleted,
    /// Removed from the source without a trace.
    Erased,
    /// Not readable for the copy any more (consent).
    Withdrawn,
    /// A person confirmed that it is gone.
    Confirmed,
}

named!(DeleteReason {
    Deleted => "deleted",
    Erased => "erased",
    Withdrawn => "withdrawn",
    Confirmed => "confirmed",
});

/// When and why a composition went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// The source's time of the delete, as far as it is known.
    pub at: Instant,
    /// Why.
    pub why: DeleteReason,
}

/// What a row says of its composition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// It is there.
    Content {
        /// Where its content lies in [`Batch::text`].
        text: Range<usize>,
        /// Of the content.
        checksum: Checksum,
        /// Where its side rows lie in [`Batch::side_rows`].
        side_rows: Range<usize>,
    },
    /// It is gone: the row becomes a tombstone, if it still has the version that the row to land names.
    Deleted(Deleted),
}

/// A row that a conversion makes beside the content of a composition, such as one of a typed table. It lives and dies with
/// its composition, and is not counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideRow {
    /// The table.
    pub table: Arc<str>,
    /// Its values as a JSON object, by column.
    pub values: String,
}

/// A row on its way into the copy.
#[derive(Debug, Clone)]
pub struct NewRow {
    /// What identifies and places it at the source.
    pub meta: Meta,
    /// Its key in the copy.
    pub key: RowKey,
    /// Its version uid as the copy shows it.
    pub uid: VersionUid,
    /// By the ledger's clock: of content the moment its request was sent, of a tombstone the moment its answer came. At an equal
    /// version the later one wins, and of two from the same moment the tombstone.
    pub asked: Instant,
    /// What it says.
    pub body: Body,
}

impl NewRow {
    /// A row of a copy that shows ids as they are.
    #[must_use]
    pub fn new(meta: Meta, asked: Instant, body: Body) -> Self {
        Self {
            key: meta.key(),
            uid: meta.uid.clone(),
            meta,
            asked,
            body,
        }
    }
}

/// The converted rows of a page. No two rows are of the same object.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// All contents, one after the other.
    pub text: String,
    /// In the order of the source.
    pub rows: Vec<NewRow>,
    /// The side rows of all contents, one composition after the other.
    pub side_rows: Vec<SideRow>,
}

impl Batch {
    /// The content of a row of this batch; empty for a tombstone.
    #[must_use]
    pub fn content(&self, row: &NewRow) -> &str {
        match &row.body {
            Body::Content { text, .. } => self.text.get(text.clone()).unwrap_or_default(),
            Body::Deleted(_) => "",
        }
    }

    /// The side rows of a row of this batch.
    #[must_use]
    pub fn side_rows(&self, row: &NewRow) -> &[SideRow] {
        match &row.body {
            Body::Content { side_rows, .. } => {
                self.side_rows.get(side_rows.clone()).unwrap_or_default()
            }
            Body::Deleted(_) => &[],
        }
    }
}

/// A page of rows to land.
#[derive(Debug, Clone)]
pub struct Landing<'a> {
    /// The slice as its worker knows it: `id`, `fence`, and the cursor before this page.
    pub slice: &'a Slice,
    /// The number of this page in its slice, from 1: [`Slice::page`] once it is committed.
    pub page: u64,
    /// The slice's cursor behind this page.
    pub cursor: Option<&'a Cursor>,
    /// The rows.
    pub batch: &'a Arc<Batch>,
    /// What of this page is no row: filtered and quarantined.
    pub beside: PageCounts,
    /// The run in which this happens.
    pub run: &'a str,
    /// The format of the contents.
    pub format: Format,
    /// When this happens.
    pub now: Instant,
}

/// What became of a row that was landed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Landed {
    /// The copy did not hold its object.
    New,
    /// It took the place of this version. A tombstone takes the place of the row that it marks.
    Replaced(Known),
    /// The copy holds the same: version, EHR, template, commit time, format and checksum. Also a tombstone for what the copy
    /// does not hold.
    Unchanged,
    /// The copy holds a newer version, or the same version from a later moment.
    Older,
    /// This very page landed it before: what became of it then.
    Again(Way),
}

/// What became of a row when its page was landed the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// It was new, or took the place of a tombstone.
    Inserted,
    /// It took the place of another one.
    Replaced,
    /// It made a tombstone.
    Deleted,
    /// It changed nothing.
    Unchanged,
}

impl Landed {
    /// What a page adds to its slice's counts for this row; `row` is the one that was landed.
    #[must_use]
    pub fn way(&self, row: &NewRow) -> Way {
        match (self, &row.body) {
            (Self::Again(before), _) => *before,
            (Self::Unchanged | Self::Older, _) => Way::Unchanged,
            (Self::New | Self::Replaced(_), Body::Deleted(_)) => Way::Deleted,
            (Self::New, Body::Content { .. }) => Way::Inserted,
            (Self::Replaced(old), Body::Content { .. }) if old.deleted => Way::Inserted,
            (Self::Replaced(_), Body::Content { .. }) => Way::Replaced,
        }
    }
}

/// What landing a page led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LandAnswer {
    /// For each row of the batch, in its order.
    Landed(Vec<Landed>),
    /// Nothing was landed, because these rows cannot be held. The others can.
    Refused(Vec<RefusedRow>),
    /// Nothing was landed: another worker, under another fence, has landed this page or a later one, or has taken the slice.
    Superseded,
}

/// A row that a store refuses whatever its neighbours are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRow {
    /// Its place in the batch.
    pub index: usize,
    /// Why: a class of error, such as a SQLSTATE; no content, no ids.
    pub detail: String,
}

/// The last page of a slice that was landed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LandedPage {
    /// Its number.
    pub page: u64,
    /// The slice's cursor behind it.
    pub cursor: Option<Cursor>,
    /// What it adds to the slice's counts, what was no row included.
    pub counts: PageCounts,
}

/// What the copy holds of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The version number.
    pub version: u32,
    /// Of the content; `None` in a tombstone without one.
    pub checksum: Option<Checksum>,
    /// The EHR.
    pub ehr: EhrId,
    /// The template.
    pub template: TemplateId,
    /// See [`NewRow::asked`].
    pub asked: Instant,
    /// Whether it is a tombstone.
    pub deleted: bool,
}

/// What a store looks at before it lands a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What the copy holds of the object.
    pub known: Known,
    /// Commit time of that version.
    pub committed: Instant,
    /// The format of its content.
    pub format: Format,
}

/// What becomes of a row: the rules of [`Rows::land`](crate::ports::Rows::land), once for all stores.
#[must_use]
pub fn judge(held: Option<&Held>, row: &NewRow, format: Format) -> Landed {
    let Some(held) = held else {
        return match row.body {
            Body::Content { .. } => Landed::New,
            Body::Deleted(_) => Landed::Unchanged,
        };
    };
    let Held {
        known, committed, ..
    } = held;
    let replaces = || Landed::Replaced(known.clone());
    match (row.uid.version().cmp(&known.version), &row.body) {
        (Ordering::Less, Body::Content { .. }) if planted(Bug::OlderVersionWins) => replaces(),
        (Ordering::Less, _) | (Ordering::Greater, Body::Deleted(_)) => Landed::Older,
        (Ordering::Greater, Body::Content { .. }) => replaces(),
        (Ordering::Equal, Body::Deleted(_)) if known.deleted => Landed::Unchanged,
        (Ordering::Equal, Body::Deleted(_)) if row.asked >= known.asked => replaces(),
        (Ordering::Equal, Body::Content { checksum, .. }) => {
            let same = !known.deleted
                && known.checksum == Some(*checksum)
                && (&known.ehr, &known.template) == (&row.key.ehr, &row.key.template)
                && (*committed, held.format) == (row.meta.committed, format);
            let later = row.asked > known.asked || (row.asked == known.asked && !known.deleted);
            match (same, later) {
                (true, _) => Landed::Unchanged,
                (false, true) => replaces(),
                (false, false) => Landed::Older,
            }
        }
        (Ordering::Equal, Body::Deleted(_)) => Landed::Older,
    }
}

/// Which rows are read back, in the order of their keys' objects.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// Of this template; `None` = any.
    pub template: Option<TemplateId>,
    /// Committed in this window; `None` = ever.
    pub window: Option<Window>,
    /// Behind this object.
    pub after: Option<ObjectId>,
    /// At most so many; at least 1.
    pub limit: usize,
}

/// A row as it lies in the copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRow {
    /// What identifies and places it, as the copy shows it. `position` is not kept.
    pub meta: Meta,
    /// In the format; what a tombstone keeps is up to the configuration.
    pub content: String,
    /// As it was written with the content.
    pub checksum: Checksum,
    /// The format of the content.
    pub format: Format,
    /// See [`NewRow::asked`].
    pub asked: Instant,
    /// Set in a tombstone.
    pub deleted: Option<Deleted>,
    /// The run that wrote it.
    pub run: String,
}
