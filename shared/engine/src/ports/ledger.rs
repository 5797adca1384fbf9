//! The control records.

use std::collections::HashMap;

use async_trait::async_trait;
use atlas_openehr::id::{ObjectId, ObjectVersion, TemplateId};
use atlas_openehr::time::Instant;

use crate::error::Result;
use crate::model::{
    Counts, Format, Origin, QuarantineCount, QuarantineFilter, Quarantined, Record, Rejected, Run,
    SelectionKey, Slice, SliceFilter, SlicesOf, TemplateCounts, Totals, Watermark,
};

/// Whether this process is known to be alone with a ledger. Ends with the value, and with the process, whatever kills it.
pub enum Hold {
    /// This process holds it: whoever held it before is dead.
    Alone(Box<dyn Send + Sync>),
    /// Another process holds it, or keeps it from being held.
    Taken,
    /// This ledger cannot tell: leases do.
    Unknown,
}

/// Slices, watermarks, runs, control records and quarantine: what was done, and what is to be done.
///
/// Records are changed by compare-and-swap only. Everything that a method changed is durable when it returns `Ok`.
/// After `StoreUnreachable` a change may or may not have happened: each method can be called again with the same arguments
/// and then ends in the same state as one call. All ids are the source's.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Creates what is needed or brings it up to date. Safe to run by several processes at once.
    ///
    /// # Errors
    /// `StoreNewer` if what is there is newer than this program; nothing is changed then.
    async fn prepare(&self) -> Result<()>;

    /// The clock that all processes of this ledger share, for leases; `None` if it has none but the machine's.
    async fn now(&self) -> Result<Option<Instant>>;

    /// Tries to be alone with what `name` says, without waiting. A faster proof of death than a lease, never the only one.
    async fn hold(&self, _name: &str) -> Result<Hold> {
        Ok(Hold::Unknown)
    }

    /// The watermarks of a selection. A template without a line was never finished to any point.
    async fn watermarks(&self, selection: &SelectionKey) -> Result<Vec<Watermark>>;

    /// Raises watermarks, all in one commit where there are transactions: `until` (with its position) and `late_checked_until`,
    /// each by itself. What is already there or further stays.
    async fn raise_watermarks(
        &self,
        selection: &SelectionKey,
        watermarks: &[Watermark],
    ) -> Result<()>;

    /// Forgets watermarks, because a person asked to read everything again.
    async fn forget_watermarks(
        &self,
        selection: &SelectionKey,
        templates: &[TemplateId],
    ) -> Result<()>;

    /// Forgets the watermarks and slices of all selections in another format (by [`SelectionKey::prefix`]): the rows that
    /// they speak of are about to be replaced by rows in this one. The counts of the slices are kept.
    async fn keep_format(&self, format: Format) -> Result<()>;

    /// Inserts slices. One whose id is already there stays as it is.
    async fn add_slices(&self, slices: &[Slice]) -> Result<()>;

    /// The slices of a selection that are not removed, finished ones included, by template and window.
    async fn slices(&self, selection: &SelectionKey) -> Result<Vec<Slice>>;

    /// At most `limit` slices, found without reading the others.
    async fn find_slices(&self, filter: &SliceFilter<'_>, limit: usize) -> Result<Vec<Slice>>;

    /// How slices stand at an instant of this ledger's clock, by template and all together; counted where they lie, but for shared
    /// ones.
    async fn slice_totals(&self, of: SlicesOf<'_>, now: Instant) -> Result<Totals>;

    /// One slice.
    async fn slice(&self, id: &str) -> Result<Option<Slice>>;

    /// Replaces a slice if `step` and `fence` in the store are still those of `before`; `step` becomes `before.step + 1`
    /// whatever `after.step` says. Answers the new record, or `None` if it had moved on.
    /// Repeated with the same arguments it answers the record that the first call made.
    async fn swap_slice(&self, before: &Slice, after: &Slice) -> Result<Option<Slice>>;

    /// Removes slices that are done and whose window the watermark has passed. Their counts stay, in those of their templates.
    async fn remove_slices(&self, ids: &[String]) -> Result<()>;

    /// Removes slices whatever their state, because their run was cancelled. A worker that has one is stopped at its next
    /// commit: that one is `Lost`. Their counts stay, in those of their templates.
    async fn drop_slices(&self, ids: &[String]) -> Result<()>;

    /// What became of the compositions of each template, over all slices, removed ones included.
    async fn template_counts(&self) -> Result<Vec<TemplateCounts>>;

    /// Replaces what is kept of the slices of a template that were removed, because somebody counted anew.
    async fn set_template_counts(&self, template: &TemplateId, counts: &Counts) -> Result<()>;

    /// Puts compositions into quarantine. An entry for the same version keeps its first `since` and `run`; its `tries` grows by one
    /// if `run` is not the run that tried it last. An entry of an older version is replaced, one of a newer version stays.
    async fn quarantine(&self, rejected: &[Rejected], run: &str, now: Instant) -> Result<()>;

    /// Ends the entries of these versions, and of older ones of the same objects.
    async fn end_quarantine(&self, versions: &[ObjectVersion]) -> Result<()>;

    /// The version of each of these objects that is in quarantine; others are left out.
    async fn in_quarantine(&self, objects: &[ObjectId]) -> Result<HashMap<ObjectId, u32>>;

    /// At most `limit` entries of the quarantine, in the order of their places.
    async fn quarantined(
        &self,
        filter: &QuarantineFilter,
        limit: usize,
    ) -> Result<Vec<Quarantined>>;

    /// How many entries there are, tried last before an instant if one is given. Loads none of them.
    async fn quarantine_counts(
        &self,
        tried_before: Option<Instant>,
    ) -> Result<Vec<QuarantineCount>>;

    /// Inserts the record of a run; `false` if there is one of that id, which stays as it is.
    async fn add_run(&self, run: &Run) -> Result<bool>;

    /// Replaces the record of a run if `step` in the store is still that of `before`; `step` becomes `before.step + 1` whatever
    /// `after.step` says. Answers the new record, or `None` if it had moved on or is not there.
    /// Repeated with the same arguments it answers the record that the first call made.
    async fn swap_run(&self, before: &Run, after: &Run) -> Result<Option<Run>>;

    /// The last runs, newest first.
    async fn runs(&self, limit: usize) -> Result<Vec<Run>>;

    /// One run.
    async fn run(&self, id: &str) -> Result<Option<Run>>;

    /// Runs of an origin that have no end yet, oldest first.
    async fn unfinished_runs(&self, origin: Origin) -> Result<Vec<Run>>;

    /// Removes the records of runs that ended before an instant and of which no slice and no entry of the quarantine speaks. Rows of
    /// the copy keep the id of the run that wrote them.
    async fn prune_runs(&self, ended_before: Instant) -> Result<()>;

    /// The control records whose names begin with `prefix`, by name.
    async fn records(&self, prefix: &str) -> Result<Vec<Record>>;

    /// Replaces a control record if `step` in the store is still that of `before` (0 = not there yet); `step` becomes
    /// `before.step + 1` whatever `after.step` says. Answers the new record, or `None` if it had moved on.
    /// Repeated with the same arguments it answers the record that the first call made.
    async fn swap_record(&self, before: &Record, after: &Record) -> Result<Option<Record>>;
}
