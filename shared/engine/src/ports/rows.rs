//! The copy.

use std::collections::HashMap;

use async_trait::async_trait;
use atlas_openehr::id::{EhrId, ObjectId, TemplateId};
use atlas_openehr::time::Instant;

use crate::error::Result;
use crate::model::{
    Known, LandAnswer, LandedPage, Landing, Reason, RowKey, Scan, Slice, StoredRow,
};

/// What the copy holds of single objects. A database answers it from its rows; a lake keeps it elsewhere.
#[async_trait]
pub trait Index: Send + Sync {
    /// What the copy holds of these objects, tombstones included; what it never held is left out. A store that finds rows by
    /// object alone looks at nothing else of the keys.
    async fn known(&self, keys: &[RowKey]) -> Result<HashMap<ObjectId, Known>>;
}

/// The rows of a copy, one for each object: its newest version that was seen.
///
/// What a method changed is durable when it returns `Ok`. After `StoreUnreachable` it may or may not have happened: each method
/// can be called again with the same arguments, and then ends in the same state as one call.
#[async_trait]
pub trait Rows: Index {
    /// `sqlite`, `postgres`, …
    fn kind(&self) -> &'static str;

    /// Creates what is needed or brings it up to date. Safe to run by several processes at once.
    ///
    /// # Errors
    /// `StoreNewer` if what is there is newer than this program; nothing is changed then.
    async fn prepare(&self) -> Result<()>;

    /// Why no row can have this content, if none can, with the path of the culprit; no values. `content` is JSON, as it is about to
    /// be written. Decided without I/O.
    fn refuses(&self, content: &str) -> Option<(Reason, String)>;

    /// Lands a page of rows, all of them or (where there are no transactions) as many as it could before an error.
    ///
    /// - A row of a newer version replaces the one that is there. At an equal version the one that was asked later wins: content
    ///   takes the place of content that differs, and of a tombstone; a tombstone takes the place of content. Of the same moment,
    ///   the tombstone wins. An older version never replaces anything.
    /// - A tombstone lands only where the copy has the version that it names.
    /// - What is *the same* (version, EHR, template, commit time, format and checksum) is unchanged: only its `asked` becomes the
    ///   later one.
    /// - A page is landed once: the same page of the same slice and fence again answers [`Landed::Again`](crate::model::Landed)
    ///   for each row and changes nothing, in a sink that only appends, too.
    /// - Under an older fence than one that landed or asked [`landed`](Self::landed), the answer is `Superseded`; so it is for a page
    ///   that another fence landed, whoever brings it.
    /// - An error that a row meets alone, while another row (of this page, or a probe) does not, makes it
    ///   [`Refused`](LandAnswer::Refused). An error that every row meets is the store's, and an `Err`.
    async fn land(&self, landing: &Landing<'_>) -> Result<LandAnswer>;

    /// The last page that was landed of a slice. From here on nothing is landed for it under a fence older than `slice.fence`.
    /// Whoever takes a slice asks this, commits what is answered to the slice, and reads on from there. A store that lands a page
    /// and its checkpoint in one transaction has nothing to answer.
    async fn landed(&self, slice: &Slice) -> Result<Option<LandedPage>>;

    /// Reads rows back, tombstones included, in the order of their objects' ids as text.
    async fn scan(&self, scan: &Scan) -> Result<Vec<StoredRow>>;

    /// The latest commit time of each of these templates, tombstones left out. Costs the same at any number of rows.
    async fn newest(&self, templates: &[TemplateId]) -> Result<HashMap<TemplateId, Instant>>;

    /// Removes every row of an EHR, tombstones and side rows included. Answers how many compositions there were.
    async fn erase(&self, ehr: &EhrId) -> Result<u64>;
}
