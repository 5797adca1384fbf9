//! What the engine needs from the outside. The comments are the contract: whoever implements a
//! port keeps it, and the shared suites check it.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use atlas_openehr::id::{ObjectId, TemplateId};
use atlas_openehr::json::Node;
use atlas_openehr::time::Instant;

use crate::error::Result;
use crate::message::Message;
use crate::model::{
    Census, Commit, Committed, Cursor, Format, Holding, Known, Meta, Origin, Page,
    QuarantineFilter, Quarantined, Reason, Record, Run, Scope, SelectionKey, Slice, StoredTemplate,
    Usage, Watermark,
};

/// The compositions of a server: the latest version of each that is not deleted.
///
/// Order is by commit time, ties by object id (as lower-case text). Every method may be called
/// again after an error. Transient failures are retried inside; what comes out as an error has been tried enough.
#[async_trait]
pub trait Compositions: Send + Sync {
    /// Counts by template what was committed at or after `scope.window.from`, in the scope's templates and EHRs.
    /// `scope.window.to` is not looked at: the answer's own clock decides where a run ends.
    async fn census(&self, scope: &Scope) -> Result<Census>;

    /// How many compositions lie in the scope.
    async fn count(&self, scope: &Scope) -> Result<u64>;

    /// The first compositions of the scope behind `after`, at most `limit`, in order. A short answer proves nothing: servers
    /// cap them. Only an answer without rows, or a count, says that the end is reached.
    ///
    /// # Errors
    /// `SourceUnreadable` if the server fails on this very page, `SourceTooLarge` if the answer exceeds the limit:
    /// the caller asks for less.
    async fn page(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Page>;

    /// Like [`page`](Self::page), without content. Works for compositions that the server cannot read back.
    async fn list(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Vec<Meta>>;

    /// The latest versions of these objects that lie in the scope, in any order. An object that is not there any more is left out.
    ///
    /// # Errors
    /// As [`page`](Self::page).
    async fn fetch(&self, scope: &Scope, objects: &[ObjectId]) -> Result<Page>;
}

/// What a server knows of its templates.
#[async_trait]
pub trait Definitions: Send + Sync {
    /// All templates of the server, with and without compositions.
    async fn templates(&self) -> Result<Vec<TemplateId>>;

    /// The web template, as the server serves it (JSON).
    async fn web_template(&self, template: &TemplateId) -> Result<String>;
}

/// A server's own FLAT, to compare ours with, and to fall back on.
#[async_trait]
pub trait FlatOracle: Send + Sync {
    /// The server's own FLAT of the latest version of a composition (JSON).
    async fn flat(&self, meta: &Meta) -> Result<String>;
}

/// An openEHR server, read-only.
///
/// It bounds how many requests are under way at once, whoever asks: the server has clinicians to serve.
pub trait Source: Compositions + Definitions + FlatOracle {
    /// What was asked so far, by this process.
    fn usage(&self) -> Usage;
}

/// Lets go of what [`Store::hold`] gave when it is dropped, and when the process dies.
pub type Hold = Box<dyn Send + Sync>;

/// Where the copy and the control records live.
///
/// Control records are changed by compare-and-swap only. Everything that a method changed is durable when it returns `Ok`.
/// After `StoreUnreachable` a change may or may not have happened: each method can be called again with the same arguments
/// and then ends in the same state as one call.
#[async_trait]
pub trait Store: Send + Sync {
    /// `sqlite`, `postgres`, …
    fn kind(&self) -> &'static str;

    /// Why this store cannot hold a content, if it cannot, with the path of the culprit. Decided without I/O.
    fn refuses(&self, content: Node<'_>) -> Option<(Reason, String)>;

    /// Creates the tables or brings them up to date. Safe to run by several processes at once.
    ///
    /// # Errors
    /// `StoreNewer` if the tables are newer than this program; nothing is changed then.
    async fn prepare(&self) -> Result<()>;

    /// Holds `name` exclusively over all processes that use this store; `None` if another one holds it.
    /// The hold ends with the value or with the process, whatever kills it.
    async fn hold(&self, name: &str) -> Result<Option<Hold>>;

    /// The watermarks of a selection. A template without a line was never finished to any point.
    async fn watermarks(&self, selection: &SelectionKey) -> Result<Vec<Watermark>>;

    /// Raises watermarks, all in one commit where there are transactions: `until` and `late_checked_until`, each by itself. What
    /// is already there or further stays.
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
    /// they speak of are about to be replaced by rows in this one.
    async fn keep_format(&self, format: Format) -> Result<()>;

    /// Inserts slices. One whose id is already there stays as it is.
    async fn add_slices(&self, slices: &[Slice]) -> Result<()>;

    /// The slices of a selection that are not removed, finished ones included, by template and window.
    async fn slices(&self, selection: &SelectionKey) -> Result<Vec<Slice>>;

    /// One slice.
    async fn slice(&self, id: &str) -> Result<Option<Slice>>;

    /// Replaces a slice if `step` and `fence` in the store are still those of `before`; `step` becomes `before.step + 1`
    /// whatever `after.step` says. Answers the new record, or `None` if it had moved on.
    /// Repeated with the same arguments it answers the record that the first call made.
    async fn swap_slice(&self, before: &Slice, after: &Slice) -> Result<Option<Slice>>;

    /// Removes slices that are done and whose window the watermark has passed.
    async fn remove_slices(&self, ids: &[String]) -> Result<()>;

    /// Removes slices whatever their state, because their run was cancelled. A worker that has one is stopped at its next
    /// commit: that one is [`Committed::Lost`].
    async fn drop_slices(&self, ids: &[String]) -> Result<()>;

    /// Makes a page durable together with its slice's cursor, or nothing of it (see [`Committed::Lost`]).
    ///
    /// - A row replaces an older version of its object, or the same version if format or checksum differ, or a tombstone
    ///   of an older version. It never replaces a newer version. Rows that replace nothing count as unchanged.
    /// - A row that is kept, or was already there, ends a quarantine of the same or an older version of its object.
    /// - A rejected row gets an entry in quarantine (or raises `tries` and `tried` of the one for the same version, whose first `since` and `run` stay),
    ///   unless the entry or the store is about a newer version.
    /// - The slice's counts grow by what happened; its `step` by one. Owner and lease are cleared if `lease_until` is `None`.
    /// - The same commit again (same fence, `step` one further, its cursor and state: a lost answer) answers the slice as
    ///   it stands.
    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed>;

    /// For each object the newest version in the store (tombstones included) or in quarantine; objects never seen are left out.
    async fn known(&self, objects: &[ObjectId]) -> Result<HashMap<ObjectId, Known>>;

    /// Entries of the quarantine, the longest untried first.
    async fn quarantined(&self, filter: &QuarantineFilter) -> Result<Vec<Quarantined>>;

    /// What the store holds, by template.
    async fn holdings(&self) -> Result<Vec<Holding>>;

    /// Inserts the record of a run; `false` if there is one of that id, which stays as it is.
    async fn add_run(&self, run: &Run) -> Result<bool>;

    /// Inserts or replaces the record of a run.
    async fn save_run(&self, run: &Run) -> Result<()>;

    /// The last runs, newest first.
    async fn runs(&self, limit: usize) -> Result<Vec<Run>>;

    /// One run.
    async fn run(&self, id: &str) -> Result<Option<Run>>;

    /// Runs of an origin that have no end yet, oldest first.
    async fn unfinished_runs(&self, origin: Origin) -> Result<Vec<Run>>;

    /// The clock that all processes of this store share, for leases; `None` if it has none but the machine's.
    async fn now(&self) -> Result<Option<Instant>>;

    /// The control records whose names begin with `prefix`, by name.
    async fn records(&self, prefix: &str) -> Result<Vec<Record>>;

    /// Replaces a control record if `step` in the store is still that of `before` (0 = not there yet); `step` becomes
    /// `before.step + 1` whatever `after.step` says. Answers the new record, or `None` if it had moved on.
    /// Repeated with the same arguments it answers the record that the first call made.
    async fn swap_record(&self, before: &Record, after: &Record) -> Result<Option<Record>>;

    /// A web template.
    async fn template(&self, template: &TemplateId) -> Result<Option<StoredTemplate>>;

    /// Inserts or replaces a web template.
    async fn save_template(&self, template: &StoredTemplate) -> Result<()>;
}

/// Brings messages to workers: at least once, in any order, possibly much later. What makes that harmless is the slice's
/// record, not the queue.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Puts a message into the queue of work; it is delivered `delay` from now at the earliest (15 minutes at most: longer
    /// ones are cut). Durable when it returns `Ok`. After an error it may or may not be in the queue.
    ///
    /// # Errors
    /// `QueueUnreachable` if the same call can succeed later, `QueueDenied` if it cannot.
    async fn send(&self, message: &Message, delay: Duration) -> Result<()>;
}

/// Tells the time. Waiting is tokio's, so that a test can turn both at once.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Instant;

    /// Goes by another clock from here on, which shows `now` at this moment: the one that all processes of a store share.
    /// A clock that is that one already has nothing to do.
    fn follow(&self, _now: Instant) {}
}

/// What is reported to the person watching. Never blocks, never fails.
pub trait Observer: Send + Sync {
    /// Called from any task.
    fn event(&self, event: &Event<'_>);
}

/// What happens during a run, as far as a person wants to watch it.
#[derive(Debug)]
pub enum Event<'a> {
    /// The census is in: so many compositions of a template are to be read.
    Planned {
        /// The template.
        template: &'a TemplateId,
        /// Compositions in all slices of it that are not finished.
        expected: u64,
    },
    /// A page is durable.
    Page {
        /// The template.
        template: &'a TemplateId,
        /// What this page added.
        counts: crate::model::Counts,
        /// Bytes of the source's answer.
        bytes: u64,
    },
    /// A slice is finished.
    SliceDone {
        /// The template.
        template: &'a TemplateId,
    },
    /// A slice could not go on; the run goes on with others.
    SliceFailed {
        /// The template.
        template: &'a TemplateId,
        /// Why.
        error: &'a crate::Error,
    },
    /// Something worth a line.
    Note(&'a str),
}
